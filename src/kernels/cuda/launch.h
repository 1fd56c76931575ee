// Calls a kernel that is compiled at its first use.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

namespace mlxlm::kernels::cuda {

namespace mx = mlx::core;

// One call: names and values of its inputs, shapes of its outputs, constants of
// the source. Calls of equal `name`, inputs and constants share a kernel.
struct Launch {
  std::string name;
  const char* header;  // a *.cuh that follows common.cuh
  std::string body;
  std::vector<std::pair<std::string, mx::array>> inputs;
  std::vector<std::string> output_names;
  std::vector<mx::Shape> output_shapes;
  std::vector<mx::Dtype> output_dtypes;
  std::vector<std::pair<std::string, mx::fast::TemplateArg>> constants;
  int blocks_x = 1;
  int blocks_y = 1;
  int blocks_z = 1;
  int threads = 1;
  int shared_bytes = 0;
  bool copy_strided_inputs = true;
};

std::vector<mx::array> launch(const Launch& call);

}  // namespace mlxlm::kernels::cuda
