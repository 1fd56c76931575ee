// What the library reports: errors, one exception type with a closed set of
// kinds; and notes and progress, which aren't errors.
//
//   try {
//     auto model = mlxlm::load("path/to/model");
//   } catch (const mlxlm::Error& error) {
//     std::cerr << name_of(error.kind()) << ": " << error.what() << '\n';
//   }
//   mlxlm::set_log_handler([](mlxlm::LogLevel, std::string_view text) {
//     std::cerr << text << '\n';
//   });
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mlxlm {

enum class ErrorKind {
  argument,       // an option or a function argument has a value it can't have
  config,         // a field of config.json is missing, mistyped or impossible
  file,           // a file is missing, unreadable, or can't be written
  format,         // a file's content breaks its format
  weights,        // tensors are missing, extra or of the wrong shape or dtype
  tokenizer,      // the tokenizer's files are missing or unusable
  chat_template,  // a chat template doesn't parse, fails or exceeds its limits
  unsupported,    // a valid request that isn't implemented, with the reason
  memory,         // the estimate exceeds the memory there is
  network,        // a download failed
  cancelled,      // cancel() or a deadline ended the work
  internal,       // a fault of this library
};

// The kind as one lower-case word, e.g. "config".
std::string_view name_of(ErrorKind kind);

// what() names the option, file, tensor and shapes at fault and what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message)
      : std::runtime_error(message), kind_(kind) {}

  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// Nothing is printed unless a handler is set. Handlers may be called from any
// thread that calls the library, one call at a time.
enum class LogLevel { info, warning };

using LogHandler = std::function<void(LogLevel, std::string_view text)>;

// Replaces the handler; an empty function silences the log.
void set_log_handler(LogHandler handler);

// One step of a long piece of work (a download, a conversion). `total` is 0
// while unknown; done == total ends it. Units depend on `what`.
struct Progress {
  std::string_view what;  // e.g. "model.safetensors"
  std::uint64_t done = 0;
  std::uint64_t total = 0;
};

using ProgressHandler = std::function<void(const Progress&)>;

}  // namespace mlxlm
