#include <appliance.hpp>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <sstream>
#include <vector>

// The conformance model: text is a command, anything else comes back.
class Model {
 public:
  explicit Model(const std::string& path) : path_(path) {}

  appliance::Reply predict(const appliance::Request& request) {
    const std::string body(request.body);
    if (request.media() == "application/json") return appliance::json(body);
    if (request.media().substr(0, 5) != "text/") return appliance::bytes({body.rbegin(), body.rend()});
    const auto at = body.find(' ');
    const auto word = body.substr(0, at);
    const auto rest = at == std::string::npos ? "" : body.substr(at + 1);
    if (word == "raise") throw std::invalid_argument("as asked");
    if (word == "exit") ::_exit(std::atoi(rest.c_str()));
    for (volatile bool spinning = word == "spin"; spinning;) continue;
    if (word == "print") return std::cout << rest << '\n', appliance::text("printed");
    if (word == "noise") {
      for (int line = 0; line < 2000; ++line) std::cout << std::string(1000, 'x') << '\n';
      return appliance::text("done");
    }
    while (word == "eat") held_.emplace_back(1 << 20, 'x');
    if (word == "read") {
      std::stringstream text;
      text << std::ifstream(rest).rdbuf();
      return appliance::text(text.str());
    }
    if (word == "run") {
      std::string out;
      char piece[4096];
      FILE* pipe = ::popen(rest.c_str(), "r");
      while (const auto got = std::fread(piece, 1, sizeof piece, pipe)) out.append(piece, got);
      ::pclose(pipe);
      return appliance::text(out);
    }
    return appliance::text(body);
  }

 private:
  std::string path_;
  std::vector<std::string> held_;
};
