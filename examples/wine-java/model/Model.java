import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Scanner;

/** A random forest: trees grown elsewhere, walked here. */
public class Model {
    /** A node; {@code left} is -1 in a leaf, which has the shares of the classes. */
    private record Node(int left, int right, int feature, double threshold, double[] shares) {}

    private final List<Node[]> trees = new ArrayList<>();
    private final int features;
    private final int classes;

    public Model(String path) throws IOException {
        try (Scanner in = new Scanner(Files.newBufferedReader(Path.of(path, "forest.txt")))) {
            int count = in.nextInt();
            features = in.nextInt();
            classes = in.nextInt();
            for (int n = 0; n < count; n++) trees.add(tree(in));
        }
    }

    private Node[] tree(Scanner in) {
        Node[] nodes = new Node[in.nextInt()];
        for (int n = 0; n < nodes.length; n++) {
            int left = in.nextInt();
            int right = in.nextInt();
            int feature = in.nextInt();
            double threshold = Double.parseDouble(in.next());
            double[] shares = new double[classes];
            for (int k = 0; k < classes; k++) shares[k] = Double.parseDouble(in.next());
            nodes[n] = new Node(left, right, feature, threshold, shares);
        }
        return nodes;
    }

    public Object predict(Object inputs) {
        List<double[]> found = new ArrayList<>();
        for (Object row : (List<?>) ((Map<?, ?>) inputs).get("rows")) {
            found.add(probabilities((List<?>) row));
        }
        return Map.of("probabilities", found);
    }

    private double[] probabilities(List<?> row) {
        if (row.size() != features) throw new IllegalArgumentException("a row has " + features + " numbers");
        double[] total = new double[classes];
        for (Node[] tree : trees) {
            Node at = tree[0];
            while (at.left() >= 0) {
                // The trees were grown on single precision numbers.
                float value = ((Number) row.get(at.feature())).floatValue();
                at = tree[value <= at.threshold() ? at.left() : at.right()];
            }
            for (int k = 0; k < classes; k++) total[k] += at.shares()[k] / trees.size();
        }
        return total;
    }
}
