#include <appliance.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <vector>

using Row = std::vector<double>;

struct Layer {
  std::vector<Row> weights;  // [output][input]
  Row biases;
};

// A feed-forward network: weights fitted elsewhere, applied here. Hidden layers are rectified, the
// last one goes through softmax.
class Model {
 public:
  explicit Model(const std::string& path) {
    std::ifstream file(path + "/weights.txt");
    std::size_t layers = 0;
    file >> layers;
    for (std::size_t n = 0; n < layers; ++n) {
      std::size_t outputs = 0, inputs = 0;
      file >> outputs >> inputs;
      Layer layer{std::vector<Row>(outputs, Row(inputs)), Row(outputs)};
      for (auto& row : layer.weights) {
        for (auto& weight : row) file >> weight;
      }
      for (auto& bias : layer.biases) file >> bias;
      layers_.push_back(std::move(layer));
    }
    if (!file || layers_.empty()) throw std::runtime_error("weights.txt is damaged");
  }

  // text/csv in, one image of 64 numbers a line; JSON out.
  appliance::Reply predict(const appliance::Request& request) {
    std::string out = "{\"probabilities\":[";
    std::string_view rest = request.body;
    while (!rest.empty()) {
      const auto end = std::min(rest.find('\n'), rest.size());
      const auto line = std::string(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
      if (line.empty()) continue;
      if (out.back() == ']') out += ',';
      append(out, probabilities(row_from_line(line)));
    }
    return appliance::json(out + "]}");
  }

 private:
  Row row_from_line(const std::string& line) const {
    Row row;
    for (const char* at = line.c_str(); *at != '\0';) {
      char* end = nullptr;
      row.push_back(std::strtod(at, &end));
      if (end == at) throw std::invalid_argument("not a number: " + std::string(at).substr(0, 20));
      at = *end == ',' ? end + 1 : end;
      if (*end == '\r') break;
    }
    const auto wanted = layers_.front().weights.front().size();
    if (row.size() != wanted) {
      throw std::invalid_argument("a line has " + std::to_string(wanted) + " numbers");
    }
    return row;
  }

  Row probabilities(Row values) const {
    for (std::size_t n = 0; n < layers_.size(); ++n) {
      const auto& layer = layers_[n];
      Row next = layer.biases;
      for (std::size_t to = 0; to < next.size(); ++to) {
        for (std::size_t from = 0; from < values.size(); ++from) {
          next[to] += layer.weights[to][from] * values[from];
        }
        if (n + 1 < layers_.size()) next[to] = std::max(next[to], 0.0);
      }
      values = std::move(next);
    }
    const double largest = *std::max_element(values.begin(), values.end());
    double total = 0;
    for (auto& value : values) total += value = std::exp(value - largest);
    for (auto& value : values) value /= total;
    return values;
  }

  static void append(std::string& out, const Row& row) {
    char text[32];
    out += '[';
    for (std::size_t n = 0; n < row.size(); ++n) {
      std::snprintf(text, sizeof text, n == 0 ? "%.17g" : ",%.17g", row[n]);
      out += text;
    }
    out += ']';
  }

  std::vector<Layer> layers_;
};
