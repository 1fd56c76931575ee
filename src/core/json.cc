#include "core/json.h"

#include <limits>
#include <optional>
#include <vector>

#include "core/file.h"

namespace mlxlm {
namespace {

using nlohmann::json;

// The library's message without its own prefix, shortened: it may quote a
// token of any length.
std::string reason_of(const json::exception& error) {
  std::string text = error.what();
  if (auto end = text.find("] "); end != std::string::npos) {
    text.erase(0, end + 2);
  }
  constexpr std::size_t kLongest = 300;
  if (text.size() > kLongest) {
    text = text.substr(0, kLongest) + "...";
  }
  return text;
}

// Python's json module writes and reads three words that JSON doesn't have;
// they become transformers' tagged objects.
std::string tag_non_finite(std::string_view text) {
  constexpr std::string_view kWords[] = {"-Infinity", "Infinity", "NaN"};
  std::string out;
  out.reserve(text.size());
  bool in_string = false;
  for (std::size_t i = 0; i < text.size();) {
    if (in_string) {
      if (text[i] == '\\' && i + 1 < text.size()) {
        out += text[i++];
      } else if (text[i] == '"') {
        in_string = false;
      }
      out += text[i++];
      continue;
    }
    bool found = false;
    for (std::string_view word : kWords) {
      if (text.substr(i, word.size()) == word) {
        out.append("{\"__float__\":\"").append(word).append("\"}");
        i += word.size();
        found = true;
        break;
      }
    }
    if (!found) {
      in_string = text[i] == '"';
      out += text[i++];
    }
  }
  return out;
}

std::optional<double> tagged_float(const json& value) {
  if (!value.is_object() || value.size() != 1) {
    return std::nullopt;
  }
  auto it = value.find("__float__");
  if (it == value.end() || !it->is_string()) {
    return std::nullopt;
  }
  const auto& word = it->get_ref<const std::string&>();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (word == "Infinity") {
    return kInfinity;
  }
  if (word == "-Infinity") {
    return -kInfinity;
  }
  if (word == "NaN") {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return std::nullopt;
}

// Without recursion, as deep as the limit may be.
void untag_non_finite(json& root) {
  std::vector<json*> open = {&root};
  while (!open.empty()) {
    json& value = *open.back();
    open.pop_back();
    if (auto number = tagged_float(value)) {
      value = *number;
    } else if (value.is_structured()) {
      for (json& child : value) {
        open.push_back(&child);
      }
    }
  }
}

}  // namespace

nlohmann::json parse_json(std::string_view text,
                          const std::string& what,
                          const JsonLimits& limits,
                          ErrorKind kind) {
  if (text.size() > limits.max_bytes) {
    throw Error(kind,
                what + " has " + std::to_string(text.size()) +
                    " bytes, more than the " +
                    std::to_string(limits.max_bytes) + " it may have");
  }
  auto check_depth = [&](int depth, json::parse_event_t event, json&) {
    bool opens = event == json::parse_event_t::object_start ||
                 event == json::parse_event_t::array_start;
    if (opens && depth >= limits.max_depth) {
      throw Error(kind,
                  what + " is nested more than " +
                      std::to_string(limits.max_depth) + " levels deep");
    }
    return true;
  };
  std::string tagged;
  bool has_words =
      limits.non_finite && (text.find("NaN") != std::string_view::npos ||
                            text.find("Infinity") != std::string_view::npos);
  if (has_words) {
    tagged = tag_non_finite(text);
    text = tagged;
  }
  try {
    json value = json::parse(text, check_depth);
    if (has_words) {
      untag_non_finite(value);
    }
    return value;
  } catch (const json::exception& error) {
    throw Error(kind, what + " is not valid JSON: " + reason_of(error));
  }
}

nlohmann::json read_json_file(const std::filesystem::path& path,
                              const JsonLimits& limits,
                              ErrorKind kind) {
  return parse_json(
      read_file(path, limits.max_bytes), path.string(), limits, kind);
}

std::string dumped(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string describe_json(const nlohmann::json& value) {
  if (value.is_object()) {
    return "an object";
  }
  if (value.is_array()) {
    return "a list";
  }
  constexpr std::size_t kLongest = 60;
  if (value.is_string() &&
      value.get_ref<const std::string&>().size() > kLongest) {
    std::string start = value.get_ref<const std::string&>().substr(0, kLongest);
    return dumped(json(start)) + "...";
  }
  return dumped(value);
}

}  // namespace mlxlm
