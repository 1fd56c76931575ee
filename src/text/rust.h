// The Rust crate's handles, owned as C++ objects, and its errors as Error.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <mlxlm/error.h>

#include "mlxlm_rust.h"

namespace mlxlm {

struct RustDeleter {
  void operator()(char* text) const { mlxlm_rust_free_text(text); }
  void operator()(mlxlm_rust_tokenizer* tokenizer) const {
    mlxlm_rust_tokenizer_free(tokenizer);
  }
  void operator()(mlxlm_rust_template* compiled) const {
    mlxlm_rust_template_free(compiled);
  }
};

template <typename T>
using RustPtr = std::unique_ptr<T, RustDeleter>;

inline mlxlm_rust_view rust_view(std::string_view text) {
  return {text.data(), text.size()};
}

// The text itself; frees the crate's copy.
inline std::string take_text(mlxlm_rust_string text) {
  std::string copy =
      text.data == nullptr ? "" : std::string(text.data, text.size);
  mlxlm_rust_free_string(text);
  return copy;
}

// Throws Error{kind} "CONTEXT: MESSAGE" if the call failed.
inline void check_rust(char* error,
                       ErrorKind kind,
                       const std::string& context) {
  if (error != nullptr) {
    RustPtr<char> message(error);
    throw Error(kind, context + ": " + message.get());
  }
}

}  // namespace mlxlm
