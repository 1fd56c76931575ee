// Errors: one exception type, a closed set of kinds.
//
//   try {
//     auto model = mlxlm::load("path/to/model");
//   } catch (const mlxlm::Error& error) {
//     std::cerr << name_of(error.kind()) << ": " << error.what() << '\n';
//   }
#pragma once

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

}  // namespace mlxlm
