using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.IO;

/// <summary>The conformance model: text is a command, anything else comes back.</summary>
public class Model
{
    readonly List<byte[]> held = new List<byte[]>();

    public Model(string path) { }

    public object Predict(object inputs)
    {
        if (inputs is byte[] data)
        {
            Array.Reverse(data);
            return data;
        }
        if (!(inputs is string text)) return inputs;
        string[] words = text.Split(new[] { ' ' }, 2);
        string rest = words.Length > 1 ? words[1] : "";
        switch (words[0])
        {
            case "raise": throw new ArgumentException("as asked");
            case "exit": Environment.Exit(int.Parse(rest)); break;
            case "spin": for (long n = 0; ; n++) if (n < 0) return n;
            case "print": Console.WriteLine(rest); return "printed";
            case "noise":
                for (int n = 0; n < 2000; n++) Console.WriteLine(new string('x', 1000));
                return "done";
            case "nan": return new object[] { double.NaN, new { x = 1 / 0.0 }, 1.5 };
            case "eat": while (true) held.Add(new byte[1 << 20]);
            case "read": return File.ReadAllText(rest);
            case "run":
                var start = new ProcessStartInfo("/bin/sh", "-c \"" + rest.Replace("\"", "\\\"") + "\"");
                start.UseShellExecute = false;
                start.RedirectStandardOutput = true;
                using (var process = Process.Start(start)) return process.StandardOutput.ReadToEnd();
            case "unsendable": return new IntPtr(1);
        }
        return inputs;
    }
}
