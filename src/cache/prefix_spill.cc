#include "cache/prefix_spill.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>

#include <mlxlm/error.h>

#include "cache/prefix_parts.h"
#include "core/checksum.h"
#include "core/common_length.h"
#include "core/file.h"
#include "core/log.h"
#include "core/sha256.h"
#include "load/safetensors_header.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "prefix-";
constexpr char kSuffix[] = ".safetensors";
constexpr char kKey[] = "mlxlm.prefix_key";
constexpr char kCuttable[] = "mlxlm.prefix_cuttable";

// Keys may name people: files don't.
std::string hash_of(const std::string& key) {
  Sha256 hash;
  hash.add(key);
  return hash.hex();
}

std::string name_for_content_of(const fs::path& path) {
  char digits[17];
  std::snprintf(digits,
                sizeof(digits),
                "%016" PRIx64,
                checksum(MappedFile(path).bytes()));
  return kPrefix + std::string(digits) + kSuffix;
}

// Whether this store, or an earlier one, gave the file its name.
bool is_ours(const std::string& name) {
  constexpr std::size_t kDigits = 16;
  constexpr std::size_t kStart = sizeof(kPrefix) - 1;
  return name.size() == kStart + kDigits + sizeof(kSuffix) - 1 &&
         name.starts_with(kPrefix) && name.ends_with(kSuffix) &&
         name.find_first_not_of("0123456789abcdef", kStart) == kStart + kDigits;
}

// What a file's metadata says of it.
PrefixSpill::File described(const fs::path& path,
                            const CacheMetadata& metadata) {
  PrefixSpill::File file;
  auto origin = origin_in(metadata);
  auto key = metadata.find(kKey);
  auto cuttable = metadata.find(kCuttable);
  if (!origin || !origin->tokens || key == metadata.end() ||
      cuttable == metadata.end()) {
    throw Error(ErrorKind::format, "it isn't a file of a prefix store");
  }
  return {.path = path,
          .key_hash = key->second,
          .tokens = *origin->tokens,
          .cuttable = cuttable->second == "yes",
          .num_bytes = fs::file_size(path)};
}

void log_drop(const fs::path& path, const std::string& why) {
  log_warning("the spilled prefix " + path.string() + " is dropped: " + why);
}

}  // namespace

PrefixSpill::PrefixSpill(fs::path folder, std::uint64_t max_bytes)
    : folder_(std::move(folder)), max_bytes_(max_bytes) {
  std::vector<std::pair<fs::file_time_type, fs::path>> found;
  try {
    if (fs::create_directories(folder_)) {
      fs::permissions(folder_, fs::perms::owner_all);  // prompts are private
    }
    for (const auto& entry : fs::directory_iterator(folder_)) {
      if (is_ours(entry.path().filename().string())) {
        found.emplace_back(entry.last_write_time(), entry.path());
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw Error(ErrorKind::file,
                "cannot use the spill folder " + folder_.string() + ": " +
                    error.code().message());
  }
  std::ranges::sort(found);
  for (const auto& [_, path] : found) {
    adopt(path);
  }
}

void PrefixSpill::adopt(const fs::path& path) {
  try {
    CacheMetadata metadata;
    for (const auto& [key, value] : read_safetensors_header(path).metadata) {
      if (key.starts_with("0.")) {
        metadata[key.substr(2)] = value;
      }
    }
    add(described(path, metadata));
  } catch (const std::exception& error) {
    log_drop(path, error.what());
    drop(path);
  }
}

void PrefixSpill::add(File file) {
  num_bytes_ += file.num_bytes;
  files_.push_front(std::move(file));
  while (num_bytes_ > max_bytes_) {
    drop(files_.back().path);
  }
}

void PrefixSpill::drop(const fs::path& path) {
  std::error_code ignored;
  fs::remove(path, ignored);
  auto file = std::ranges::find(files_, path, &File::path);
  if (file != files_.end()) {
    num_bytes_ -= file->num_bytes;
    files_.erase(file);
  }
}

void PrefixSpill::write(const std::string& key,
                        const std::vector<int>& tokens,
                        const PromptCache& cache,
                        bool cuttable) {
  const std::string key_hash = hash_of(key);
  for (const File& file : files_) {
    bool begins_so =
        common_length(file.tokens, tokens) == static_cast<int>(tokens.size());
    bool same = file.tokens.size() == tokens.size() || file.cuttable;
    if (file.key_hash == key_hash && begins_so && same) {
      return;
    }
  }
  const fs::path temporary =
      folder_ / ("new-" + key_hash.substr(0, 16) + kSuffix);
  try {
    CacheMetadata metadata = metadata_of({.tokens = tokens}, cache);
    metadata[kKey] = key_hash;
    metadata[kCuttable] = cuttable ? "yes" : "no";
    save_prompt_cache(temporary, cache, metadata);
    fs::path path = folder_ / name_for_content_of(temporary);
    fs::rename(temporary, path);
    add({.path = path,
         .key_hash = key_hash,
         .tokens = tokens,
         .cuttable = cuttable,
         .num_bytes = fs::file_size(path)});
  } catch (const std::exception& error) {
    log_warning("a prefix can't be spilled: " + std::string(error.what()));
    std::error_code ignored;
    fs::remove(temporary, ignored);
  }
}

const PrefixSpill::File* PrefixSpill::best(const std::string& key,
                                           std::span<const int> tokens,
                                           int least_tokens,
                                           int most_tokens) {
  const std::string key_hash = hash_of(key);
  const File* best = nullptr;
  for (const File& file : files_) {
    if (file.key_hash != key_hash) {
      continue;
    }
    const int size = static_cast<int>(file.tokens.size());
    int usable = std::min(common_length(file.tokens, tokens), most_tokens);
    if (!file.cuttable && usable < size) {
      continue;
    }
    if (usable > least_tokens) {
      least_tokens = usable;
      best = &file;
    }
  }
  return best;
}

std::optional<PromptCache> PrefixSpill::read(const File& file) {
  const fs::path path = file.path;
  try {
    if (name_for_content_of(path) != path.filename()) {
      throw Error(ErrorKind::format, "its content has changed");
    }
    auto [cache, metadata] = load_prompt_cache(path);
    File found = described(path, metadata);
    if (found.key_hash != file.key_hash || found.tokens != file.tokens) {
      throw Error(ErrorKind::format, "it isn't what it was");
    }
    PrefixLayout(cache, static_cast<int>(found.tokens.size()));
    auto used = std::ranges::find(files_, path, &File::path);
    files_.splice(files_.begin(), files_, used);
    return std::move(cache);
  } catch (const std::exception& error) {
    log_drop(path, error.what());
    drop(path);
    return std::nullopt;
  }
}

}  // namespace mlxlm
