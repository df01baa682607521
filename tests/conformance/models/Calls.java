import appliance.Models;
import appliance.Models.CallFailed;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.Supplier;

/** The conformance model that calls: text is a command. */
public class Calls {
    private final String early;
    private Future<String> left;

    public Calls(String path) {
        early = message(() -> Models.call("echo", 1));
    }

    public Object predict(Object inputs) throws Exception {
        String[] words = ((String) inputs).split(" ", 2);
        String rest = words.length > 1 ? words[1] : "";
        switch (words[0]) {
            case "early": return early;
            case "text": return Models.call("echo:3", rest);
            case "values": return Models.call("echo", Map.of("a", Arrays.asList(1, 2.5, null, true), "b", Map.of("c", "ü")));
            case "bytes":
                byte[] all = new byte[256];
                for (int n = 0; n < 256; n++) all[n] = (byte) n;
                return Models.call("echo@live", all);
            case "typed": return Models.call("echo", rest, "application/json");
            case "refused": return told(() -> Models.call(rest, 1));
            case "through": return Models.call(rest, 1);
            case "large": return told(() -> Models.call("echo", "x".repeat(Integer.parseInt(rest))));
            case "many": return many(Integer.parseInt(rest));
            case "impatient":
                ExecutorService one = Executors.newSingleThreadExecutor();
                Future<Object> slow = one.submit(() -> Models.call("slow", 1));
                Models.call("second", 1);
                slow.cancel(true); // interrupts it
                one.shutdown();
                return Models.call("echo", "went on");
            case "leave":
                ExecutorService other = Executors.newSingleThreadExecutor();
                left = other.submit(() -> message(() -> Models.call("slow", 1)));
                other.shutdown();
                Models.call("second", 1);
                return "done";
            default: return left.get();
        }
    }

    private static List<Object> many(int count) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(8);
        List<Future<Object>> calls = new ArrayList<>();
        for (int n = 0; n < count; n++) {
            int number = n;
            calls.add(threads.submit(() -> Models.call("echo", number)));
        }
        List<Object> found = new ArrayList<>();
        for (Future<Object> call : calls) found.add(call.get());
        threads.shutdown();
        return found;
    }

    private static String message(Supplier<Object> work) {
        try {
            return String.valueOf(work.get());
        } catch (CallFailed error) {
            return error.getMessage();
        }
    }

    private static Object told(Supplier<Object> work) {
        try {
            return work.get();
        } catch (CallFailed error) {
            return error.code + " " + error.status + " " + error.getMessage();
        }
    }
}
