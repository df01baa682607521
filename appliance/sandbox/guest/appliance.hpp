// A model in C++: the contract, and the runner that answers the appliance's calls.
//
//   #include <appliance.hpp>
//
//   class Model {
//    public:
//     explicit Model(const std::string& path);   // the folder of the artifact, read-only use
//     appliance::Reply predict(const appliance::Request& request);
//   };
//
// with `entry = "model.cpp:Model"` in appliance.toml. The model gets a call's body and content type
// as they came, and answers with appliance::json, ::text or ::bytes. What it throws is the
// caller's problem `model-raised`; std::bad_alloc is `out-of-memory`.
//
// A model whose manifest declares `calls` may call others of its tenant while it answers, from any
// thread: `appliance::call("scorer@live", appliance::json(text))`.
//
// Owns: the guest half of PROTOCOL.md for C++; the standard library only, one file.
// Never: is trusted. The model shares the process. Its connection is standard input.
// Read next: PROTOCOL.md, native_runner.pl (which unpacked the artifact and became this program).
#pragma once

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cxxabi.h>
#include <deque>
#include <exception>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <typeinfo>
#include <unistd.h>

namespace appliance {

// One call. Both views live as long as the call.
struct Request {
  std::string_view content_type;
  std::string_view body;

  // The content type without its parameters, as it was sent.
  std::string_view media() const {
    auto text = content_type.substr(0, content_type.find(';'));
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
    return text;
  }
};

// One answer; content_type is printable ASCII.
struct Reply {
  std::string content_type;
  std::string body;
};

inline Reply json(std::string body) { return {"application/json", std::move(body)}; }
inline Reply text(std::string body) { return {"text/plain; charset=utf-8", std::move(body)}; }
inline Reply bytes(std::string body) { return {"application/octet-stream", std::move(body)}; }

// A call of another model was refused or failed: `code` is the problem, `status` its HTTP status.
class CallFailed : public std::runtime_error {
 public:
  explicit CallFailed(const std::string& detail, std::string code = "", int status = 0)
      : std::runtime_error(detail), code(std::move(code)), status(status) {}
  std::string code;
  int status;
};

// The answer of another model of the same tenant. The target is NAME, NAME:VERSION or NAME@ALIAS and
// is declared in `calls`. Throws CallFailed.
inline Reply call(std::string_view target, const Reply& inputs);

namespace detail {

inline void read_exactly(char* data, std::size_t size) {
  while (size > 0) {
    const auto got = ::read(STDIN_FILENO, data, size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) ::_exit(0);  // the appliance is gone
    data += got;
    size -= static_cast<std::size_t>(got);
  }
}

inline void write_all(std::string_view data) {
  while (!data.empty()) {
    const auto sent = ::write(STDIN_FILENO, data.data(), data.size());
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) ::_exit(0);
    data.remove_prefix(static_cast<std::size_t>(sent));
  }
}

inline std::uint64_t number(const unsigned char* data, int size) {
  std::uint64_t value = 0;
  for (int at = 0; at < size; ++at) value = value << 8 | data[at];
  return value;
}

inline void send(std::string_view header, std::string_view body = {}) {
  std::string prefix(12, '\0');
  for (int at = 0; at < 4; ++at) prefix[at] = static_cast<char>(header.size() >> (24 - 8 * at));
  for (int at = 0; at < 8; ++at) {
    prefix[4 + at] = static_cast<char>(static_cast<std::uint64_t>(body.size()) >> (56 - 8 * at));
  }
  write_all(prefix.append(header));
  write_all(body);
}

// A text as a JSON string; what is not printable ASCII becomes a question mark.
inline std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char letter : text.substr(0, 1500)) {
    if (letter == '"' || letter == '\\') out += '\\';
    out += letter >= 0x20 && letter < 0x7f ? letter : '?';
  }
  return out + '"';
}

// A text member of a header, still escaped as JSON; headers are the appliance's own.
inline std::string raw_member(std::string_view header, std::string_view name) {
  const auto key = header.find("\"" + std::string(name) + "\":");
  if (key == std::string_view::npos) return "";
  const auto start = header.find('"', key + name.size() + 3);
  if (start == std::string_view::npos) return "";
  auto end = start + 1;
  while (end < header.size() && header[end] != '"') end += header[end] == '\\' ? 2 : 1;
  return std::string(header.substr(start + 1, end - start - 1));
}

// What is beyond ASCII comes as it is; \u stands for control characters only.
inline std::string unescaped(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] != '\\' || at + 1 >= text.size()) {
      out += text[at];
    } else if (text[++at] == 'u' && at + 4 < text.size()) {
      out += static_cast<char>(std::strtol(std::string(text.substr(at + 1, 4)).c_str(), nullptr, 16));
      at += 4;
    } else if (const auto known = std::string_view("bfnrt").find(text[at]); known < 5) {
      out += "\b\f\n\r\t"[known];
    } else {
      out += text[at];
    }
  }
  return out;
}

inline std::string member(std::string_view header, std::string_view name) {
  return unescaped(raw_member(header, name));
}

inline std::size_t number_member(std::string_view header, std::string_view name) {
  const auto key = header.find("\"" + std::string(name) + "\":");
  if (key == std::string_view::npos) return 0;
  return std::strtoull(std::string(header.substr(key + name.size() + 3, 24)).c_str(), nullptr, 10);
}

struct Frame {
  std::string header, body;
};

// Read one frame; a body there is no memory for ends the process with the words for it.
inline void read_frame(Frame& frame) {
  unsigned char prefix[12];
  read_exactly(reinterpret_cast<char*>(prefix), sizeof prefix);
  try {
    frame.header.resize(number(prefix, 4));
    read_exactly(frame.header.data(), frame.header.size());
    frame.body.resize(number(prefix + 4, 8));
  } catch (const std::bad_alloc&) {
    std::cerr << "std::bad_alloc" << std::endl;
    ::_exit(1);
  }
  read_exactly(frame.body.data(), frame.body.size());
}

// The connection. Where the model declares calls, a thread reads it: answers of other models go to
// whoever waits for them, all else to `serve`.
class Link {
 public:
  static Link& only() {
    static Link& link = *new Link;  // never destroyed: its thread reads to the end of the process
    return link;
  }

  // The next request.
  void receive(Frame& frame) {
    if (!is_declared_) return read_frame(frame);
    std::unique_lock lock(state_);
    changed_.wait(lock, [&] { return !frames_.empty(); });
    frame = std::move(frames_.front());
    frames_.pop_front();
    parallel_max_ = number_member(frame.header, "parallel_max");
    body_bytes_max_ = number_member(frame.header, "body_bytes_max");
    if (parallel_max_ > 0) request_ = raw_member(frame.header, "id");
  }

  // Answer a request; after that nothing is called for it any more.
  void answer(std::string_view header, std::string_view body = {}) {
    const std::lock_guard sending(sending_);
    {
      const std::lock_guard lock(state_);
      request_.clear();
      for (auto& [id, frame] : open_) {
        if (!frame) frame = Frame{R"({"type":"ERR","detail":"The request was answered."})", ""};
      }
      changed_.notify_all();
    }
    send(header, body);
  }

  Reply call(std::string_view target, const Reply& inputs) {
    if (!is_declared_) throw CallFailed("Models call others where they declare calls = [\"OTHER\"].");
    const auto id = open_call(target, inputs);
    std::unique_lock lock(state_);
    changed_.wait(lock, [&] { return open_[id].has_value(); });
    const auto frame = std::move(*open_[id]);
    open_.erase(id);
    changed_.notify_all();
    lock.unlock();
    if (raw_member(frame.header, "type") == "RETURN") {
      return {member(frame.header, "content_type"), frame.body};
    }
    const auto status = static_cast<int>(number_member(frame.header, "status"));
    throw CallFailed(member(frame.header, "detail"), member(frame.header, "code"), status);
  }

 private:
  Link() : is_declared_(std::getenv("APPLIANCE_CALLS") != nullptr) {
    if (is_declared_) std::thread([this] { sort(); }).detach();
  }

  void sort() {
    for (;;) {
      Frame frame;
      read_frame(frame);
      const auto type = raw_member(frame.header, "type");
      const std::lock_guard lock(state_);
      if (type != "RETURN" && type != "ERR") {
        frames_.push_back(std::move(frame));
      } else if (const auto found = open_.find(raw_member(frame.header, "id")); found != open_.end()) {
        if (!found->second) found->second = std::move(frame);
      }
      changed_.notify_all();
    }
  }

  // Send a CALL, once few enough are open; its id.
  std::string open_call(std::string_view target, const Reply& inputs) {
    std::unique_lock lock(state_);
    const auto request = request_;
    if (request.empty()) throw CallFailed("Models are called while a request is answered only.");
    if (inputs.body.size() > body_bytes_max_) {
      const auto most = std::to_string(body_bytes_max_);
      throw CallFailed("The body is over " + most + " bytes.", "too-large", 413);
    }
    changed_.wait(lock, [&] { return request_ != request || open_.size() < parallel_max_; });
    if (request_ != request) throw CallFailed("The request this call was for has been answered.");
    const auto id = "c" + std::to_string(++count_);
    open_[id];
    lock.unlock();
    const std::lock_guard sending(sending_);
    lock.lock();
    const bool is_open = !open_[id];
    lock.unlock();
    if (is_open) {
      send("{\"type\":\"CALL\",\"id\":\"" + id + "\",\"req\":\"" + request + "\",\"target\":" +
               quoted(target.substr(0, 140)) + ",\"content_type\":" +
               quoted(std::string_view(inputs.content_type).substr(0, 256)) + "}",
           inputs.body);
    }
    return id;
  }

  const bool is_declared_;
  std::mutex sending_;  // held while a frame is written
  std::mutex state_;    // held while what follows is looked at
  std::condition_variable changed_;
  std::deque<Frame> frames_;
  std::map<std::string, std::optional<Frame>> open_;  // each CALL, and its answer once it came
  std::string request_;
  std::size_t parallel_max_ = 0, body_bytes_max_ = 0, count_ = 0;
};

inline std::string name_of(const std::type_info& type) {
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(type.name(), nullptr, nullptr, &status), std::free);
  return status == 0 ? name.get() : type.name();
}

inline void report(const std::string& id, const char* kind, const std::string& detail) {
  std::cout.flush();
  Link::only().answer("{\"type\":\"ERR\",\"id\":\"" + id + "\",\"kind\":\"" + kind + "\",\"detail\":" +
                      quoted(detail) + "}");
}

// Do something of the model's; false after having reported what it threw.
template <class Work>
bool guarded(const std::string& id, Work work) {
  try {
    work();
    return true;
  } catch (const std::bad_alloc&) {
    report(id, "memory", "std::bad_alloc");
  } catch (const std::exception& error) {
    report(id, "raised", name_of(typeid(error)) + ": " + error.what());
  } catch (const abi::__forced_unwind&) {
    throw;
  } catch (...) {
    report(id, "raised", "something that is no std::exception was thrown");
  }
  return false;
}

}  // namespace detail

// Load the model and answer its calls until the appliance ends the sandbox.
template <class Model>
int serve() {
  using clock = std::chrono::steady_clock;
  const auto since = [](clock::time_point start) {
    const auto spent = std::chrono::duration_cast<std::chrono::microseconds>(clock::now() - start);
    return std::to_string(spent.count());
  };
  const char* folder = std::getenv("APPLIANCE_PATH");
  std::unique_ptr<Model> model;
  auto started = clock::now();
  const bool is_loaded = detail::guarded(
      "", [&] { model = std::make_unique<Model>(std::string(folder ? folder : "/model")); });
  if (is_loaded) detail::send("{\"type\":\"READY\",\"compute_us\":" + since(started) + "}");
  detail::Frame frame;
  for (;;) {
    detail::Link::only().receive(frame);
    const auto id = detail::raw_member(frame.header, "id");
    const auto content_type = detail::member(frame.header, "content_type");
    started = clock::now();
    Reply reply;
    const Request request{content_type, frame.body};
    if (!detail::guarded(id, [&] { reply = model->predict(request); })) continue;
    std::cout.flush();
    detail::Link::only().answer("{\"type\":\"RES\",\"id\":\"" + id + "\",\"content_type\":" +
                                    detail::quoted(reply.content_type) +
                                    ",\"compute_us\":" + since(started) + "}",
                                reply.body);
  }
}

inline Reply call(std::string_view target, const Reply& inputs) {
  return detail::Link::only().call(target, inputs);
}

}  // namespace appliance
