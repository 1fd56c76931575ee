#include "load/hub_files.h"

#include <algorithm>
#include <array>

namespace mlxlm {
namespace {

// Those of the reference, without Python sources.
constexpr std::array kWanted = {"*.json",
                                "model*.safetensors",
                                "tokenizer.model",
                                "*.tiktoken",
                                "tiktoken.model",
                                "*.txt",
                                "*.jsonl",
                                "*.jinja"};

// `pattern` has at most one star.
bool matches(std::string_view pattern, std::string_view name) {
  auto star = pattern.find('*');
  if (star == pattern.npos) {
    return pattern == name;
  }
  return name.size() + 1 >= pattern.size() &&
         name.starts_with(pattern.substr(0, star)) &&
         name.ends_with(pattern.substr(star + 1));
}

}  // namespace

std::span<const char* const> wanted_file_patterns() { return kWanted; }

bool is_wanted_file(std::string_view name) {
  return std::ranges::any_of(kWanted, [&](std::string_view pattern) {
    return matches(pattern, name);
  });
}

bool is_safe_file_name(std::string_view name) {
  for (std::size_t begin = 0; begin <= name.size();) {
    auto end = std::min(name.find('/', begin), name.size());
    auto part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == "..") {
      return false;
    }
    begin = end + 1;
  }
  return std::ranges::none_of(
      name, [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '\\'; });
}

bool is_commit(std::string_view text) {
  return text.size() == 40 &&
         text.find_first_not_of("0123456789abcdef") == text.npos;
}

std::filesystem::path storage_folder(const HubId& id,
                                     const HubOptions& options) {
  std::string name = "models--" + id.repository;
  name.replace(name.find('/'), 1, "--");
  return options.cache_folder / name;
}

}  // namespace mlxlm
