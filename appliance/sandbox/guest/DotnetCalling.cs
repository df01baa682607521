using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace Appliance
{
    /// <summary>A call was refused or failed: <c>Code</c> is the problem, <c>Status</c> its HTTP status.</summary>
    public sealed class CallFailed : Exception
    {
        public readonly string Code;
        public readonly int Status;

        public CallFailed(string detail, string code = "", int status = 0) : base(detail)
        {
            Code = code;
            Status = status;
        }
    }

    /// <summary>
    /// Calls of other models of the same tenant, for models whose manifest declares <c>calls</c>.
    ///
    /// Owns: CALL, RETURN and ERR of PROTOCOL.md for .NET; the framework only. It is compiled together with
    /// the model and DotnetRunner.cs. Never: is trusted; decides nothing: the appliance does.
    ///
    /// <code>object answer = Appliance.Models.Call("iris-classifier@live", scaled);</code>
    ///
    /// Any thread may call while a request is being answered. A thread of its own reads the connection.
    /// </summary>
    public static class Models
    {
        static readonly object Sending = new object(); // held while a frame is written
        static readonly object State = new object(); // held while what follows is looked at
        static readonly Queue<DotnetRunner.Frame> Requests = new Queue<DotnetRunner.Frame>();
        static readonly Dictionary<string, Waiting> Open = new Dictionary<string, Waiting>();
        static string request = "";
        static long parallelMax, bodyBytesMax, count;

        sealed class Waiting
        {
            public DotnetRunner.Frame Answer;
        }

        internal static bool IsDeclared { get; private set; }

        /// <summary>Called by the runner, once.</summary>
        internal static void Begin()
        {
            IsDeclared = Environment.GetEnvironmentVariable("APPLIANCE_CALLS") != null;
            if (IsDeclared) new Thread(Sort) { IsBackground = true }.Start();
        }

        /// <summary>
        /// The answer of another model. The target is NAME, NAME:VERSION or NAME@ALIAS and is declared in
        /// <c>calls</c>; inputs are a string, a byte[], or anything that can be JSON; contentType says what
        /// they are, where it is not what they would be.
        /// </summary>
        public static object Call(string target, object inputs = null, string contentType = null)
        {
            if (!IsDeclared) throw new CallFailed("Models call others where they declare calls = [\"OTHER\"].");
            string media;
            byte[] body;
            try
            {
                body = DotnetRunner.Answer(inputs, out media);
            }
            catch (DotnetRunner.Fault fault)
            {
                throw new ArgumentException(fault.Message.Replace("The answer", "The input"));
            }
            DotnetRunner.Frame answer = AnswerTo(OpenCall(target, contentType ?? media, body));
            Dictionary<string, object> header = answer.Header;
            if ((string)header["type"] == "RETURN")
            {
                return DotnetRunner.Inputs((string)header["content_type"], answer.Body);
            }
            throw new CallFailed(
                (string)header["detail"], (string)header["code"], Convert.ToInt32(header["status"]));
        }

        /// <summary>The same as a task, so that several are open at once.</summary>
        public static Task<object> CallAsync(string target, object inputs = null, string contentType = null)
        {
            return Task.Run(() => Call(target, inputs, contentType));
        }

        /// <summary>The next request, for the runner's loop.</summary>
        internal static DotnetRunner.Frame Receive()
        {
            lock (State)
            {
                while (Requests.Count == 0) Monitor.Wait(State);
                DotnetRunner.Frame frame = Requests.Dequeue();
                object limits;
                if (frame.Header.TryGetValue("calls", out limits))
                {
                    var found = (Dictionary<string, object>)limits;
                    parallelMax = (long)found["parallel_max"];
                    bodyBytesMax = (long)found["body_bytes_max"];
                    request = (string)frame.Header["id"];
                }
                return frame;
            }
        }

        /// <summary>Answer a request; after that nothing is called for it any more.</summary>
        internal static void Answer(string header, byte[] body)
        {
            lock (Sending)
            {
                lock (State)
                {
                    request = "";
                    foreach (Waiting one in Open.Values) one.Answer = one.Answer ?? Gone();
                    Open.Clear();
                    Monitor.PulseAll(State);
                }
                DotnetRunner.WriteFrame(header, body);
            }
        }

        static DotnetRunner.Frame Gone()
        {
            var header = new Dictionary<string, object>
            {
                { "type", "ERR" }, { "code", "" }, { "status", 0 }, { "detail", "The request was answered." }
            };
            return new DotnetRunner.Frame { Header = header, Body = new byte[0] };
        }

        /// <summary>Send a CALL, once few enough are open.</summary>
        static Waiting OpenCall(string target, string media, byte[] body)
        {
            var waiting = new Waiting();
            string id, mine;
            lock (State)
            {
                mine = request;
                if (mine == "") throw new CallFailed("Models are called while a request is answered only.");
                if (body.Length > bodyBytesMax)
                {
                    throw new CallFailed("The body is over " + bodyBytesMax + " bytes.", "too-large", 413);
                }
                while (request == mine && Open.Count >= parallelMax) Monitor.Wait(State);
                if (request != mine) throw new CallFailed("The request this call was for has been answered.");
                id = "c" + ++count;
                Open[id] = waiting;
            }
            string header = "{\"type\":\"CALL\",\"id\":\"" + id + "\",\"req\":" + DotnetRunner.Json.Quoted(mine)
                + ",\"target\":" + DotnetRunner.Json.Quoted(Shortened(target, 140))
                + ",\"content_type\":" + DotnetRunner.Json.Quoted(Shortened(media, 256)) + "}";
            lock (Sending)
            {
                bool isOpen;
                lock (State) isOpen = Open.ContainsKey(id);
                if (isOpen) DotnetRunner.WriteFrame(header, body);
            }
            return waiting;
        }

        static string Shortened(string text, int size)
        {
            return text.Length <= size ? text : text.Substring(0, size);
        }

        static DotnetRunner.Frame AnswerTo(Waiting waiting)
        {
            lock (State)
            {
                while (waiting.Answer == null) Monitor.Wait(State);
                return waiting.Answer;
            }
        }

        /// <summary>Read every frame: an answer goes to its call, all else to the runner's loop.</summary>
        static void Sort()
        {
            while (true)
            {
                DotnetRunner.Frame frame = DotnetRunner.Read();
                var kind = (string)frame.Header["type"];
                lock (State)
                {
                    if (kind != "RETURN" && kind != "ERR") Requests.Enqueue(frame);
                    else
                    {
                        var id = (string)frame.Header["id"];
                        Waiting waiting;
                        if (Open.TryGetValue(id, out waiting)) waiting.Answer = frame;
                        Open.Remove(id);
                    }
                    Monitor.PulseAll(State);
                }
            }
        }
    }
}
