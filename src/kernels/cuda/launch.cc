#include "kernels/cuda/launch.h"

#include <map>
#include <mutex>

#include "kernels/cuda/sources.h"

namespace mlxlm::kernels::cuda {
namespace {

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
                              std::string(k_common) + call.header,
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
