#include "load/hub.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <system_error>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

#include "core/file.h"
#include "load/hub_files.h"

namespace mlxlm {
namespace fs = std::filesystem;
namespace {

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_';
}

// One half of "org/name", with the hub's rules.
bool is_repository_part(std::string_view part) {
  return !part.empty() && part.size() <= 96 && is_word(part.front()) &&
         is_word(part.back()) &&
         std::ranges::all_of(
             part, [](char c) { return is_word(c) || c == '-' || c == '.'; }) &&
         part.find("--") == part.npos && part.find("..") == part.npos &&
         !part.ends_with(".git");
}

// A branch, tag or commit that may also be a file name below refs/.
bool is_revision(std::string_view revision) {
  return !revision.empty() && revision.size() <= 255 &&
         is_safe_file_name(revision) &&
         std::ranges::all_of(revision, [](char c) {
           return is_word(c) ||
                  std::string_view("-./+#=,").find(c) != std::string_view::npos;
         });
}

bool is_true(std::string value) {
  std::ranges::transform(value, value.begin(), [](unsigned char c) {
    return static_cast<char>(std::toupper(c));
  });
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

std::string trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  auto begin = text.find_first_not_of(kBlank);
  if (begin == text.npos) {
    return "";
  }
  return std::string(
      text.substr(begin, text.find_last_not_of(kBlank) - begin + 1));
}

std::string token_of(const fs::path& hub_home, const Environment& environment) {
  if (is_true(environment("HF_HUB_DISABLE_IMPLICIT_TOKEN"))) {
    return "";
  }
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    if (auto token = trimmed(environment(name)); !token.empty()) {
      return token;
    }
  }
  std::string named = environment("HF_TOKEN_PATH");
  fs::path path =
      named.empty() ? hub_home / "token" : expand_home(named, environment);
  constexpr std::uint64_t kMaxTokenBytes = 1 << 16;
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) {
    return "";
  }
  try {
    return trimmed(read_file(path, kMaxTokenBytes));
  } catch (const Error&) {
    return "";  // unreadable: as if there were none
  }
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

// The cached commit of a revision; none if the cache has none.
std::optional<std::string> cached_commit(const fs::path& storage,
                                         const std::string& revision) {
  if (is_commit(revision)) {
    return revision;
  }
  constexpr std::uint64_t kMaxRefBytes = 4096;
  fs::path ref = storage / "refs" / revision;
  std::error_code ignored;
  if (!is_revision(revision) || !fs::is_regular_file(ref, ignored)) {
    return std::nullopt;
  }
  try {
    std::string commit = trimmed(read_file(ref, kMaxRefBytes));
    return is_commit(commit) ? std::optional(commit) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

nlohmann::json read_json(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) {
    return nullptr;
  }
  try {
    return nlohmann::json::parse(read_file(path), nullptr, false);
  } catch (const Error&) {
    return nullptr;
  }
}

// Newer versions of huggingface_hub leave the list of all the model's files.
bool has_all_listed_files(const fs::path& storage,
                          const std::string& commit,
                          const fs::path& snapshot) {
  auto tree = read_json(storage / "trees" / (commit + ".json"));
  if (!tree.is_object() ||
      tree.value("format_version", nlohmann::json()) != 1 ||
      !tree.contains("files") || !tree["files"].is_object()) {
    return true;  // no list: nothing is known to be missing
  }
  for (const auto& [name, entry] : tree["files"].items()) {
    if (is_wanted_file(name) && is_safe_file_name(name) &&
        !is_there(snapshot / name)) {
      return false;
    }
  }
  return true;
}

bool has_dangling_links(const fs::path& folder) {
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end;
       !error && entry != end;
       entry.increment(error)) {
    if (entry->is_symlink(error) && !is_there(entry->path())) {
      return true;
    }
  }
  return static_cast<bool>(error);
}

bool has_all_weights(const fs::path& snapshot) {
  auto index = read_json(snapshot / "model.safetensors.index.json");
  if (index.is_object() && index.contains("weight_map") &&
      index["weight_map"].is_object()) {
    for (const auto& [tensor, file] : index["weight_map"].items()) {
      if (file.is_string() && is_safe_file_name(file.get<std::string>()) &&
          !is_there(snapshot / file.get<std::string>())) {
        return false;
      }
    }
    return true;
  }
  std::error_code error;
  for (fs::directory_iterator entry(snapshot, error), end;
       !error && entry != end;
       entry.increment(error)) {
    std::string name = entry->path().filename().string();
    if (name.starts_with("model") && name.ends_with(".safetensors")) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::string HubId::text() const {
  return revision == "main" ? repository : repository + "@" + revision;
}

std::optional<HubId> parse_hub_id(std::string_view name) {
  HubId id;
  if (auto at = name.find('@'); at != name.npos) {
    id.revision = name.substr(at + 1);
    name = name.substr(0, at);
  }
  auto slash = name.find('/');
  if (slash == name.npos || !is_revision(id.revision) ||
      !is_repository_part(name.substr(0, slash)) ||
      !is_repository_part(name.substr(slash + 1))) {
    return std::nullopt;
  }
  id.repository = name;
  return id;
}

HubOptions hub_options(const Environment& environment) {
  HubOptions options;
  std::string named_home = environment("HF_HOME");
  fs::path home = named_home.empty()
                      ? user_cache_folder(environment) / "huggingface"
                      : expand_home(named_home, environment);
  options.cache_folder = home / "hub";
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (auto folder = environment(name); !folder.empty()) {
      options.cache_folder = expand_home(folder, environment);
      break;
    }
  }
  if (auto endpoint = trimmed(environment("HF_ENDPOINT")); !endpoint.empty()) {
    endpoint.erase(endpoint.find_last_not_of('/') + 1);
    options.endpoint = endpoint;
  }
  options.token = token_of(home, environment);
  options.offline = is_true(environment("HF_HUB_OFFLINE"));
  int timeout_s = std::atoi(environment("HF_HUB_DOWNLOAD_TIMEOUT").c_str());
  if (timeout_s > 0) {
    options.stall_timeout = std::chrono::seconds(timeout_s);
  }
  return options;
}

std::optional<fs::path> find_snapshot(const HubId& id,
                                      const HubOptions& options) {
  fs::path storage = storage_folder(id, options);
  auto commit = cached_commit(storage, id.revision);
  if (!commit) {
    return std::nullopt;
  }
  fs::path snapshot = storage / "snapshots" / *commit;
  if (!is_there(snapshot / "config.json") ||
      !has_all_listed_files(storage, *commit, snapshot) ||
      has_dangling_links(snapshot) || !has_all_weights(snapshot)) {
    return std::nullopt;
  }
  return snapshot;
}

std::vector<std::string> cached_repositories(const HubOptions& options) {
  constexpr std::string_view kPrefix = "models--";
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(options.cache_folder, error), end;
       !error && entry != end;
       entry.increment(error)) {
    std::string name = entry->path().filename().string();
    if (!name.starts_with(kPrefix)) {
      continue;
    }
    name.erase(0, kPrefix.size());
    if (auto separator = name.find("--"); separator != name.npos) {
      name.replace(separator, 2, "/");
      names.push_back(name);
    }
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace mlxlm
