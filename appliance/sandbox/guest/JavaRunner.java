import appliance.Models;
import java.io.IOException;
import java.io.InputStream;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.lang.reflect.Array;
import java.lang.reflect.InvocationTargetException;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.nio.CharBuffer;
import java.nio.channels.SocketChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * The Java runner: the process inside a sandbox that loads one model and answers its calls.
 *
 * <p>Owns: the guest half of PROTOCOL.md for Java; the standard library only. It is compiled together
 * with Models.java (calls of other models) and the model (java_build.sh); native_runner.pl unpacks the artifact and becomes this
 * program, whose standard input is the connection. Never: is trusted; model code shares the process.
 *
 * <p>A model: {@code entry = "Model.java:Model"}, a class with a constructor of the folder's path (a
 * String) and a method {@code Object predict(Object)}. Inputs: JSON as Map, List, String, Long,
 * Double, Boolean and null; text as a String; anything else as byte[]. Answers likewise.
 */
public final class JavaRunner {
    private static final int PIECE = 64 * 1024;
    private static SocketChannel link;
    private static MethodHandle predict;
    private static Models models; // where the manifest declares calls

    private JavaRunner() {}

    /** Something to report as ERR. */
    private static final class Fault extends Exception {
        final String kind;

        Fault(String kind, String detail) {
            super(detail);
            this.kind = kind;
        }
    }

    /** How calls of other models travel. */
    private static final class Way implements Models.Way {
        @Override
        public Models.Frame read() throws IOException {
            return JavaRunner.read();
        }

        @Override
        public void write(String header, byte[] body) throws IOException {
            JavaRunner.write(header, body);
        }

        @Override
        public String json(Object value) throws Exception {
            return Json.text(value);
        }

        @Override
        public Models.Content content(Object value) throws Exception {
            return answer(value);
        }

        @Override
        public Object value(String contentType, byte[] body) throws Exception {
            return inputs(contentType, body);
        }
    }

    public static void main(String[] arguments) throws Exception {
        link = (SocketChannel) System.inheritedChannel();
        System.setIn(InputStream.nullInputStream());
        long started = System.nanoTime();
        useProxy(System.getenv("HTTP_PROXY"));
        if (System.getenv("APPLIANCE_CALLS") != null) models = Models.over(new Way());
        try {
            predict = load(System.getenv("APPLIANCE_ENTRY"), System.getenv("APPLIANCE_PATH"));
            System.out.flush();
            send("{\"type\":\"READY\",\"compute_us\":" + since(started) + "}", new byte[0]);
        } catch (Throwable error) {
            report("", error);
        }
        while (true) serveOne();
    }

    // Java reads no environment for this, only its own properties.
    private static void useProxy(String address) {
        if (address == null || address.isEmpty()) return;
        java.net.URI proxy = java.net.URI.create(address);
        for (String kind : new String[] {"http", "https"}) {
            System.setProperty(kind + ".proxyHost", proxy.getHost());
            System.setProperty(kind + ".proxyPort", String.valueOf(proxy.getPort()));
        }
        System.setProperty("http.nonProxyHosts", "localhost|127.0.0.1|[::1]");
    }

    private static void serveOne() throws Exception {
        Models.Frame frame = models == null ? read() : models.receive();
        String id = (String) frame.header().get("id");
        try {
            long started = System.nanoTime();
            Object inputs = inputs((String) frame.header().get("content_type"), frame.body());
            Models.Content answer = answer((Object) predict.invoke(inputs));
            System.out.flush();
            String kind = quoted(answer.contentType());
            send("{\"type\":\"RES\",\"id\":" + quoted(id) + ",\"content_type\":" + kind
                    + ",\"compute_us\":" + since(started) + "}", answer.body());
        } catch (Throwable error) {
            report(id, error);
        }
    }

    private static long since(long started) {
        return (System.nanoTime() - started) / 1000;
    }

    /** The method that answers calls, bound to a new instance of the entry's class. */
    private static MethodHandle load(String entry, String path) throws Throwable {
        String name = entry.substring(entry.lastIndexOf(':') + 1);
        Class<?> type;
        try {
            type = Class.forName(name);
        } catch (ClassNotFoundException error) {
            throw new Fault("entry", "The artifact has no class '" + name + "'.");
        }
        Object model;
        try {
            model = type.getConstructor(String.class).newInstance(path);
            MethodType wanted = MethodType.methodType(Object.class, Object.class);
            return MethodHandles.publicLookup().findVirtual(type, "predict", wanted).bindTo(model);
        } catch (NoSuchMethodException error) {
            throw new Fault("entry", "'" + entry + "' needs a public constructor (String path) and a "
                    + "public method Object predict(Object inputs): " + error.getMessage());
        } catch (IllegalAccessException error) {
            throw new Fault("entry", "'" + entry + "' is not public.");
        } catch (InvocationTargetException error) {
            throw error.getCause();
        }
    }

    // ------------------------------------------------------------ frames

    private static byte[] receive(int size) throws IOException {
        byte[] data = new byte[size];
        for (int at = 0; at < size;) {
            int got = link.read(ByteBuffer.wrap(data, at, Math.min(PIECE, size - at)));
            if (got < 0) Runtime.getRuntime().halt(0); // the appliance is gone
            at += got;
        }
        return data;
    }

    /** One frame; a body there is no memory for ends the process with the words for it. */
    private static Models.Frame read() throws IOException {
        try {
            ByteBuffer prefix = ByteBuffer.wrap(receive(12));
            String header = new String(receive(prefix.getInt()), StandardCharsets.UTF_8);
            Map<?, ?> members = (Map<?, ?>) new Json(header).document();
            return new Models.Frame(members, receive(Math.toIntExact(prefix.getLong())));
        } catch (OutOfMemoryError | ArithmeticException error) {
            System.err.println("java.lang.OutOfMemoryError: " + error.getMessage());
            Runtime.getRuntime().halt(1);
            throw error;
        }
    }

    private static void send(String header, byte[] body) throws IOException {
        if (models == null) write(header, body);
        else models.answer(header, body);
    }

    private static void write(String header, byte[] body) throws IOException {
        byte[] text = header.getBytes(StandardCharsets.UTF_8);
        ByteBuffer prefix = ByteBuffer.allocate(12 + text.length);
        prefix.putInt(text.length).putLong(body.length).put(text).flip();
        while (prefix.hasRemaining()) link.write(prefix);
        for (int at = 0; at < body.length;) {
            at += link.write(ByteBuffer.wrap(body, at, Math.min(PIECE, body.length - at)));
        }
    }

    /** Send ERR; its trace holds the model's own lines. */
    private static void report(String id, Throwable error) throws IOException {
        System.out.flush();
        String kind = "raised";
        String detail = "";
        String missing = "";
        List<Object> trace = new ArrayList<>();
        try {
            detail = String.valueOf(error);
            if (error instanceof Fault fault) {
                kind = fault.kind;
                detail = fault.getMessage();
            } else if (error instanceof OutOfMemoryError) {
                kind = "memory";
            } else {
                missing = missing(error);
                if (!missing.isEmpty()) kind = "import";
                trace.add(shortened(detail, 500));
                for (StackTraceElement frame : error.getStackTrace()) {
                    if (frame.getClassName().startsWith("JavaRunner") || trace.size() > 30) break;
                    trace.add(shortened("    at " + frame, 200));
                }
            }
            send("{\"type\":\"ERR\",\"id\":" + quoted(id) + ",\"kind\":\"" + kind + "\",\"detail\":"
                    + quoted(shortened(detail, 1000)) + ",\"missing\":" + quoted(shortened(missing, 200))
                    + ",\"trace\":" + Json.text(trace) + "}", new byte[0]);
        } catch (Fault | RuntimeException | Error second) {
            send("{\"type\":\"ERR\",\"id\":" + quoted(id) + ",\"kind\":\"" + kind + "\",\"detail\":"
                    + "\"something that cannot be shown was thrown\"}", new byte[0]);
        }
    }

    /** The class or shared library that was not found, or nothing. */
    private static String missing(Throwable error) {
        for (Throwable at = error; at != null; at = at.getCause()) {
            String message = String.valueOf(at.getMessage());
            boolean isFirstTime = !message.startsWith("Could not initialize");
            if (at instanceof NoClassDefFoundError && isFirstTime) return message.replace('/', '.');
            if (at instanceof ClassNotFoundException) return message;
            if (at instanceof UnsatisfiedLinkError && message.startsWith("no ")) {
                return System.mapLibraryName(message.split(" ")[1]);
            }
        }
        return "";
    }

    private static String shortened(String text, int size) {
        return text == null ? "" : text.length() <= size ? text : text.substring(0, size);
    }

    private static String quoted(String text) {
        StringBuilder out = new StringBuilder();
        Json.quote(out, text);
        return out.toString();
    }

    // ------------------------------------------------------------ values

    private static Object inputs(String contentType, byte[] body) throws Fault {
        String media = contentType.split(";", 2)[0].trim().toLowerCase(Locale.ROOT);
        boolean isJson = media.equals("application/json") || media.endsWith("+json");
        if (!isJson && !media.startsWith("text/")) return body;
        try {
            CharBuffer text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(body));
            return isJson ? new Json(text.toString()).document() : text.toString();
        } catch (CharacterCodingException error) {
            throw new Fault("input", "The body is not valid " + media + ": not UTF-8.");
        } catch (IllegalArgumentException | StackOverflowError error) {
            throw new Fault("input", "The body is not valid " + media + ": " + error.getMessage() + ".");
        }
    }

    private static Models.Content answer(Object value) throws Fault {
        if (value instanceof byte[] data) return new Models.Content("application/octet-stream", data);
        if (value instanceof CharSequence text) {
            byte[] data = text.toString().getBytes(StandardCharsets.UTF_8);
            return new Models.Content("text/plain; charset=utf-8", data);
        }
        try {
            return new Models.Content("application/json", Json.text(value).getBytes(StandardCharsets.UTF_8));
        } catch (StackOverflowError error) {
            throw new Fault("unsupported", "The answer cannot be sent: it is nested too deep.");
        }
    }

    /** JSON (RFC 8259), both ways. */
    private static final class Json {
        private final String text;
        private int at;

        Json(String text) {
            this.text = text;
        }

        Object document() {
            Object value = value();
            space();
            if (at < text.length()) throw wrong("text after the value");
            return value;
        }

        private IllegalArgumentException wrong(String what) {
            return new IllegalArgumentException(what + " at character " + at);
        }

        private void space() {
            while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) at++;
        }

        private boolean next(char wanted) {
            space();
            if (at >= text.length() || text.charAt(at) != wanted) return false;
            at++;
            return true;
        }

        private Object value() {
            space();
            if (at >= text.length()) throw wrong("the end");
            char first = text.charAt(at);
            if (first == '{') return object();
            if (first == '[') return array();
            if (first == '"') return string();
            if (text.startsWith("true", at)) return word(4, Boolean.TRUE);
            if (text.startsWith("false", at)) return word(5, Boolean.FALSE);
            if (text.startsWith("null", at)) return word(4, null);
            return number();
        }

        private Object word(int size, Object value) {
            at += size;
            return value;
        }

        private Object object() {
            Map<String, Object> found = new LinkedHashMap<>();
            at++;
            if (next('}')) return found;
            do {
                space();
                if (at >= text.length() || text.charAt(at) != '"') throw wrong("no member name");
                String key = string();
                if (!next(':')) throw wrong("no colon");
                found.put(key, value());
            } while (next(','));
            if (!next('}')) throw wrong("an object without end");
            return found;
        }

        private Object array() {
            List<Object> found = new ArrayList<>();
            at++;
            if (next(']')) return found;
            do found.add(value()); while (next(','));
            if (!next(']')) throw wrong("an array without end");
            return found;
        }

        private String string() {
            StringBuilder out = new StringBuilder();
            for (at++; at < text.length(); at++) {
                char letter = text.charAt(at);
                if (letter == '"') {
                    at++;
                    return out.toString();
                }
                if (letter < 0x20) throw wrong("a control character");
                out.append(letter == '\\' ? escaped() : letter);
            }
            throw wrong("a string without end");
        }

        private char escaped() {
            at++;
            char letter = at < text.length() ? text.charAt(at) : ' ';
            if (letter == 'u' && at + 4 < text.length()) {
                at += 4;
                return (char) Integer.parseInt(text.substring(at - 3, at + 1), 16);
            }
            int known = "\"\\/bfnrt".indexOf(letter);
            if (known < 0) throw wrong("an unknown escape");
            return "\"\\/\b\f\n\r\t".charAt(known);
        }

        private Object number() {
            int start = at;
            while (at < text.length() && "+-.eE0123456789".indexOf(text.charAt(at)) >= 0) at++;
            String digits = text.substring(start, at);
            if (!digits.matches("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]+)?")) {
                at = start;
                throw wrong("no JSON value");
            }
            if (digits.matches("-?[0-9]+")) {
                if (digits.length() < 19) return Long.valueOf(digits);
                return new BigInteger(digits);
            }
            return Double.valueOf(digits);
        }

        static String text(Object value) throws Fault {
            StringBuilder out = new StringBuilder();
            write(out, value);
            return out.toString();
        }

        static void write(StringBuilder out, Object value) throws Fault {
            if (value == null || value instanceof Boolean) {
                out.append(value);
            } else if (value instanceof Number number) {
                boolean isLost = value instanceof Double || value instanceof Float;
                boolean isFinite = !isLost || Double.isFinite(number.doubleValue());
                out.append(isFinite ? value.toString() : "null");
            } else if (value instanceof CharSequence || value instanceof Enum || value instanceof Character) {
                quote(out, value.toString());
            } else if (value instanceof Map<?, ?> map) {
                char before = '{';
                for (Map.Entry<?, ?> member : map.entrySet()) {
                    quote(out.append(before), String.valueOf(member.getKey()));
                    write(out.append(':'), member.getValue());
                    before = ',';
                }
                out.append(map.isEmpty() ? "{}" : "}");
            } else if (value instanceof Iterable<?> members) {
                out.append('[');
                int count = 0;
                for (Object member : members) write(count++ == 0 ? out : out.append(','), member);
                out.append(']');
            } else if (value.getClass().isArray()) {
                out.append('[');
                for (int n = 0; n < Array.getLength(value); n++) {
                    write(n == 0 ? out : out.append(','), Array.get(value, n));
                }
                out.append(']');
            } else {
                String what = value.getClass().getName();
                throw new Fault("unsupported", "The answer cannot be sent: it holds a " + what + ".");
            }
        }

        static void quote(StringBuilder out, String text) {
            out.append('"');
            for (int n = 0; n < text.length(); n++) {
                char letter = text.charAt(n);
                boolean isAlone = Character.isSurrogate(letter) && !isPaired(text, n);
                if (letter == '"' || letter == '\\') out.append('\\').append(letter);
                else if (letter < 0x20) out.append(String.format("\\u%04x", (int) letter));
                else out.append(isAlone ? '?' : letter);
            }
            out.append('"');
        }

        private static boolean isPaired(String text, int n) {
            if (Character.isHighSurrogate(text.charAt(n))) {
                return n + 1 < text.length() && Character.isLowSurrogate(text.charAt(n + 1));
            }
            return n > 0 && Character.isHighSurrogate(text.charAt(n - 1));
        }
    }
}
