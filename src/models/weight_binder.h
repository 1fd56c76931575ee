// Takes a checkpoint's tensors by name for a model's parts, checks each, and
// reports at the end everything that is missing, wrong or left over.
#pragma once

#include <map>
#include <span>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "load/adapters.h"
#include "load/checkpoint.h"
#include "load/faults.h"
#include "models/arch_spec.h"
#include "models/weight_preparation.h"

namespace mlxlm {

class WeightBinder {
 public:
  // Small tensors (norms, biases) are brought to `activation_dtype`, large ones
  // stay as they are. `adapter` (may be null) is added to the layers it names.
  WeightBinder(Checkpoint& checkpoint,
               mx::Dtype activation_dtype,
               const Adapter* adapter = nullptr);

  // The tensor of exactly this shape; zeros where it is missing or wrong, which
  // finish() will report.
  mx::array tensor(const std::string& name, const mx::Shape& shape);

  // Whole numbers from 0 to below `end`, as they are.
  mx::array indices(const std::string& name, const mx::Shape& shape, int end);

  // The tensor as a vector, whichever axes of its `size` numbers it has.
  mx::array flat_tensor(const std::string& name, int size);
  // Notes that `value`, computed from tensors, is to be evaluated; returns it.
  mx::array derive(mx::array value);

  // [num_outputs, num_inputs], dense or quantized.
  kernels::Linear linear(const std::string& path,
                         int num_outputs,
                         int num_inputs,
                         bool bias = false);

  // The rows of a linear in parts, as nn::split_rows() and, with several
  // groups, nn::split_row_groups().
  std::vector<kernels::Linear> split_rows(const kernels::Linear& whole,
                                          std::span<const int> row_counts,
                                          int num_groups = 1);

  // A table of embeddings, [num_rows, width].
  kernels::Linear embedding(const std::string& path, int num_rows, int width);

  // A stack of linears, [num_experts, num_outputs, num_inputs]; the bias is
  // [num_experts, num_outputs].
  kernels::Linear expert_stack(const std::string& path,
                               int num_experts,
                               int num_outputs,
                               int num_inputs,
                               bool bias = false);

  // The same where no adapter can apply.
  kernels::Linear matrix_stack(const std::string& path,
                               int num_matrices,
                               int num_outputs,
                               int num_inputs);

  kernels::Norm norm(const std::string& path, int size, const NormSpec& spec);
  // With a weight for each head, [num_heads, size]: one tensor, or one
  // "<path>.norms.<h>.weight" for each head.
  kernels::Norm head_norm(const std::string& path,
                          int num_heads,
                          int size,
                          const NormSpec& spec);

  // A convolution of each channel over time: [C, K, 1] or, as published by
  // transformers, [C, 1, K].
  kernels::CausalConv causal_conv(const std::string& path,
                                  int num_channels,
                                  int num_taps,
                                  bool bias = false);

  // Throws Error{weights} with all faults; tensors nobody asked for are one
  // unless `strict` is off. `num_layers` of the model.
  void finish(bool strict, int num_layers);

  // Everything taken so far, by name.
  std::vector<Parameter> parameters() const;
  // Which of it was split.
  std::vector<SplitTensor> take_splits() { return std::move(splits_); }
  // What was computed from it, still to be evaluated.
  const std::vector<mx::array>& derived() const { return derived_; }

 private:
  enum class Content { values, packed, scales, indices };

  mx::array take(const std::string& name,
                 const mx::Shape& shape,
                 Content content);
  kernels::Linear matrix(const std::string& path,
                         AdapterTarget target,
                         bool bias = false);
  kernels::Linear plain_matrix(const std::string& path, mx::Shape shape);
  mx::array norm_weight(const std::string& path,
                        const mx::Shape& shape,
                        const NormSpec& spec);
  void rotate(kernels::Linear& linear, const std::string& path, int num_inputs);
  void adapt(kernels::Linear& linear,
             const std::string& path,
             const AdapterTarget& target);
  void quantize(kernels::Linear& linear,
                const std::string& path,
                const Quantization& quantization,
                mx::Shape shape);

  Checkpoint& checkpoint_;
  mx::Dtype activation_dtype_;
  const Adapter* adapter_;
  std::map<std::string, AdapterTarget> targets_;
  std::vector<mx::array> derived_;
  std::vector<SplitTensor> splits_;
  std::vector<Parameter> taken_;
  std::unordered_set<std::string> taken_names_;
  Faults faults_;
};

}  // namespace mlxlm
