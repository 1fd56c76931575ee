// libFuzzer on the cache file loader: see scripts/fuzz.
//
//   cache_file_fuzz -max_total_time=60 FOLDER
//
// begins with what is in the folder, or, where that is empty, with good files.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "core/file.h"
#include "tests/fuzz/cache_file_case.h"
#include "tests/fuzz/cache_file_seeds.h"
#include "tests/fuzz/damage.h"
#include "tests/support/temporary_folder.h"

namespace fs = std::filesystem;

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data,
                                        std::size_t size,
                                        std::size_t max_size);

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  const char* folder = (*argv)[*argc - 1];
  if (*argc < 2 || !fs::is_directory(folder) || !fs::is_empty(folder)) {
    return 0;
  }
  int number = 0;
  for (const auto& seeds :
       {mlxlm::seeds_of_all_kinds(), mlxlm::seeds_of_the_toy_model()}) {
    for (const auto& cache : seeds) {
      mlxlm::save_as_seed(fs::path(folder) / std::to_string(++number), cache);
    }
  }
  return 0;
}

// Half of the time such damage as leaves the file's structure intact.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data,
                                               std::size_t size,
                                               std::size_t max_size,
                                               unsigned int seed) {
  if (seed % 2 == 0) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  std::string file(reinterpret_cast<const char*>(data), size);
  file = mlxlm::damaged(file, seed);
  file.resize(std::min(file.size(), max_size));
  std::ranges::copy(file, data);
  return file.size();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data,
                                      std::size_t size) {
  static const mlxlm::TemporaryFolder folder;
  static const fs::path path = folder / "cache.safetensors";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data),
             static_cast<std::streamsize>(size));
  mlxlm::run_cache_file_case(path);
  return 0;
}
