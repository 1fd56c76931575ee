// The cache file loader on thousands of damaged files, the same ones each time:
// what libFuzzer does, without it.
#include <fstream>

#include <gtest/gtest.h>

#include "core/file.h"
#include "tests/fuzz/cache_file_case.h"
#include "tests/fuzz/cache_file_seeds.h"
#include "tests/fuzz/damage.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

void replay(const std::vector<PromptCache>& seeds,
            int files_per_seed,
            std::uint32_t seed,
            int least_accepted) {
  TemporaryFolder folder;
  int num_accepted = 0;
  for (const PromptCache& cache : seeds) {
    std::string path = folder / "cache.safetensors";
    save_as_seed(path, cache);
    std::string good = read_file(path);
    EXPECT_TRUE(run_cache_file_case(path)) << describe_layers(cache);
    for (int i = 0; i < files_per_seed; ++i) {
      SCOPED_TRACE("seed " + std::to_string(++seed));
      std::ofstream(path, std::ios::binary) << damaged(good, seed);
      num_accepted += run_cache_file_case(path) ? 1 : 0;
    }
  }
  // Damage that leaves a usable file is tested, too.
  EXPECT_GT(num_accepted, least_accepted);
}

TEST(CacheFileReplay, DamagedFilesAreRefusedOrWork) {
  replay(seeds_of_all_kinds(), 250, 0, 100);
}

TEST(CacheFileReplay, DamagedFilesAreRefusedOrGenerate) {
  replay(seeds_of_the_toy_model(), 80, 10000, 15);
}

}  // namespace
}  // namespace mlxlm
