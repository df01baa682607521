using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading.Tasks;
using Appliance;

/// <summary>The conformance model that calls: text is a command.</summary>
public class Calls
{
    readonly string early;
    Task<string> left;

    public Calls(string path)
    {
        early = Message(() => Models.Call("echo", 1));
    }

    public object Predict(object inputs)
    {
        string[] words = ((string)inputs).Split(new[] { ' ' }, 2);
        string rest = words.Length > 1 ? words[1] : "";
        switch (words[0])
        {
            case "early": return early;
            case "text": return Models.Call("echo:3", rest);
            case "values":
                return Models.Call("echo", new { a = new object[] { 1, 2.5, null, true }, b = new { c = "ü" } });
            case "bytes": return Models.Call("echo@live", Enumerable.Range(0, 256).Select(n => (byte)n).ToArray());
            case "typed": return Models.Call("echo", rest, "application/json");
            case "refused": return Told(() => Models.Call(rest, 1));
            case "through": return Models.Call(rest, 1);
            case "large": return Told(() => Models.Call("echo", new string('x', int.Parse(rest))));
            case "many":
                return Task.WhenAll(Enumerable.Range(0, int.Parse(rest)).Select(n => Models.CallAsync("echo", n)));
            case "leave":
                left = Task.Run(() => Message(() => Models.Call("slow", 1)));
                Models.Call("second", 1);
                return "done";
            default: return left.Result;
        }
    }

    static string Message(Func<object> work)
    {
        try
        {
            return (string)work();
        }
        catch (CallFailed error)
        {
            return error.Message;
        }
    }

    static object Told(Func<object> work)
    {
        try
        {
            return work();
        }
        catch (CallFailed error)
        {
            return error.Code + " " + error.Status + " " + error.Message;
        }
    }
}
