// A folder of prefixes that had to leave memory: prompt-cache files that are
// verified before they are used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <mlxlm/cache.h>

namespace mlxlm {

class PrefixSpill {
 public:
  struct File {
    std::filesystem::path path;  // its name holds a checksum of the content
    std::string key_hash;
    std::vector<int> tokens;
    bool cuttable = false;  // any part of the tokens can be had, not only all
    std::uint64_t num_bytes = 0;
  };

  // Takes over what an earlier process left there. Throws Error{file} if the
  // folder can't be made or read.
  PrefixSpill(std::filesystem::path folder, std::uint64_t max_bytes);

  // Writes a cache that has read `tokens`, unless it is there already; the
  // files not used for longest make room. A fault is logged: nothing is
  // written then.
  void write(const std::string& key,
             const std::vector<int>& tokens,
             const PromptCache& cache,
             bool cuttable);

  // The file that saves most of reading `tokens`, more than `least_tokens` and
  // `most_tokens` at most; null if there is none. Valid until the next call.
  const File* best(const std::string& key,
                   std::span<const int> tokens,
                   int least_tokens,
                   int most_tokens);

  // Its cache. None if the file is damaged or gone: it is dropped, and the log
  // says so.
  std::optional<PromptCache> read(const File& file);

  std::uint64_t nbytes() const { return num_bytes_; }
  std::size_t count() const { return files_.size(); }

 private:
  void adopt(const std::filesystem::path& path);
  void add(File file);
  void drop(const std::filesystem::path& path);

  std::filesystem::path folder_;
  std::uint64_t max_bytes_;
  std::list<File> files_;  // the one used last comes first
  std::uint64_t num_bytes_ = 0;
};

}  // namespace mlxlm
