// What mlx-lm launch tells the program.
#pragma once

#include <string>

namespace mlxlm::cli {

// A rank ended with this exit code, and has said why.
struct RanksFailed {
  int code = 1;
};

}  // namespace mlxlm::cli
