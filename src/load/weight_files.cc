// Which files of a folder hold its weights.
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <mlxlm/error.h>

#include "core/file.h"
#include "core/json.h"
#include "core/log.h"
#include "load/folder.h"
#include "load/safetensors_header.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kIndexName = "model.safetensors.index.json";

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) {
    throw Error(
        ErrorKind::file,
        "cannot read the folder " + folder.string() + ": " + error.message());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool is_weight_file(const std::string& name) {
  return name.starts_with("model") && name.ends_with(".safetensors");
}

std::string join(const std::vector<std::string>& names) {
  constexpr std::size_t kMostListed = 10;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kMostListed); ++i) {
    text += (i > 0 ? ", " : "") + names[i];
  }
  if (names.size() > kMostListed) {
    text += " and " + std::to_string(names.size() - kMostListed) + " more";
  }
  return text;
}

// What to do with a folder that has no weights to read.
std::string advice_for(const std::vector<std::string>& names) {
  auto first_with = [&](std::string_view end) -> std::optional<std::string> {
    auto it = std::find_if(names.begin(), names.end(), [&](auto& name) {
      return name.ends_with(end);
    });
    return it == names.end() ? std::nullopt : std::optional(*it);
  };
  if (auto name = first_with(".gguf")) {
    return "; it holds " + *name + ": name that file instead of the folder";
  }
  if (auto name = first_with(".safetensors")) {
    return "; it holds " + *name +
           ", but weights are looked for in model*.safetensors: rename it if "
           "it is a whole model";
  }
  for (const char* end : {".bin", ".pt", ".pth", ".npz"}) {
    if (auto name = first_with(end)) {
      return "; it holds " + *name +
             ", which can't be read: convert the model to safetensors";
    }
  }
  return "";
}

// "model-00002-of-00005.safetensors" -> 2 and 5.
std::optional<std::pair<int, int>> shard_numbers(const std::string& name) {
  int number = 0;
  int count = 0;
  int length = 0;
  if (std::sscanf(name.c_str(),
                  "model-%5d-of-%5d.safetensors%n",
                  &number,
                  &count,
                  &length) == 2 &&
      length == static_cast<int>(name.size())) {
    return std::pair(number, count);
  }
  return std::nullopt;
}

// Shards that the names of the others tell of.
std::vector<std::string> missing_by_number(const std::set<std::string>& files) {
  std::vector<std::string> missing;
  std::map<int, std::set<int>> found;  // by the number of shards
  for (const std::string& name : files) {
    if (auto numbers = shard_numbers(name)) {
      found[numbers->second].insert(numbers->first);
    }
  }
  for (const auto& [count, numbers] : found) {
    for (int i = 1; i <= count && missing.size() < 100; ++i) {
      if (!numbers.contains(i)) {
        char name[64];
        std::snprintf(
            name, sizeof(name), "model-%05d-of-%05d.safetensors", i, count);
        missing.push_back(name);
      }
    }
  }
  return missing;
}

// Tensor -> file name, as the index says.
std::map<std::string, std::string> read_index(const fs::path& path) {
  json index = read_json_file(path);
  auto it = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || it == index.end() || !it->is_object()) {
    throw Error(ErrorKind::format,
                path.string() + " has no object \"weight_map\"");
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : it->items()) {
    std::string name = file.is_string() ? file.get<std::string>() : "";
    bool plain = !name.empty() && name != "." && name != ".." &&
                 name.find_first_of("/\\\0", 0, 3) == std::string::npos;
    if (!plain) {
      throw Error(ErrorKind::format,
                  path.string() + ": weight_map." + tensor +
                      " must be a file name, not " + describe_json(file));
    }
    files[tensor] = name;
  }
  return files;
}

std::set<std::string> tensors_of(const fs::path& folder,
                                 const std::set<std::string>& files) {
  std::set<std::string> tensors;
  for (const std::string& file : files) {
    for (auto& tensor : read_safetensors_header(folder / file).tensors) {
      tensors.insert(tensor.name);
    }
  }
  return tensors;
}

// Adds the files the index names. Those that are missing are a fault, unless
// the others have every tensor all the same: an index may be older than the
// weights beside it.
void add_indexed(const fs::path& folder, std::set<std::string>& files) {
  auto index = read_index(folder / kIndexName);
  std::set<std::string> missing;
  for (const auto& [tensor, file] : index) {
    if (file_exists(folder / file)) {
      files.insert(file);
    } else {
      missing.insert(file);
    }
  }
  if (missing.empty()) {
    return;
  }
  auto present = tensors_of(folder, files);
  std::size_t absent =
      std::count_if(index.begin(), index.end(), [&](const auto& entry) {
        return !present.contains(entry.first);
      });
  if (absent > 0) {
    throw Error(ErrorKind::file,
                folder.string() + " lacks " +
                    join({missing.begin(), missing.end()}) + ", which " +
                    kIndexName + " names for " + std::to_string(absent) +
                    " tensors; download the model again");
  }
  log_warning((folder / kIndexName).string() +
              " names files that are missing, but all its tensors are in the "
              "others; it is ignored");
}

}  // namespace

std::vector<fs::path> find_weight_files(const fs::path& folder, bool required) {
  std::vector<std::string> names = names_in(folder);
  std::set<std::string> files;
  std::copy_if(names.begin(),
               names.end(),
               std::inserter(files, files.end()),
               is_weight_file);
  if (std::binary_search(names.begin(), names.end(), kIndexName)) {
    add_indexed(folder, files);
  } else if (auto missing = missing_by_number(files); !missing.empty()) {
    throw Error(ErrorKind::file,
                folder.string() + " lacks " + join(missing) +
                    "; download the model again");
  }
  if (files.empty() && required) {
    throw Error(
        ErrorKind::file,
        folder.string() + " has no model*.safetensors" + advice_for(names));
  }
  std::vector<fs::path> paths;
  for (const std::string& file : files) {
    paths.push_back(folder / file);
  }
  return paths;
}

}  // namespace mlxlm
