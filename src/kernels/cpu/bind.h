// Between MLX arrays and the kernels' plain pointers.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include <mlx/array.h>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/pack.h"
#include "kernels/seam.h"

namespace mlxlm::kernels::cpu {

// A float32 array's elements in row-major order; copied if they lie otherwise,
// and from float16.
class Rows {
 public:
  explicit Rows(const mx::array& x);
  Rows(Rows&&) = default;  // not copied: `data_` may be the copy's
  const float* data() const { return data_; }

 private:
  const float* data_;
  std::vector<float> copy_;
};

// A norm whose weights are inputs of an operation.
class BoundNorm {
 public:
  // Adds the weights, in float32, to the operation's inputs.
  BoundNorm(const Norm& norm, std::vector<mx::array>& inputs);
  // Normalizes x [num_rows, size] -> y, over the threads if that pays.
  void apply(std::span<const mx::array> inputs,
             const float* x,
             std::size_t num_rows,
             int size,
             float* y) const;

 private:
  NormKind kind_;
  float eps_;
  std::optional<std::size_t> weight_;  // its place among the inputs
  std::optional<std::size_t> bias_;
};

GateFunction gate_function(Activation activation);

std::optional<BoundNorm> bind(const Norm* norm, std::vector<mx::array>& inputs);

// Whether float32 activations go through packed weights here; adapters run
// unfused, beside the base weights, in plain MLX.
bool suits(const mx::array& x, std::span<const Linear* const> linears);

// The operations of more than one file.
mx::array attention(const mx::array& q,
                    const mx::array& k,
                    const mx::array& v,
                    const AttentionParameters& parameters);

mx::array quantized_attention(const mx::array& q,
                              const QuantizedTensor& k,
                              const QuantizedTensor& v,
                              const AttentionParameters& parameters);

AppendedAttention append_attention(const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const mx::array& keys,
                                   const mx::array& values,
                                   int at,
                                   int num_keys,
                                   const AttentionParameters& parameters);

mx::array to_half(const mx::array& x);
mx::array concatenate_tokens(const std::vector<mx::array>& parts);
std::optional<AppendedRows> append_rows(const mx::array& q,
                                        const mx::array& k,
                                        const mx::array& v,
                                        std::span<const BatchRow> rows,
                                        const AttentionParameters& parameters);

mx::array norm_rope(const mx::array& x,
                    int num_heads,
                    const Norm* norm,
                    const Rope* rope,
                    const Positions& positions);

std::vector<mx::array> norm_heads(const mx::array& x,
                                  const Norm* norm,
                                  std::span<const HeadProjection> projections,
                                  const Positions& positions);

mx::array finish_layer(const mx::array& heads,
                       const mx::array& x,
                       const LayerEnd& end);

mx::array expert_mlp(const mx::array& x,
                     const Experts& experts,
                     const mx::array& indices,
                     const mx::array& scores);

Scanned causal_conv(const mx::array& x,
                    const CausalConv& conv,
                    const mx::array& state);

Scanned matrix_scan(const MatrixScan& scan, const mx::array& state);

Scanned selective_scan(const SelectiveScan& scan, const mx::array& state);

Scanned decayed_sum(const mx::array& x,
                    const mx::array& decay,
                    const mx::array& state);

mx::array log_softmax(const mx::array& logits);
mx::array argmax(const mx::array& x);

}  // namespace mlxlm::kernels::cpu
