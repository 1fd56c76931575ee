// A decoding step of several rows as one kernel (wide_step.cuh).
#pragma once

#include <optional>
#include <vector>

#include <mlx/array.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/step_program.h"
#include "kernels/step.h"

namespace mlxlm::kernels::cuda {

class WideStep {
 public:
  static constexpr int kMostRows = 128;

  // None where the kernel doesn't do this decoder. `program` is that of a
  // single row and outlives the step's use.
  static std::optional<WideStep> make(const StepSpec& spec,
                                      const StepProgram& program);

  // What a call for so many rows begins with: the caller adds tokens "token"
  // int32 [1, N], "position" int32 [N], and "tables" (CacheTables). Its results
  // are logits float32 [1, N, V] and the positions that follow.
  Launch call(int num_rows) const;

 private:
  WideStep(const StepSpec& spec,
           const StepProgram& program,
           std::vector<OperationRecord> operations);

  int shared_bytes(int row_tile) const;

  mx::array operations_;
  mx::array barrier_;
  mx::array frequencies_;
  mx::Dtype dtype_;
  int bits_, group_size_;
  int num_layers_, num_operations_;
  int num_heads_, num_kv_heads_, head_size_;
  int rotated_;
  bool traditional_;
  int size_, largest_input_, vocabulary_;
  int most_slots_ = 1;
};

}  // namespace mlxlm::kernels::cuda
