// Prefixes that had to leave memory, and come back from files.
#include <algorithm>
#include <filesystem>
#include <mutex>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/prefix_test_support.h"
#include "core/file.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;

// What is logged while it lives.
class Log {
 public:
  Log() {
    set_log_handler([this](LogLevel, std::string_view text) {
      text_ += std::string(text) + '\n';
    });
  }
  ~Log() { set_log_handler({}); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

const Tokens kLong = counted(0, 300);

TEST(PrefixSpill, BringsBackWhatWasWritten) {
  TemporaryFolder folder;
  PrefixStore store({.spill_folder = (folder / "spill").string()});
  EXPECT_TRUE(store.spills());
  store.put("k", kLong, growing(kLong));
  store.put("w", kLong, windowed(kLong));
  store.trim_to(0);
  EXPECT_EQ(store.statistics().nbytes, 0u);
  EXPECT_EQ(store.statistics().num_spilled_files, 2u);
  auto match = store.find("k", first(kLong, 120) + Tokens{7, 8});
  EXPECT_EQ(match.reused_tokens, 120);
  EXPECT_EQ(tokens_in(*match.cache[0]), first(kLong, 120));
  // A state can't be cut, so this file helps whole prompts only.
  EXPECT_EQ(store.find("w", first(kLong, 120)).reused_tokens, 0);
  match = store.find("w", kLong + Tokens{1});
  EXPECT_EQ(match.reused_tokens, 300);
  PromptCache expected = windowed(kLong);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    auto rows = [&](const PromptCache& cache) {
      const auto& layer = dynamic_cast<const AttentionCache&>(*cache[i]);
      return range(layer.rows().keys.plain(), 0, layer.size());
    };
    EXPECT_TRUE(same(rows(match.cache), rows(expected)));
  }
}

TEST(PrefixSpill, ALaterStoreFindsTheFiles) {
  TemporaryFolder folder;
  PrefixStoreOptions options{.spill_folder = (folder / "spill").string()};
  {
    PrefixStore store(options);
    store.put("k", kLong, growing(kLong));
    store.put("k", first(kLong, 100), growing(first(kLong, 100)));
    store.trim_to(0);
    // The shorter one is a part of the longer one.
    EXPECT_EQ(store.statistics().num_spilled_files, 1u);
  }
  PrefixStore store(options);
  EXPECT_EQ(store.find("k2", kLong).reused_tokens, 0);
  EXPECT_EQ(store.find("k", kLong).reused_tokens, 299);
  store.trim_to(0);
  EXPECT_EQ(store.statistics().num_spilled_files, 1u);
}

TEST(PrefixSpill, FilesArePromptCachesThatNameNobody) {
  TemporaryFolder folder;
  PrefixStore store({.spill_folder = (folder / "spill").string()});
  store.put("Ada Lovelace", kLong, growing(kLong));
  store.trim_to(0);
  auto file = files_in(folder / "spill").at(0);
  auto [cache, metadata] = load_prompt_cache(file);
  EXPECT_EQ(tokens_in(*cache[0]), kLong);
  EXPECT_EQ(origin_in(metadata)->tokens, kLong);
  EXPECT_EQ(read_file(file).find("Ada"), std::string::npos);
}

TEST(PrefixSpill, DropsDamagedFilesWithANote) {
  for (bool later : {false, true}) {
    for (std::size_t place : {9u, 5000u, 12000u}) {
      SCOPED_TRACE(place);
      TemporaryFolder folder;
      PrefixStoreOptions options{.spill_folder = (folder / "spill").string()};
      auto store = std::make_unique<PrefixStore>(options);
      store->put("k", kLong, growing(kLong));
      store->trim_to(0);
      auto file = files_in(folder / "spill").at(0);
      std::string content = read_file(file);
      content.at(place) = static_cast<char>(content.at(place) ^ 0x10);
      write_file_atomically(file, content);
      Log log;
      if (later) {
        store = std::make_unique<PrefixStore>(options);
      }
      EXPECT_EQ(store->find("k", kLong).reused_tokens, 0);
      EXPECT_NE(log.text().find("is dropped"), std::string::npos);
      EXPECT_TRUE(files_in(folder / "spill").empty());
      EXPECT_EQ(store->statistics().num_spilled_files, 0u);
    }
  }
}

TEST(PrefixSpill, GoesOnWithoutAFileThatIsGone) {
  TemporaryFolder folder;
  PrefixStore store({.spill_folder = (folder / "spill").string()});
  store.put("k", kLong, growing(kLong));
  store.trim_to(0);
  fs::remove(files_in(folder / "spill").at(0));
  Log log;
  EXPECT_EQ(store.find("k", kLong).reused_tokens, 0);
  EXPECT_NE(log.text().find("is dropped"), std::string::npos);
}

TEST(PrefixSpill, StaysWithinItsBudget) {
  TemporaryFolder folder;
  constexpr std::uint64_t kBudget = 100'000;
  PrefixStore store({.spill_folder = (folder / "spill").string(),
                     .max_spill_bytes = kBudget});
  for (int i = 0; i < 6; ++i) {
    Tokens tokens = counted(1000 * i, 300);
    store.put("k", tokens, growing(tokens));
    store.trim_to(0);
    std::uint64_t sum = 0;
    for (const auto& file : files_in(folder / "spill")) {
      sum += fs::file_size(file);
    }
    EXPECT_LE(sum, kBudget);
    EXPECT_EQ(sum, store.statistics().spilled_bytes);
  }
  EXPECT_EQ(store.find("k", counted(0, 300)).reused_tokens, 0);
  EXPECT_EQ(store.find("k", counted(5000, 300)).reused_tokens, 299);
}

TEST(PrefixSpill, LeavesOtherFilesAlone) {
  TemporaryFolder folder;
  write_file_atomically(folder / "prefix-mine.safetensors", "mine");
  write_file_atomically(folder / "notes.txt", "mine");
  PrefixStore store({.spill_folder = folder.path().string()});
  EXPECT_EQ(files_in(folder.path()).size(), 2u);
  EXPECT_EQ(store.statistics().num_spilled_files, 0u);
}

TEST(PrefixSpill, RefusesAFolderThatIsAFile) {
  TemporaryFolder folder;
  write_file_atomically(folder / "file", "x");
  expect_error(ErrorKind::file, "spill folder", [&] {
    PrefixStore store({.spill_folder = (folder / "file").string()});
  });
}

}  // namespace
}  // namespace mlxlm
