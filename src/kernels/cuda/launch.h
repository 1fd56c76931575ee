// Calls a kernel, which is compiled at its first use.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <mlx/mlx.h>

namespace mlxlm::kernels::cuda {

namespace mx = mlx::core;

// One call: names and values of the kernel's arguments, shapes of its outputs,
// constants of its text. Calls of equal `name`, input names, dtypes, constants,
// threads and shared bytes share a kernel.
struct Launch {
  std::string name;
  const char* header;                      // *.cuh that follow common.cuh
  std::function<std::string()> body = {};  // asked at the first call alone
  std::vector<std::pair<std::string, mx::array>> inputs = {};
  std::vector<std::string> output_names = {};
  std::vector<mx::Shape> output_shapes = {};
  std::vector<mx::Dtype> output_dtypes = {};
  std::vector<std::pair<std::string, std::variant<int, float>>> scalars = {};
  std::vector<std::pair<std::string, std::variant<int, bool, mx::Dtype>>>
      constants = {};
  int blocks_x = 1;
  int blocks_y = 1;
  int blocks_z = 1;
  int threads = 1;
  int shared_bytes = 0;
  bool copy_strided_inputs = true;
};

std::vector<mx::array> launch(const Launch& call);

// These numbers for kernels to read. Layers ask for equal ones one after the
// other and get the same array, which comes to the GPU once.
mx::array integers(const std::vector<int>& values);

// The whole text of a call's kernel, whose function has this name.
std::string source_of(const Launch& call, const std::string& function);

}  // namespace mlxlm::kernels::cuda
