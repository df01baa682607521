import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;

/** The conformance model: text is a command, anything else comes back. */
public class Model {
    private final List<byte[]> held = new ArrayList<>();

    public Model(String path) {}

    public Object predict(Object inputs) throws Exception {
        if (inputs instanceof byte[] data) {
            byte[] back = new byte[data.length];
            for (int at = 0; at < data.length; at++) back[at] = data[data.length - 1 - at];
            return back;
        }
        if (!(inputs instanceof String text)) return inputs;
        String[] words = text.split(" ", 2);
        String rest = words.length > 1 ? words[1] : "";
        switch (words[0]) {
            case "raise": throw new IllegalArgumentException("as asked");
            case "exit": Runtime.getRuntime().halt(Integer.parseInt(rest));
            case "spin": for (long n = 0; ; n++) if (n < 0) return n;
            case "print": System.out.println(rest); return "printed";
            case "noise":
                for (int n = 0; n < 2000; n++) System.out.println("x".repeat(1000));
                return "done";
            case "nan": return Arrays.asList(Double.NaN, Map.of("x", 1 / 0.0), 1.5);
            case "eat": while (true) held.add(new byte[1 << 20]);
            case "read": return Files.readString(Path.of(rest));
            case "run":
                Process process = new ProcessBuilder("/bin/sh", "-c", rest).start();
                return new String(process.getInputStream().readAllBytes());
            case "unsendable": return new Object();
            default: return inputs;
        }
    }
}
