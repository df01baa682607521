package appliance;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.LinkedBlockingQueue;

/**
 * Calls of other models of the same tenant, for Java models whose manifest declares {@code calls}.
 *
 * <p>Owns: CALL, RETURN and ERR of PROTOCOL.md for Java; the standard library only. It is compiled
 * together with the model and JavaRunner.java. Never: is trusted; decides nothing: the appliance does.
 *
 * <pre>{@code
 * Object scaled = appliance.Models.call("iris-scaler", inputs);
 * Object answer = appliance.Models.call("iris-classifier@live", scaled);
 * }</pre>
 *
 * <p>Any thread may call while a request is being answered. The connection is read and written by two
 * threads of its own: a model's may be interrupted, which would close it.
 */
public final class Models {
    private static Models only;

    private final Way way;
    private final LinkedBlockingQueue<Frame> requests = new LinkedBlockingQueue<>();
    private final LinkedBlockingQueue<Sent> outgoing = new LinkedBlockingQueue<>();
    private final Map<String, Frame> open = new HashMap<>(); // each CALL, NONE until its answer came
    private String request = "";
    private long parallelMax;
    private long bodyBytesMax;
    private long count;

    /** A frame that came. */
    public record Frame(Map<?, ?> header, byte[] body) {}

    /** A body and what it is. */
    public record Content(String contentType, byte[] body) {}

    private record Sent(String header, byte[] body) {}

    private static final Frame NONE = new Frame(Map.of(), new byte[0]);
    private static final Frame UNWANTED = new Frame(Map.of(), new byte[0]); // its thread was interrupted

    /** How frames and values travel: the runner's part. */
    public interface Way {
        /** The next frame. */
        Frame read() throws IOException;

        /** Send a frame whole; the header is a JSON text. */
        void write(String header, byte[] body) throws IOException;

        /** The JSON text of a value. */
        String json(Object value) throws Exception;

        /** A value as a body. */
        Content content(Object value) throws Exception;

        /** A body as a value. */
        Object value(String contentType, byte[] body) throws Exception;
    }

    /** A call was refused or failed: {@code code} is the problem, {@code status} its HTTP status. */
    public static final class CallFailed extends RuntimeException {
        private static final long serialVersionUID = 1;
        public final String code;
        public final int status;

        CallFailed(String detail, String code, int status) {
            super(detail);
            this.code = code;
            this.status = status;
        }

        CallFailed(String detail) {
            this(detail, "", 0);
        }
    }

    /**
     * The answer of another model of the same tenant.
     *
     * @param target NAME, NAME:VERSION or NAME@ALIAS, declared in {@code calls}
     * @param inputs text, bytes, or anything that can be JSON
     */
    public static Object call(String target, Object inputs) {
        return call(target, inputs, "");
    }

    /** The same; {@code contentType} says what the inputs are, where it is not what they would be. */
    public static Object call(String target, Object inputs, String contentType) {
        if (only == null) throw new CallFailed("Models call others where they declare calls = [\"OTHER\"].");
        Frame answer;
        try {
            Content content = only.way.content(inputs);
            String media = contentType.isEmpty() ? content.contentType : contentType;
            answer = only.answerTo(only.opened(target, media, content.body));
            if ("RETURN".equals(answer.header.get("type"))) {
                return only.way.value(String.valueOf(answer.header.get("content_type")), answer.body);
            }
        } catch (CallFailed failed) {
            throw failed;
        } catch (InterruptedException interrupted) {
            Thread.currentThread().interrupt();
            throw new CallFailed("The thread was interrupted while it waited.");
        } catch (Exception wrong) {
            throw new IllegalArgumentException(wrong.getMessage().replace("The answer", "The input"), wrong);
        }
        Object status = answer.header.get("status");
        throw new CallFailed(
                String.valueOf(answer.header.get("detail")),
                String.valueOf(answer.header.get("code")),
                status instanceof Long number ? number.intValue() : 0);
    }

    /** Called by the runner, once: calls travel over its connection. */
    public static Models over(Way way) {
        only = new Models(way);
        only.start("appliance-reader", only::sort);
        only.start("appliance-writer", only::deliver);
        return only;
    }

    private Models(Way way) {
        this.way = way;
    }

    /** The next request, for the runner's loop. */
    public Frame receive() throws InterruptedException {
        Frame frame = requests.take();
        if (frame.header.get("calls") instanceof Map<?, ?> limits) {
            synchronized (this) {
                parallelMax = (Long) limits.get("parallel_max");
                bodyBytesMax = (Long) limits.get("body_bytes_max");
                request = String.valueOf(frame.header.get("id"));
            }
        }
        return frame;
    }

    /** Answer a request; after that nothing is called for it any more. */
    public synchronized void answer(String header, byte[] body) {
        request = "";
        Map<String, Object> gone = new LinkedHashMap<>();
        gone.put("type", "ERR");
        gone.put("code", "");
        gone.put("detail", "The request was answered.");
        open.values().removeIf(frame -> frame == UNWANTED);
        open.replaceAll((id, frame) -> frame == NONE ? new Frame(gone, NONE.body) : frame);
        outgoing.add(new Sent(header, body));
        notifyAll();
    }

    private synchronized String opened(String target, String media, byte[] body) throws Exception {
        String mine = request;
        if (mine.isEmpty()) throw new CallFailed("Models are called while a request is answered only.");
        if (body.length > bodyBytesMax) {
            throw new CallFailed("The body is over " + bodyBytesMax + " bytes.", "too-large", 413);
        }
        while (request.equals(mine) && open.size() >= parallelMax) wait();
        if (!request.equals(mine)) throw new CallFailed("The request this call was for has been answered.");
        Map<String, Object> header = new LinkedHashMap<>();
        String id = "c" + ++count;
        header.put("type", "CALL");
        header.put("id", id);
        header.put("req", mine);
        header.put("target", target.substring(0, Math.min(140, target.length())));
        header.put("content_type", media.substring(0, Math.min(256, media.length())));
        outgoing.add(new Sent(way.json(header), body));
        open.put(id, NONE);
        return id;
    }

    private synchronized Frame answerTo(String id) throws InterruptedException {
        try {
            while (open.get(id) == NONE) wait();
        } catch (InterruptedException interrupted) {
            open.replace(id, NONE, UNWANTED); // it stays open at the appliance too
            throw interrupted;
        }
        Frame answer = open.remove(id);
        notifyAll();
        return answer;
    }

    /** Read every frame: an answer goes to its call, all else to the runner's loop. */
    private void sort() throws IOException {
        while (true) {
            Frame frame = way.read();
            Object type = frame.header.get("type");
            if (!"RETURN".equals(type) && !"ERR".equals(type)) {
                requests.add(frame);
                continue;
            }
            synchronized (this) {
                open.computeIfPresent(
                        String.valueOf(frame.header.get("id")), (id, had) -> had == NONE ? frame : had == UNWANTED ? null : had);
                notifyAll();
            }
        }
    }

    private void deliver() throws Exception {
        while (true) {
            Sent frame = outgoing.take();
            way.write(frame.header, frame.body);
        }
    }

    private interface Work {
        void run() throws Exception;
    }

    /** A thread whose end is the end of the process: nothing could be answered without it. */
    private void start(String name, Work work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Throwable error) {
                System.err.println(error);
                Runtime.getRuntime().halt(70);
            }
        }, name);
        thread.setDaemon(true);
        thread.start();
    }
}
