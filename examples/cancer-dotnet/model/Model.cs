using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;

namespace Tumours
{
    /// <summary>A support vector machine: fitted elsewhere, applied here.</summary>
    public class Model
    {
        readonly Scaler scaler;
        readonly Machine machine;
        readonly string[] classes;

        public Model(string path)
        {
            using (var lines = new Numbers(Path.Combine(path, "machine.txt")))
            {
                classes = lines.Words();
                scaler = new Scaler(lines.Row(), lines.Row());
                machine = new Machine(lines);
            }
        }

        public object Predict(object inputs)
        {
            var rows = (List<object>)((Dictionary<string, object>)inputs)["rows"];
            double[] margins = rows.Select(row => machine.Margin(scaler.Scaled(Row(row)))).ToArray();
            return new { margins, classes = margins.Select(margin => classes[margin > 0 ? 1 : 0]) };
        }

        double[] Row(object given)
        {
            double[] row = ((List<object>)given).Select(Convert.ToDouble).ToArray();
            if (row.Length == scaler.Size) return row;
            throw new ArgumentException("a row has " + scaler.Size + " numbers");
        }
    }
}
