// libFuzzer on the cache file loader: cmake --preset fuzz, then
// build/fuzz/tests/fuzz/cache_file_fuzz -max_total_time=60 CORPUS
// (the corpus may be empty; cache_file_replay_test writes one where
// MLXLM_FUZZ_CORPUS names a folder).
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <unistd.h>

#include "core/file.h"
#include "tests/fuzz/cache_file_case.h"
#include "tests/support/temporary_folder.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  static const mlxlm::TemporaryFolder folder;
  auto path = folder / "cache.safetensors";
  mlxlm::write_file_atomically(
      path, std::string_view(reinterpret_cast<const char*>(data), size));
  mlxlm::run_cache_file_case(path);
  return 0;
}
