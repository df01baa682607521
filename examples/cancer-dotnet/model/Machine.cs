using System;
using System.Globalization;
using System.IO;
using System.Linq;

namespace Tumours
{
    /// <summary>Measurements brought to mean 0 and deviation 1.</summary>
    sealed class Scaler
    {
        readonly double[] means, deviations;

        public Scaler(double[] means, double[] deviations)
        {
            this.means = means;
            this.deviations = deviations;
        }

        public int Size
        {
            get { return means.Length; }
        }

        public double[] Scaled(double[] row)
        {
            return row.Select((value, n) => (value - means[n]) / deviations[n]).ToArray();
        }
    }

    /// <summary>Support vectors under a Gaussian kernel.</summary>
    sealed class Machine
    {
        readonly double gamma, offset;
        readonly double[] weights;
        readonly double[][] vectors;

        public Machine(Numbers lines)
        {
            double[] head = lines.Row();
            gamma = head[0];
            offset = head[1];
            weights = lines.Row();
            vectors = weights.Select(_ => lines.Row()).ToArray();
        }

        public double Margin(double[] row)
        {
            double sum = offset;
            for (int n = 0; n < vectors.Length; n++)
            {
                double distance = 0;
                for (int k = 0; k < row.Length; k++)
                {
                    double apart = row[k] - vectors[n][k];
                    distance += apart * apart;
                }
                sum += weights[n] * Math.Exp(-gamma * distance);
            }
            return sum;
        }
    }

    /// <summary>A text file of numbers, one row a line.</summary>
    sealed class Numbers : IDisposable
    {
        readonly StreamReader file;

        public Numbers(string path)
        {
            file = new StreamReader(path);
        }

        public string[] Words()
        {
            return file.ReadLine().Split(' ');
        }

        public double[] Row()
        {
            return Words().Select(word => double.Parse(word, CultureInfo.InvariantCulture)).ToArray();
        }

        public void Dispose()
        {
            file.Dispose();
        }
    }
}
