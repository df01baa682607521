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
// Owns: the guest half of PROTOCOL.md for C++; the standard library only, one file.
// Never: is trusted. The model shares the process. Its connection is standard input.
// Read next: PROTOCOL.md, native_runner.pl (which unpacked the artifact and became this program).
#pragma once

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cxxabi.h>
#include <exception>
#include <iostream>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
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

inline std::string unescaped(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] != '\\' || at + 1 >= text.size()) {
      out += text[at];
    } else if (text[++at] == 'u' && at + 4 < text.size()) {
      out += static_cast<char>(std::strtol(std::string(text.substr(at + 1, 4)).c_str(), nullptr, 16));
      at += 4;
    } else {
      out += text[at];
    }
  }
  return out;
}

inline std::string name_of(const std::type_info& type) {
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> name(
      abi::__cxa_demangle(type.name(), nullptr, nullptr, &status), std::free);
  return status == 0 ? name.get() : type.name();
}

inline void report(const std::string& id, const char* kind, const std::string& detail) {
  std::cout.flush();
  send("{\"type\":\"ERR\",\"id\":\"" + id + "\",\"kind\":\"" + kind + "\",\"detail\":" +
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
  std::string header, body;
  for (;;) {
    unsigned char prefix[12];
    detail::read_exactly(reinterpret_cast<char*>(prefix), sizeof prefix);
    header.resize(detail::number(prefix, 4));
    detail::read_exactly(header.data(), header.size());
    const auto id = detail::raw_member(header, "id");
    const auto content_type = detail::unescaped(detail::raw_member(header, "content_type"));
    const auto size = detail::number(prefix + 4, 8);
    started = clock::now();
    Reply reply;
    if (!detail::guarded(id, [&] { body.resize(size); })) return 1;
    detail::read_exactly(body.data(), body.size());
    if (!detail::guarded(id, [&] { reply = model->predict(Request{content_type, body}); })) continue;
    std::cout.flush();
    detail::send("{\"type\":\"RES\",\"id\":\"" + id + "\",\"content_type\":" +
                     detail::quoted(reply.content_type) + ",\"compute_us\":" + since(started) + "}",
                 reply.body);
  }
}

}  // namespace appliance
