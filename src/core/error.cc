#include <mlxlm/error.h>

namespace mlxlm {

std::string_view name_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::argument:
      return "argument";
    case ErrorKind::config:
      return "config";
    case ErrorKind::file:
      return "file";
    case ErrorKind::format:
      return "format";
    case ErrorKind::weights:
      return "weights";
    case ErrorKind::tokenizer:
      return "tokenizer";
    case ErrorKind::chat_template:
      return "chat_template";
    case ErrorKind::unsupported:
      return "unsupported";
    case ErrorKind::memory:
      return "memory";
    case ErrorKind::network:
      return "network";
    case ErrorKind::cancelled:
      return "cancelled";
    case ErrorKind::internal:
      return "internal";
  }
  return "internal";
}

}  // namespace mlxlm
