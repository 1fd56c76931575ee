#include "load/gguf_parts.h"

#include <cstdio>
#include <optional>
#include <unordered_set>

namespace mlxlm {
namespace {

constexpr std::int64_t kMaxParts = 99999;  // five digits in the name

std::string part_suffix(std::size_t number, std::size_t count) {
  char text[64];
  std::snprintf(text, sizeof(text), "-%05zu-of-%05zu.gguf", number, count);
  return text;
}

std::size_t part_count(const GgufFile& file) {
  auto count = file.metadata().integer("split.count").value_or(1);
  if (count < 0 || count > kMaxParts) {
    throw file.error("'split.count' is " + std::to_string(count));
  }
  return count == 0 ? 1 : static_cast<std::size_t>(count);
}

// Where the parts' names differ: the name without the suffix of one of them.
std::optional<std::string> stem_of(const std::string& path,
                                   std::size_t number,
                                   std::size_t count) {
  std::string suffix = part_suffix(number, count);
  if (!path.ends_with(suffix)) {
    return std::nullopt;
  }
  return path.substr(0, path.size() - suffix.size());
}

}  // namespace

GgufParts::GgufParts(const std::filesystem::path& path) {
  GgufFile given(path);
  std::size_t count = part_count(given);
  if (count == 1) {
    files_.push_back(std::move(given));
    return;
  }
  auto number = given.metadata().integer("split.no").value_or(0);
  auto stem =
      number >= 0 && number < kMaxParts
          ? stem_of(given.path(), static_cast<std::size_t>(number) + 1, count)
          : std::nullopt;
  if (!stem) {
    throw given.error("it is part " + std::to_string(number + 1) + " of " +
                      std::to_string(count) +
                      ", so its name must end in NUMBER-of-COUNT as " +
                      part_suffix(1, count) + "; rename the parts");
  }
  for (std::size_t i = 1; i <= count; ++i) {
    std::filesystem::path part = *stem + part_suffix(i, count);
    if (!std::filesystem::exists(part)) {
      throw Error(ErrorKind::file,
                  path.string() + " is one of " + std::to_string(count) +
                      " parts of a model, and " + part.string() +
                      " is missing");
    }
    files_.emplace_back(part);
  }
  check_parts(count);
}

void GgufParts::check_parts(std::size_t count) const {
  std::unordered_set<std::string_view> names;
  for (std::size_t i = 0; i < files_.size(); ++i) {
    const GgufFile& file = files_[i];
    auto number = file.metadata().integer("split.no");
    if (part_count(file) != count || number != static_cast<std::int64_t>(i)) {
      throw file.error("its name says it is part " + std::to_string(i + 1) +
                       " of " + std::to_string(count) +
                       ", but its metadata disagrees");
    }
    for (const auto& tensor : file.tensors()) {
      if (!names.insert(tensor.name).second) {
        throw file.error("tensor " + quoted_name(tensor.name) +
                         " is in an earlier part, too");
      }
    }
  }
  auto total = metadata().integer("split.tensors.count");
  if (total && *total != static_cast<std::int64_t>(names.size())) {
    throw first().error("'split.tensors.count' is " + std::to_string(*total) +
                        ", but the parts have " + std::to_string(names.size()) +
                        " tensors");
  }
}

std::vector<GgufParts::Entry> GgufParts::tensors() const {
  std::vector<Entry> entries;
  for (const auto& file : files_) {
    for (const auto& tensor : file.tensors()) {
      entries.push_back({&file, &tensor});
    }
  }
  return entries;
}

GgufParts::Entry GgufParts::find_tensor(std::string_view name) const {
  for (const auto& file : files_) {
    if (const auto* tensor = file.find_tensor(name)) {
      return {&file, tensor};
    }
  }
  return {nullptr, nullptr};
}

}  // namespace mlxlm
