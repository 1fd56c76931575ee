#include "kernels/cuda/launch.h"

#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>

#include "core/environment.h"
#include "core/file.h"
#include "kernels/cuda/sources.h"

namespace mlxlm::kernels::cuda {
namespace {

// MLX hashes a kernel's text at every call, so that it only names a file with
// the long part; where none can be written, it holds all.
std::string header_of(const char* kernel_text) {
  const std::string text = std::string(k_common) + kernel_text;
  const auto folder =
      user_cache_folder(process_environment) / "mlx-lm" / "cuda";
  if (!folder.is_absolute()) return text;
  std::ostringstream name;
  name << std::hex << std::hash<std::string>{}(text) << ".cuh";
  const auto path = folder / name.str();
  try {
    if (!file_exists(path) || read_file(path) != text) {
      std::filesystem::create_directories(folder);
      write_file_atomically(path, text);
    }
  } catch (const std::exception&) {
    return text;
  }
  return "#include \"" + path.string() + "\"\n";
}

// A kernel takes the same inputs and the same body at each call of its key.
std::string key_of(const Launch& call) {
  std::string key = call.name;
  for (const auto& [name, value] : call.inputs) key += ' ' + name;
  return key + ' ' + std::to_string(call.shared_bytes);
}

const mx::fast::CustomKernelFunction& kernel_of(const Launch& call) {
  static std::mutex mutex;
  static std::map<std::string, mx::fast::CustomKernelFunction> kernels;
  std::lock_guard lock(mutex);
  auto [place, is_new] = kernels.try_emplace(key_of(call));
  if (is_new) {
    std::vector<std::string> input_names;
    for (const auto& [name, value] : call.inputs) input_names.push_back(name);
    place->second =
        mx::fast::cuda_kernel(call.name,
                              input_names,
                              call.output_names,
                              "  using namespace mlxlm;\n" + call.body,
                              header_of(call.header),
                              call.copy_strided_inputs,
                              call.shared_bytes);
  }
  return place->second;
}

}  // namespace

std::vector<mx::array> launch(const Launch& call) {
  std::vector<mx::array> inputs;
  inputs.reserve(call.inputs.size());
  for (const auto& [name, value] : call.inputs) inputs.push_back(value);
  return kernel_of(call)(
      inputs,
      call.output_shapes,
      call.output_dtypes,
      {call.blocks_x * call.threads, call.blocks_y, call.blocks_z},
      {call.threads, 1, 1},
      call.constants,
      std::nullopt,
      false,
      {});
}

}  // namespace mlxlm::kernels::cuda
