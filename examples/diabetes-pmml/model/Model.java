import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jpmml.evaluator.Evaluator;
import org.jpmml.evaluator.EvaluatorUtil;
import org.jpmml.evaluator.InputField;
import org.jpmml.evaluator.LoadingModelEvaluatorBuilder;

/** Any PMML file: rows of named values in, what the file calls its targets and outputs out. */
public class Model {
    private final Evaluator evaluator;

    public Model(String path) throws Exception {
        evaluator = new LoadingModelEvaluatorBuilder().load(Path.of(path, "model.pmml").toFile()).build();
        evaluator.verify(); // the rows that the file itself brings as a proof, with their answers
    }

    public Object predict(Object inputs) {
        List<Object> found = new ArrayList<>();
        for (Object row : (List<?>) ((Map<?, ?>) inputs).get("rows")) found.add(scored((Map<?, ?>) row));
        return Map.of("predictions", found);
    }

    private Map<String, ?> scored(Map<?, ?> row) {
        Map<String, Object> arguments = new LinkedHashMap<>();
        for (InputField field : evaluator.getInputFields()) {
            if (!row.containsKey(field.getName())) {
                throw new IllegalArgumentException("a row has no '" + field.getName() + "'");
            }
            arguments.put(field.getName(), field.prepare(row.get(field.getName())));
        }
        return EvaluatorUtil.decodeAll(evaluator.evaluate(arguments));
    }
}
