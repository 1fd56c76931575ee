// The kernel seam: the few, large operations a decoder calls. Each has a
// reference in plain MLX that defines its meaning (reference.cc) and may have
// faster implementations. MLX_LM_KERNELS=reference selects the former.
//
// B: rows, L: tokens, D: model width, N: outputs, H: heads, Dh: head size.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <mlx/array.h>

namespace mlxlm::kernels {

namespace mx = mlx::core;

enum class NormKind {
  rms,           // x / rms(x) * weight
  rms_plus_one,  // x / rms(x) * (1 + weight), Gemma
  layer,         // (x - mean) / std * weight + bias
};

struct Norm {
  NormKind kind = NormKind::rms;
  std::optional<mx::array> weight;  // [D]; none: not scaled
  std::optional<mx::array> bias;    // [D], layer only
  float eps = 1e-5f;
};

// Low-rank addition to a linear layer: y + scale * (x A) B; with `magnitude`
// as in DoRA.
struct LowRank {
  mx::array a;  // [K, r]
  mx::array b;  // [r, N]
  float scale = 1.0f;
  std::optional<mx::array> magnitude;  // [N]
};

// y = x W^T + bias. Dense: weight [N, K]. Quantized: weight packed in uint32
// [N, K * bits / 32] with scales (and affine biases) [N, K / group_size].
// As an expert stack all of them have a leading [E].
struct Linear {
  mx::array weight;
  std::optional<mx::array> scales;
  std::optional<mx::array> zeros;  // the affine "biases" tensor
  std::optional<mx::array> bias;   // [N]
  int group_size = 0;
  int bits = 0;
  std::string mode = "affine";
  std::shared_ptr<const LowRank> low_rank;
  // What an implementation keeps beside the weights (repacked panels).
  mutable std::shared_ptr<void> prepared;

  bool quantized() const { return scales.has_value(); }
};

enum class Activation { silu, gelu, gelu_tanh, gelu_fast, relu, relu_squared };

struct Rope {
  int dimensions = 0;
  bool traditional = false;
  float base = 10000.0f;
  float scale = 1.0f;              // of positions
  std::optional<mx::array> freqs;  // [dimensions / 2]; replaces base
  float input_scale = 1.0f;        // of the rotated part (yarn, longrope)
};

// Keys or values as a quantized cache holds them.
struct QuantizedTensor {
  mx::array data;    // [B, Hkv, T, Dh * bits / 32] uint32
  mx::array scales;  // [B, Hkv, T, Dh / group_size]
  mx::array zeros;
};

struct AttentionParameters {
  float scale = 1.0f;
  float softcap = 0.0f;            // 0: off
  bool causal = true;              // the last query sees the last key
  std::optional<mx::array> mask;   // bool or additive, to [B, H, L, T]; used
                                   // instead of `causal`
  std::optional<mx::array> sinks;  // [H]
};

struct Table {
  std::string name;

  // norm may be null. x [B, L, D] -> one [B, L, N_i] per linear.
  std::vector<mx::array> (*norm_linear)(const mx::array& x,
                                        const Norm* norm,
                                        std::span<const Linear* const> linears);

  // residual + post_norm(x W^T + b) * scale; post_norm and residual may be
  // null. x [B, L, K] -> [B, L, N].
  mx::array (*linear_residual)(const mx::array& x,
                               const Linear& linear,
                               const Norm* post_norm,
                               const mx::array* residual,
                               float scale);

  // activation(n(x) Wg^T) * (n(x) Wu^T), or activation(n(x) Wu^T) where gate
  // is null; norm may be null. x [B, L, D] -> [B, L, F].
  mx::array (*norm_gated_mlp)(const mx::array& x,
                              const Norm* norm,
                              const Linear* gate,
                              const Linear& up,
                              Activation activation);

  // Per-head norm (may be null) and rope (may be null) at positions
  // offset, offset + 1, ... x [B, L, H * Dh] -> [B, H, L, Dh].
  mx::array (*norm_rope)(const mx::array& x,
                         int num_heads,
                         const Norm* norm,
                         const Rope* rope,
                         int offset);

  // q [B, H, L, Dh], k [B, Hkv, T, Dh], v [B, Hkv, T, Dv] -> [B, H, L, Dv].
  mx::array (*attention)(const mx::array& q,
                         const mx::array& k,
                         const mx::array& v,
                         const AttentionParameters& parameters);
  mx::array (*quantized_attention)(const mx::array& q,
                                   const QuantizedTensor& k,
                                   const QuantizedTensor& v,
                                   const AttentionParameters& parameters,
                                   int group_size,
                                   int bits);

  // Expert e of `linear` for each row: x [..., K] with indices [..., k] ->
  // [..., k, N] (gather_mm / gather_qmm; `sorted` as there).
  mx::array (*expert_linear)(const mx::array& x,
                             const Linear& linear,
                             const mx::array& indices,
                             bool sorted);

  // Final norm (may be null) and vocabulary projection. x [B, L, D] ->
  // [B, L, V].
  mx::array (*head)(const mx::array& x, const Norm* norm, const Linear& linear);
};

// The table in use: the fastest for the default device, or the one that the
// environment variable MLX_LM_KERNELS names.
const Table& table();

}  // namespace mlxlm::kernels
