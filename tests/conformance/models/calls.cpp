#include <appliance.hpp>

#include <functional>
#include <future>
#include <vector>

// The conformance model that calls: text is a command.
class Model {
 public:
  explicit Model(const std::string&) : early_(message([] { return echo("1"); })) {}

  appliance::Reply predict(const appliance::Request& request) {
    const std::string body(request.body);
    const auto at = body.find(' ');
    const auto word = body.substr(0, at);
    const auto rest = at == std::string::npos ? "" : body.substr(at + 1);
    if (word == "early") return appliance::text(early_);
    if (word == "text") return appliance::call("echo:3", appliance::text(rest));
    if (word == "values") return echo(R"({"a":[1,2.5,null,true],"b":{"c":"ü"}})");
    if (word == "bytes") {
      std::string all;
      for (int n = 0; n < 256; ++n) all += static_cast<char>(n);
      return appliance::call("echo@live", appliance::bytes(all));
    }
    if (word == "typed") return appliance::call("echo", {"application/json", rest});
    if (word == "refused") return told([&] { return appliance::call(rest, appliance::json("1")); });
    if (word == "through") return appliance::call(rest, appliance::json("1"));
    if (word == "large") {
      const std::string text(std::stoul(rest), 'x');
      return told([&] { return appliance::call("echo", appliance::text(text)); });
    }
    if (word == "many") return many(std::stoi(rest));
    if (word == "leave") {
      left_ = std::async(std::launch::async, [] {
        return message([] { return appliance::call("slow", appliance::json("1")); });
      });
      appliance::call("second", appliance::json("1"));
      return appliance::text("done");
    }
    return appliance::text(left_.get());
  }

 private:
  using Work = std::function<appliance::Reply()>;

  static appliance::Reply echo(const std::string& text) {
    return appliance::call("echo", appliance::json(text));
  }

  static std::string message(const Work& work) {
    try {
      return work().body;
    } catch (const appliance::CallFailed& error) {
      return error.what();
    }
  }

  static appliance::Reply told(const Work& work) {
    try {
      return work();
    } catch (const appliance::CallFailed& error) {
      return appliance::text(error.code + " " + std::to_string(error.status) + " " + error.what());
    }
  }

  static appliance::Reply many(int count) {
    std::vector<std::future<std::string>> calls;
    for (int n = 0; n < count; ++n) {
      calls.push_back(std::async(std::launch::async, [n] { return echo(std::to_string(n)).body; }));
    }
    std::string all;
    for (auto& one : calls) all += (all.empty() ? "" : ",") + one.get();
    return appliance::json("[" + all + "]");
  }

  std::string early_;
  std::future<std::string> left_;
};
