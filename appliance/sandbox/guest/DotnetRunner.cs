using System;
using System.Collections;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Numerics;
using System.Reflection;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading.Tasks;

/// <summary>
/// The runner for C# and its relatives: the process inside a sandbox that loads one model and answers
/// its calls.
///
/// Owns: the guest half of PROTOCOL.md for .NET; the framework only. It is compiled together with
/// DotnetCalling.cs (calls of other models) and the model (dotnet_build.sh); native_runner.pl unpacks the artifact and becomes this program,
/// whose standard input is the connection. Never: is trusted; model code shares the process.
///
/// A model: <c>entry = "Model.cs:Model"</c> (or <c>"model.dll:Namespace.Class"</c>, compiled elsewhere),
/// a public class with a constructor of the folder's path (a string) and a method
/// <c>object Predict(object)</c>; a Task is waited for. Inputs: JSON as Dictionary&lt;string, object&gt;,
/// List&lt;object&gt;, string, long, BigInteger, double, bool and null; text as a string; anything else
/// as byte[]. Answers likewise; other dictionaries, sequences and numbers, anonymous types and the
/// model's own classes (their public properties) become JSON too.
/// </summary>
public static class DotnetRunner
{
    const int Piece = 1 << 20;
    const int Link = 100;
    const int CloseOnExec = 0x80000;
    const string Wanted =
        "Compile it for .NET Framework 4 or .NET Standard 2, or bring a newer .NET as an image.";
    static readonly UTF8Encoding Strict = new UTF8Encoding(false, true);
    static readonly UTF8Encoding Lenient = new UTF8Encoding(false, false);

    [DllImport("libc", SetLastError = true)]
    static extern IntPtr read(int file, ref byte data, IntPtr size);

    [DllImport("libc", SetLastError = true)]
    static extern IntPtr write(int file, ref byte data, IntPtr size);

    [DllImport("libc", SetLastError = true)]
    static extern int open(string path, int flags);

    [DllImport("libc", SetLastError = true)]
    static extern int dup3(int from, int to, int flags);

    /// <summary>Something to report as ERR.</summary>
    internal sealed class Fault : Exception
    {
        public readonly string Kind;

        public Fault(string kind, string detail) : base(detail)
        {
            Kind = kind;
        }
    }

    public static void Main()
    {
        // The model's standard input is empty; its children inherit no connection.
        if (dup3(0, Link, CloseOnExec) < 0 || dup3(open("/dev/null", 0), 0, 0) < 0) Environment.Exit(1);
        CultureInfo.DefaultThreadCurrentCulture = CultureInfo.InvariantCulture;
        Appliance.Models.Begin();
        var watch = Stopwatch.StartNew();
        Func<object, object> predict = null;
        try
        {
            predict = Load(
                Environment.GetEnvironmentVariable("APPLIANCE_ENTRY"),
                Environment.GetEnvironmentVariable("APPLIANCE_PATH"));
            Console.Out.Flush();
            Send("{\"type\":\"READY\",\"compute_us\":" + Microseconds(watch) + "}", new byte[0]);
        }
        catch (Exception error)
        {
            Report("", error);
        }
        while (true) ServeOne(predict);
    }

    static void ServeOne(Func<object, object> predict)
    {
        Frame frame = Appliance.Models.IsDeclared ? Appliance.Models.Receive() : Read();
        string id = (string)frame.Header["id"];
        try
        {
            var watch = Stopwatch.StartNew();
            string kind;
            object inputs = Inputs((string)frame.Header["content_type"], frame.Body);
            byte[] answer = Answer(predict(inputs), out kind);
            Console.Out.Flush();
            Send("{\"type\":\"RES\",\"id\":" + Json.Quoted(id) + ",\"content_type\":" + Json.Quoted(kind)
                + ",\"compute_us\":" + Microseconds(watch) + "}", answer);
        }
        catch (Exception error)
        {
            Report(id, error);
        }
    }

    static string Microseconds(Stopwatch watch)
    {
        return (watch.ElapsedTicks * 1000000 / Stopwatch.Frequency).ToString(CultureInfo.InvariantCulture);
    }

    /// <summary>What answers calls, bound to a new instance of the entry's class.</summary>
    static Func<object, object> Load(string entry, string folder)
    {
        string file = entry.Substring(0, entry.LastIndexOf(':'));
        string name = entry.Substring(file.Length + 1);
        string path = Path.Combine(folder, file);
        if (!File.Exists(path)) throw new Fault("entry", "The artifact has no file '" + file + "'.");
        bool isCompiled = file.EndsWith(".dll", StringComparison.Ordinal);
        Type type;
        try
        {
            Assembly own = Assembly.GetExecutingAssembly();
            type = (isCompiled ? Assembly.LoadFrom(path) : own).GetType(name, false);
        }
        catch (BadImageFormatException)
        {
            throw new Fault("entry", "'" + file + "' is no assembly. " + Wanted);
        }
        if (type == null) throw new Fault("entry", "'" + file + "' has no class '" + name + "'.");
        ConstructorInfo constructor = type.GetConstructor(new[] { typeof(string) });
        MethodInfo method = type.GetMethod("Predict", new[] { typeof(object) });
        if (!type.IsVisible || constructor == null || method == null || method.ReturnType.IsValueType)
        {
            throw new Fault("entry", "'" + entry + "' needs to be a public class with a public "
                + "constructor (string path) and a public method object Predict(object inputs).");
        }
        try
        {
            object model = constructor.Invoke(new object[] { folder });
            return (Func<object, object>)Delegate.CreateDelegate(
                typeof(Func<object, object>), method.IsStatic ? null : model, method);
        }
        catch (TargetInvocationException error)
        {
            ExceptionDispatchInfo.Capture(error.InnerException).Throw();
            throw;
        }
    }

    // ------------------------------------------------------------ frames

    static long Number(byte[] data, int start, int size)
    {
        long value = 0;
        for (int at = start; at < start + size; at++) value = value << 8 | data[at];
        return value;
    }

    static byte[] Receive(int size)
    {
        var data = new byte[size];
        for (int at = 0; at < size;)
        {
            long got = (long)read(Link, ref data[at], (IntPtr)Math.Min(Piece, size - at));
            if (got < 0 && Marshal.GetLastWin32Error() == 4) continue; // interrupted
            if (got <= 0) Environment.Exit(0); // the appliance is gone
            at += (int)got;
        }
        return data;
    }

    static void Write(byte[] data)
    {
        for (int at = 0; at < data.Length;)
        {
            long sent = (long)write(Link, ref data[at], (IntPtr)Math.Min(Piece, data.Length - at));
            if (sent < 0 && Marshal.GetLastWin32Error() == 4) continue;
            if (sent <= 0) Environment.Exit(0);
            at += (int)sent;
        }
    }

    /// <summary>A frame that came.</summary>
    internal sealed class Frame
    {
        public Dictionary<string, object> Header;
        public byte[] Body;
    }

    /// <summary>One frame; a body there is no memory for ends the process with the words for it.</summary>
    internal static Frame Read()
    {
        try
        {
            byte[] prefix = Receive(12);
            string header = Strict.GetString(Receive((int)Number(prefix, 0, 4)));
            var members = (Dictionary<string, object>)new Json(header).Document();
            return new Frame { Header = members, Body = Receive(checked((int)Number(prefix, 4, 8))) };
        }
        catch (Exception error) when (error is OutOfMemoryException || error is OverflowException)
        {
            Console.Error.WriteLine("System.OutOfMemoryException: " + error.Message);
            Environment.Exit(1);
            throw;
        }
    }

    static void Send(string header, byte[] body)
    {
        if (Appliance.Models.IsDeclared) Appliance.Models.Answer(header, body);
        else WriteFrame(header, body);
    }

    internal static void WriteFrame(string header, byte[] body)
    {
        byte[] text = Lenient.GetBytes(header);
        var frame = new byte[12 + text.Length];
        for (int at = 0; at < 4; at++) frame[at] = (byte)(text.Length >> (24 - 8 * at));
        for (int at = 0; at < 8; at++) frame[4 + at] = (byte)((long)body.Length >> (56 - 8 * at));
        Buffer.BlockCopy(text, 0, frame, 12, text.Length);
        Write(frame);
        Write(body);
    }

    /// <summary>Send ERR; its trace holds the model's own lines.</summary>
    static void Report(string id, Exception error)
    {
        string kind = "raised";
        string detail = "something that cannot be shown was thrown";
        string missing = "";
        var trace = new List<object>();
        try
        {
            Console.Out.Flush();
            var fault = error as Fault;
            if (error is OutOfMemoryException) kind = "memory";
            if (fault != null) kind = fault.Kind;
            missing = Missing(error);
            detail = fault != null ? fault.Message : error.GetType().FullName + ": " + error.Message;
            bool isNewer = IsNewer(error, missing);
            if (isNewer) detail += ". " + Wanted;
            if (missing != "") kind = isNewer ? "entry" : "import";
            if (fault == null)
            {
                trace.Add(Shortened(detail, 500));
                foreach (string line in (error.StackTrace ?? "").Split('\n'))
                {
                    if (line.Contains("DotnetRunner") || trace.Count > 30) break;
                    int end = line.IndexOf(" [0x", StringComparison.Ordinal);
                    trace.Add(Shortened(end < 0 ? line : line.Substring(0, end), 200));
                }
            }
        }
        catch (Exception)
        {
            // Even the message of an exception may be the model's own code.
        }
        Send("{\"type\":\"ERR\",\"id\":" + Json.Quoted(id) + ",\"kind\":\"" + kind + "\",\"detail\":"
            + Json.Quoted(Shortened(detail, 1000)) + ",\"missing\":" + Json.Quoted(Shortened(missing, 200))
            + ",\"trace\":" + Json.Text(trace) + "}", new byte[0]);
    }

    /// <summary>The assembly or shared object that was not found, or nothing.</summary>
    static string Missing(Exception error)
    {
        for (Exception at = error; at != null; at = at.InnerException)
        {
            var file = at as FileNotFoundException;
            bool isAssembly = file != null && file.Message.StartsWith("Could not load");
            if (isAssembly && file.FileName != null) return file.FileName.Split(',')[0] + ".dll";
            if (at is DllNotFoundException) return at.Message.Split(' ')[0];
        }
        return "";
    }

    /// <summary>Whether something of the framework is missing, which newer ones have.</summary>
    static bool IsNewer(Exception error, string missing)
    {
        if (missing != "") return missing == "netstandard.dll" || missing.StartsWith("System.");
        for (Exception at = error; at != null; at = at.InnerException)
        {
            bool isType = at is TypeLoadException && at.Message.Contains("in assembly 'System.");
            bool isMethod = at is MissingMethodException && at.Message.StartsWith("Method not found");
            if (isType || isMethod) return true;
        }
        return false;
    }

    static string Shortened(string text, int size)
    {
        return text == null ? "" : text.Length <= size ? text : text.Substring(0, size);
    }

    // ------------------------------------------------------------ values

    internal static object Inputs(string contentType, byte[] body)
    {
        string media = contentType.Split(';')[0].Trim().ToLowerInvariant();
        bool isJson = media == "application/json" || media.EndsWith("+json", StringComparison.Ordinal);
        if (!isJson && !media.StartsWith("text/", StringComparison.Ordinal)) return body;
        try
        {
            string text = Strict.GetString(body);
            return isJson ? new Json(text).Document() : text;
        }
        catch (DecoderFallbackException)
        {
            throw new Fault("input", "The body is not valid " + media + ": not UTF-8.");
        }
        catch (FormatException error)
        {
            throw new Fault("input", "The body is not valid " + media + ": " + error.Message + ".");
        }
    }

    internal static byte[] Answer(object value, out string contentType)
    {
        var task = value as Task;
        if (task != null)
        {
            task.GetAwaiter().GetResult();
            PropertyInfo result = task.GetType().GetProperty("Result");
            value = result == null ? null : result.GetValue(task);
        }
        var data = value as byte[];
        var text = value as string;
        contentType = data != null ? "application/octet-stream"
            : text != null ? "text/plain; charset=utf-8" : "application/json";
        return data ?? Lenient.GetBytes(text ?? Json.Text(value));
    }

    /// <summary>JSON (RFC 8259), both ways.</summary>
    internal sealed class Json
    {
        const int DepthMax = 1000;
        readonly string text;
        int at;
        int depth;

        public Json(string text)
        {
            this.text = text;
        }

        public object Document()
        {
            object value = Value();
            Space();
            if (at < text.Length) throw Wrong("text after the value");
            return value;
        }

        FormatException Wrong(string what)
        {
            return new FormatException(what + " at character " + at);
        }

        void Space()
        {
            while (at < text.Length && " \t\r\n".IndexOf(text[at]) >= 0) at++;
        }

        bool Next(char wanted)
        {
            Space();
            if (at >= text.Length || text[at] != wanted) return false;
            at++;
            return true;
        }

        object Value()
        {
            Space();
            if (at >= text.Length) throw Wrong("the end");
            char first = text[at];
            if (first == '"') return String();
            if (first == '{' || first == '[')
            {
                if (++depth > DepthMax) throw Wrong("nested too deep");
                object found = first == '{' ? (object)Object() : Array();
                depth--;
                return found;
            }
            if (Word("true")) return true;
            if (Word("false")) return false;
            if (Word("null")) return null;
            return Number();
        }

        bool Word(string word)
        {
            if (string.CompareOrdinal(text, at, word, 0, word.Length) != 0) return false;
            at += word.Length;
            return true;
        }

        Dictionary<string, object> Object()
        {
            var found = new Dictionary<string, object>();
            at++;
            if (Next('}')) return found;
            do
            {
                Space();
                if (at >= text.Length || text[at] != '"') throw Wrong("no member name");
                string key = String();
                if (!Next(':')) throw Wrong("no colon");
                found[key] = Value();
            } while (Next(','));
            if (!Next('}')) throw Wrong("an object without end");
            return found;
        }

        List<object> Array()
        {
            var found = new List<object>();
            at++;
            if (Next(']')) return found;
            do found.Add(Value()); while (Next(','));
            if (!Next(']')) throw Wrong("an array without end");
            return found;
        }

        string String()
        {
            var made = new StringBuilder();
            for (at++; at < text.Length; at++)
            {
                char letter = text[at];
                if (letter == '"')
                {
                    at++;
                    return made.ToString();
                }
                if (letter < 0x20) throw Wrong("a control character");
                made.Append(letter == '\\' ? Escaped() : letter);
            }
            throw Wrong("a string without end");
        }

        char Escaped()
        {
            at++;
            char letter = at < text.Length ? text[at] : ' ';
            if (letter == 'u')
            {
                ushort code;
                string digits = at + 4 < text.Length ? text.Substring(at + 1, 4) : "";
                if (!ushort.TryParse(digits, NumberStyles.AllowHexSpecifier, null, out code))
                {
                    throw Wrong("an unknown escape");
                }
                at += 4;
                return (char)code;
            }
            int known = "\"\\/bfnrt".IndexOf(letter);
            if (known < 0) throw Wrong("an unknown escape");
            return "\"\\/\b\f\n\r\t"[known];
        }

        int Digits()
        {
            int start = at;
            while (at < text.Length && text[at] >= '0' && text[at] <= '9') at++;
            return at - start;
        }

        object Number()
        {
            int start = at;
            if (text[at] == '-') at++;
            bool isZero = at < text.Length && text[at] == '0';
            int digits = Digits();
            bool isRight = digits > 0 && !(isZero && digits > 1), isWhole = true;
            if (isRight && at < text.Length && text[at] == '.')
            {
                at++;
                isWhole = false;
                isRight = Digits() > 0;
            }
            if (isRight && at < text.Length && (text[at] == 'e' || text[at] == 'E'))
            {
                at++;
                isWhole = false;
                if (at < text.Length && (text[at] == '+' || text[at] == '-')) at++;
                isRight = Digits() > 0;
            }
            string number = text.Substring(start, at - start);
            if (!isRight)
            {
                at = start;
                throw Wrong("no JSON value");
            }
            if (!isWhole)
            {
                double value;
                double.TryParse(number, NumberStyles.Float, CultureInfo.InvariantCulture, out value);
                if (!double.IsInfinity(value)) return value;
                throw Wrong("a number too large");
            }
            if (number.Length < 19) return long.Parse(number, CultureInfo.InvariantCulture);
            return BigInteger.Parse(number, CultureInfo.InvariantCulture);
        }

        public static string Quoted(string text)
        {
            var made = new StringBuilder();
            Quote(made, text);
            return made.ToString();
        }

        public static string Text(object value)
        {
            var made = new StringBuilder();
            Put(made, value, 0);
            return made.ToString();
        }

        static void Put(StringBuilder made, object value, int depth)
        {
            if (depth > DepthMax) throw Unsendable("is nested too deep");
            if (value == null) made.Append("null");
            else if (value is bool) made.Append((bool)value ? "true" : "false");
            else if (value is string || value is char || value is Enum) Quote(made, value.ToString());
            else if (value is double || value is float) made.Append(Real((IFormattable)value));
            else if (value is decimal || value is BigInteger || IsWhole(value))
            {
                made.Append(((IFormattable)value).ToString(null, CultureInfo.InvariantCulture));
            }
            else PutMany(made, value, depth);
        }

        static bool IsWhole(object value)
        {
            return value is int || value is long || value is uint || value is ulong || value is short
                || value is ushort || value is byte || value is sbyte;
        }

        /// <summary>A number as few digits as are read back exactly; NaN and infinities as null.</summary>
        static string Real(IFormattable value)
        {
            string digits = value.ToString("R", CultureInfo.InvariantCulture);
            return digits.IndexOf('N') < 0 && digits.IndexOf('I') < 0 ? digits : "null";
        }

        static Fault Unsendable(string why)
        {
            return new Fault("unsupported", "The answer cannot be sent: it " + why + ".");
        }

        static void PutMany(StringBuilder made, object value, int depth)
        {
            Type type = value.GetType();
            if (IsMap(type))
            {
                char before = '{';
                foreach (object member in (IEnumerable)value)
                {
                    string key = Convert.ToString(Property(member, "Key"), CultureInfo.InvariantCulture);
                    Quote(made.Append(before), key);
                    Put(made.Append(':'), Property(member, "Value"), depth + 1);
                    before = ',';
                }
                made.Append(before == '{' ? "{}" : "}");
            }
            else if (value is IEnumerable)
            {
                char before = '[';
                foreach (object member in (IEnumerable)value)
                {
                    Put(made.Append(before), member, depth + 1);
                    before = ',';
                }
                made.Append(before == '[' ? "[]" : "]");
            }
            else if (value is Delegate || type.Assembly.Location.StartsWith("/usr/lib/mono/"))
            {
                throw Unsendable("holds a " + type.FullName);
            }
            else PutProperties(made, value, depth);
        }

        static void PutProperties(StringBuilder made, object value, int depth)
        {
            char before = '{';
            BindingFlags which = BindingFlags.Public | BindingFlags.Instance;
            foreach (PropertyInfo one in value.GetType().GetProperties(which))
            {
                if (!one.CanRead || one.GetIndexParameters().Length > 0) continue;
                Quote(made.Append(before), one.Name);
                Put(made.Append(':'), one.GetValue(value), depth + 1);
                before = ',';
            }
            made.Append(before == '{' ? "{}" : "}");
        }

        static bool IsMap(Type type)
        {
            if (typeof(IDictionary).IsAssignableFrom(type)) return true;
            foreach (Type one in type.GetInterfaces())
            {
                Type general = one.IsGenericType ? one.GetGenericTypeDefinition() : null;
                if (general == typeof(IDictionary<,>)) return true;
            }
            return false;
        }

        static object Property(object member, string name)
        {
            return member.GetType().GetProperty(name).GetValue(member);
        }

        static void Quote(StringBuilder made, string text)
        {
            made.Append('"');
            foreach (char letter in text)
            {
                if (letter == '"' || letter == '\\') made.Append('\\').Append(letter);
                else if (letter < 0x20) made.Append("\\u").Append(((int)letter).ToString("x4"));
                else made.Append(letter);
            }
            made.Append('"');
        }
    }
}
