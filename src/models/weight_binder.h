// Takes a checkpoint's tensors by name for a model's parts, checks each, and
// reports at the end everything that is missing, wrong or left over.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "load/checkpoint.h"
#include "load/faults.h"
#include "models/arch_spec.h"

namespace mlxlm {

class WeightBinder {
 public:
  // Small tensors (norms, biases) are brought to `activation_dtype`, large ones
  // stay as they are.
  WeightBinder(Checkpoint& checkpoint, mx::Dtype activation_dtype);

  // The tensor of exactly this shape; zeros where it is missing or wrong, which
  // finish() will report.
  mx::array tensor(const std::string& name, const mx::Shape& shape);

  // [num_outputs, num_inputs], dense or quantized.
  kernels::Linear linear(const std::string& path,
                         int num_outputs,
                         int num_inputs,
                         bool bias = false);

  // A stack of these, [num_experts, num_outputs, num_inputs].
  kernels::Linear expert_stack(const std::string& path,
                               int num_experts,
                               int num_outputs,
                               int num_inputs);

  kernels::Norm norm(const std::string& path, int size, const NormSpec& spec);

  // Throws Error{weights} with all faults; tensors nobody asked for are one
  // unless `strict` is off.
  void finish(bool strict);

  // Everything taken so far, by name.
  std::vector<Parameter> parameters() const;

 private:
  enum class Content { values, packed, scales };

  mx::array take(const std::string& name,
                 const mx::Shape& shape,
                 Content content);
  kernels::Linear matrix(const std::string& path, mx::Shape shape, bool bias);
  void quantize(kernels::Linear& linear,
                const std::string& path,
                const Quantization& quantization,
                mx::Shape shape);

  Checkpoint& checkpoint_;
  mx::Dtype activation_dtype_;
  std::vector<Parameter> taken_;
  std::unordered_set<std::string> taken_names_;
  Faults faults_;
};

}  // namespace mlxlm
