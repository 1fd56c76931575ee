// JSON from files that nobody vouches for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

namespace mlxlm {

struct JsonLimits {
  std::uint64_t max_bytes = std::uint64_t{64} << 20;
  int max_depth = 64;
  // Read Python's NaN, Infinity and -Infinity, and the objects
  // {"__float__": "Infinity"} that transformers writes for them, as numbers.
  bool non_finite = false;
};

// `what` names the text in messages. Throws Error{kind}.
nlohmann::json parse_json(std::string_view text,
                          const std::string& what,
                          const JsonLimits& limits = {},
                          ErrorKind kind = ErrorKind::format);

// Throws Error{file} if the file can't be read, else as parse_json.
nlohmann::json read_json_file(const std::filesystem::path& path,
                              const JsonLimits& limits = {},
                              ErrorKind kind = ErrorKind::format);

// As text; invalid UTF-8 becomes U+FFFD.
std::string dumped(const nlohmann::json& value);

// A value for messages: a number or text as it is (shortened), else "a list",
// "an object", "null".
std::string describe_json(const nlohmann::json& value);

}  // namespace mlxlm
