// What a process is told of those that run a model together with it, in the
// variables that mlx.launch sets:
//   ring  MLX_RANK, MLX_HOSTFILE (a file: [["10.0.0.1:5000"],
//   ["10.0.0.2:..."]]) nccl  MLX_RANK, MLX_WORLD_SIZE, NCCL_HOST_IP, NCCL_PORT
#pragma once

#include <string>

#include "core/environment.h"

namespace mlxlm {

struct RankEnvironment {
  int rank = 0;
  int size = 1;
  std::string backend;  // "ring" or "nccl"; empty: one process alone
  std::string host;     // the address of rank 0
};

// Throws Error{argument} naming the variable at fault.
RankEnvironment read_rank_environment(const Environment& environment);

}  // namespace mlxlm
