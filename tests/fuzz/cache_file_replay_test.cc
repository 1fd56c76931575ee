// The cache file loader on thousands of damaged files, the same ones each time:
// what libFuzzer does, without it.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/cache_test_support.h"
#include "cache/chunked_cache.h"
#include "cache/concatenate_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "core/file.h"
#include "tests/fuzz/cache_file_case.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

constexpr int kFilesPerSeed = 250;

// A layer with a few tokens, as little data as a kind can have.
CachePtr filled(CachePtr cache) {
  Sequence s(6, 32);
  auto read = [&](Cache& part) {
    if (part.capabilities().attends) {
      s.attend(part, 0, 4);
      s.attend(part, 4, 1);
    }
  };
  if (auto* list = dynamic_cast<CacheList*>(cache.get())) {
    for (std::size_t i = 0; i < list->count(); ++i) {
      read(*(*list)[i]);
    }
  } else {
    read(*cache);
  }
  return cache;
}

std::vector<PromptCache> seeds() {
  auto arrays = std::make_shared<ArraysCache>(2, std::vector<int>{1});
  arrays->set(0, mx::ones({1, 3}));
  std::vector<PromptCache> caches{
      {filled(make_rotating_cache(3))},
      {filled(make_rotating_cache(9, 2))},
      {filled(make_rotating_cache(3, 1, bits(4)))},
      {filled(make_concatenate_cache())},
      {filled(make_chunked_cache(2))},
      {arrays},
      {filled(
          make_cache_list({make_concatenate_cache(), make_rotating_cache(3)}))},
      {make_kv_cache(), make_quantized_cache({8, 3, 32})},
      // Buffers of 256 rows: larger files.
      {filled(make_kv_cache())},
      {filled(make_quantized_cache({8, 3, 32}))},
  };
  return caches;
}

class Damage {
 public:
  explicit Damage(std::uint32_t seed) : random_(seed) {}

  // A file with some of its bytes, numbers or its end changed. The header's
  // length stays right most of the time, so that more than that is tested.
  std::string apply(std::string file) {
    std::uint64_t header_size = 0;
    std::memcpy(&header_size, file.data(), sizeof(header_size));
    std::size_t end = 8 + static_cast<std::size_t>(header_size);
    for (unsigned i = below(4) + 1; i > 0; --i) {
      switch (below(8)) {
        case 0:  // cut
          file.resize(below(file.size()) + 1);
          return file;
        case 1:  // anywhere
          file[below(file.size())] = static_cast<char>(below(256));
          break;
        case 2:  // the header's length
          file[below(8)] = static_cast<char>(below(256));
          break;
        case 3:  // a number of the data, as int32
          set_number(file, end);
          break;
        default:
          change_header(file, end);
      }
    }
    return file;
  }

 private:
  unsigned below(std::size_t limit) {
    return static_cast<unsigned>(random_() % std::max<std::size_t>(limit, 1));
  }

  void set_number(std::string& file, std::size_t data) {
    constexpr int kNumbers[] = {
        -1, 0, 1, 2, 3, 4, 5, 31, 32, 255, 1 << 30, 2147483647};
    // Numbers come last: they are the smallest tensors.
    std::size_t from =
        file.size() - std::min<std::size_t>(file.size() - data, 48);
    if (from + 4 > file.size()) {
      return;
    }
    std::size_t at = from + below((file.size() - from) / 4) * 4;
    int value = kNumbers[below(std::size(kNumbers))];
    std::memcpy(file.data() + at, &value, sizeof(value));
  }

  void change_header(std::string& file, std::size_t end) {
    end = file.find_last_not_of(' ', end - 1) + 1;  // the padding tells nothing
    std::size_t at = 8 + below(end - 8);
    while (at < end && !is_word(file[at])) {
      ++at;
    }
    if (at == end) {
      return;
    }
    constexpr char kCharacters[] = "0123456789-.,:\"[]{}eKVCache ";
    file[at] =
        std::isdigit(static_cast<unsigned char>(file[at])) != 0 && below(4) != 0
            ? static_cast<char>('0' + below(10))
            : kCharacters[below(std::size(kCharacters) - 1)];
  }

  static bool is_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0;
  }

  std::mt19937 random_;
};

TEST(CacheFileReplay, DamagedFilesAreRefusedOrWork) {
  TemporaryFolder folder;
  const char* corpus = std::getenv("MLXLM_FUZZ_CORPUS");
  std::uint32_t seed = 0;
  int num_accepted = 0;
  for (const PromptCache& cache : seeds()) {
    std::string path = folder / "cache.safetensors";
    CacheMetadata metadata{{"model", "m"}};
    metadata.merge(metadata_of({.tokens = std::vector<int>{1, 2}}, cache));
    save_prompt_cache(path, cache, metadata);
    std::string good = read_file(path);
    if (corpus != nullptr) {
      write_file_atomically(
          std::filesystem::path(corpus) / std::to_string(seed), good);
    }
    EXPECT_TRUE(run_cache_file_case(path)) << describe_layers(cache);
    for (int i = 0; i < kFilesPerSeed; ++i) {
      Damage damage(++seed);
      SCOPED_TRACE("seed " + std::to_string(seed));
      std::ofstream(path, std::ios::binary) << damage.apply(good);
      num_accepted += run_cache_file_case(path) ? 1 : 0;
    }
  }
  // Damage that leaves a usable file is tested, too.
  EXPECT_GT(num_accepted, 100);
}

}  // namespace
}  // namespace mlxlm
