// The kernel seam: the few, large operations a decoder calls. Each has a
// reference in plain MLX that defines its meaning (reference*.cc) and may have
// faster implementations. MLX_LM_KERNELS=reference selects the former. Results
// have the dtype of x or q, whatever that of the weights.
//
// B: rows, L: tokens, D: model width, N: outputs, H: heads, Dh: head size.
#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <mlx/array.h>

#include "kernels/recurrence.h"

namespace mlxlm::kernels {

namespace mx = mlx::core;

enum class NormKind {
  rms,    // x / rms(x) * weight
  layer,  // (x - mean) / std * weight + bias
};

struct Norm {
  NormKind kind = NormKind::rms;
  std::optional<mx::array> weight;  // [D]; none: not scaled
  std::optional<mx::array> bias;    // [D], layer only
  float eps = 1e-5f;
};

// Low-rank addition to a linear layer, LoRA: x W^T + scale * (x A) B + bias.
// DoRA also multiplies each output, before the bias, by the learnt length of
// its row over the row's length.
struct LowRank {
  mx::array a;  // [K, r]; of an expert stack [E, K, r]
  mx::array b;  // [r, N]; of an expert stack [E, r, N]
  float scale = 1.0f;
  std::optional<mx::array> row_scale;  // [N]
};

// What is done to a linear layer's inputs: x times the signs, then every block
// of so many numbers through a Walsh-Hadamard matrix, normalized. The weights
// are stored for inputs like these. Method: QuaRot, arXiv:2404.00456.
struct InputRotation {
  int block = 0;    // a power of two that divides K
  mx::array signs;  // [K], -1 or 1
};

// y = x W^T + bias. Dense: weight [N, K]. Quantized: weight packed in uint32
// [N, K * bits / 32] with scales (and affine biases) [N, K / group_size].
// As an expert stack all of them have a leading [E].
struct Linear {
  mx::array weight;
  std::optional<mx::array> scales;
  std::optional<mx::array> zeros;  // the affine "biases" tensor
  std::optional<mx::array> bias;   // [N]
  // [E], nvfp4 expert stacks only: each expert's numbers are multiplied by it
  // and divided by 448 * 6, the largest scale and the largest 4-bit float.
  std::optional<mx::array> global_scale;
  int group_size = 0;
  int bits = 0;
  std::string mode = "affine";
  std::shared_ptr<const LowRank> low_rank;
  std::shared_ptr<const InputRotation> rotation;  // not of expert stacks
  // What an implementation keeps beside the weights (repacked panels).
  mutable std::shared_ptr<void> prepared;

  bool quantized() const { return scales.has_value(); }
  // Whether y is what is written above and nothing else.
  bool plain() const { return !low_rank && !rotation; }
};

enum class Activation { silu, gelu, gelu_tanh, gelu_fast, relu, relu_squared };

// Tokens that stand one after the other, the first at `offset`.
struct TokenRun {
  int num_tokens = 0;
  int offset = 0;

  bool operator==(const TokenRun&) const = default;
};

// Where the L tokens of an operation stand: in one run, or in several side by
// side, as those of different rows of a batch.
class Positions {
 public:
  Positions(int offset) : offset_(offset) {}
  // Runs of L tokens in all; they must outlive this.
  Positions(std::span<const TokenRun> runs) : runs_(runs) {}

  std::vector<TokenRun> runs(int num_tokens) const {
    if (runs_.empty()) return {{num_tokens, offset_}};
    return {runs_.begin(), runs_.end()};
  }

 private:
  int offset_ = 0;
  std::span<const TokenRun> runs_;
};

// activation(min(gate, gate_max)) * (clip(up, +-up_limit) + up_offset): what
// some models do to keep the product small.
struct GateClamp {
  float gate_max = std::numeric_limits<float>::infinity();
  float up_limit = std::numeric_limits<float>::infinity();
  float up_offset = 0.0f;
  // Softly: bend * tanh(x / bend) in place of up, and in place of the x that
  // silu multiplies by sigmoid(x) (SiTU); 0: off.
  float gate_bend = 0.0f;
  float up_bend = 0.0f;

  bool active() const {
    return std::isfinite(gate_max) || std::isfinite(up_limit) ||
           up_offset != 0.0f || gate_bend > 0.0f || up_bend > 0.0f;
  }
};

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
  int group_size = 64;
  int bits = 8;
};

struct AttentionParameters {
  float scale = 1.0f;
  float softcap = 0.0f;            // 0: off
  bool causal = true;              // the last query sees the last key
  std::optional<mx::array> mask;   // bool or additive, to [B, H, L, T]; used
                                   // instead of `causal`
  std::optional<mx::array> sinks;  // [H]
};

// One of the heads' projections of a layer: queries, keys or values.
struct HeadProjection {
  const Linear* linear = nullptr;  // [num_heads * Dh, D]
  int num_heads = 0;
  const Norm* norm = nullptr;  // may be null
  const Rope* rope = nullptr;  // may be null
};

// append_attention()'s answer, and the buffers with the new rows.
struct AppendedAttention {
  mx::array out;
  mx::array keys;
  mx::array values;
};

// What append_rows() needs of a row of a batch: where its next tokens go, and
// what they see, as for append_attention().
struct BatchRow {
  mx::array keys;    // [1, Hkv, T, Dh]
  mx::array values;  // [1, Hkv, T, Dv]
  // What must be computed before the buffers are as they should be.
  std::optional<mx::array> after;
  int num_tokens = 1;
  int at = 0;
  int num_keys = 0;
};

struct AppendedRows {
  mx::array out;
  mx::array written;  // once it is computed, the buffers have the new rows
};

// What follows attention in a layer: h = x + post(out(heads)) * scale, then
// h + post(down(activation(gate(n(h))) * up(n(h)))) * scale.
struct LayerEnd {
  const Linear* out = nullptr;
  const Norm* out_norm = nullptr;  // may be null
  const Norm* mlp_norm = nullptr;  // may be null
  const Linear* gate = nullptr;    // may be null, as in norm_gated_mlp
  const Linear* up = nullptr;
  const Linear* down = nullptr;
  const Norm* down_norm = nullptr;  // may be null
  Activation activation = Activation::silu;
  float scale = 1.0f;
};

// A stack of experts: each computes down(activation(gate(x)) * up(x)), or
// down(activation(up(x))) where gate is null.
struct Experts {
  const Linear* gate = nullptr;  // [E, F, D]
  const Linear* up = nullptr;    // [E, F, D]
  const Linear* down = nullptr;  // [E, D, F]
  Activation activation = Activation::silu;
  GateClamp clamp;  // only with a gate
};

struct Table {
  std::string name;

  // x [..., D] -> [..., D].
  mx::array (*norm)(const mx::array& x, const Norm& norm);

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

  // Norm (may be null) and rope (may be null). The norm runs over each head, or
  // over all of them together where its weight is [H * Dh]. x [B, L, H * Dh] ->
  // [B, H, L, Dh].
  mx::array (*norm_rope)(const mx::array& x,
                         int num_heads,
                         const Norm* norm,
                         const Rope* rope,
                         const Positions& positions);

  // q [B, H, L, Dh], k [B, Hkv, T, Dh], v [B, Hkv, T, Dv] -> [B, H, L, Dv].
  mx::array (*attention)(const mx::array& q,
                         const mx::array& k,
                         const mx::array& v,
                         const AttentionParameters& parameters);
  mx::array (*quantized_attention)(const mx::array& q,
                                   const QuantizedTensor& k,
                                   const QuantizedTensor& v,
                                   const AttentionParameters& parameters);

  // The three that follow may be null: the functions below make them of the
  // others then.

  // norm_linear, then norm_rope of each. x [B, L, D], norm may be null ->
  // [B, H_i, L, Dh_i].
  std::vector<mx::array> (*norm_heads)(
      const mx::array& x,
      const Norm* norm,
      std::span<const HeadProjection> projections,
      const Positions& positions) = nullptr;

  // Writes k [B, Hkv, L, Dh] and v into the buffers keys [B, Hkv, T, Dh] and
  // values from row `at` on, and attends to their first `num_keys` rows. May
  // change the buffers in place: nobody else may read those rows of them.
  AppendedAttention (*append_attention)(const mx::array& q,
                                        const mx::array& k,
                                        const mx::array& v,
                                        const mx::array& keys,
                                        const mx::array& values,
                                        int at,
                                        int num_keys,
                                        const AttentionParameters& parameters) =
      nullptr;

  // append_attention() for the rows of a batch, whose tokens lie one row after
  // the other in q [1, H, L, Dh], k and v, at once and always in place: the
  // buffers stay the same arrays. Without a mask. May be null, and gives none
  // where it isn't made for these arrays.
  std::optional<AppendedRows> (*append_rows)(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      std::span<const BatchRow> rows,
      const AttentionParameters& parameters) = nullptr;

  // float32 -> float16; numbers too large for that become its largest. May be
  // null.
  mx::array (*to_half)(const mx::array& x) = nullptr;

  // [B, H, T_i, D] -> [B, H, sum of T_i, D]. May be null.
  mx::array (*concatenate_tokens)(const std::vector<mx::array>& parts) =
      nullptr;

  // heads [B, H, L, Dv] as attention leaves them, x [B, L, D] -> [B, L, D].
  mx::array (*finish_layer)(const mx::array& heads,
                            const mx::array& x,
                            const LayerEnd& end) = nullptr;

  // The sum of the chosen experts' answers, each times its score. x [B, L, D],
  // indices and scores [B, L, k] -> [B, L, D].
  mx::array (*expert_mlp)(const mx::array& x,
                          const Experts& experts,
                          const mx::array& indices,
                          const mx::array& scores);

  // See recurrence.h. x [B, T, C], state [B, K - 1, C]: the inputs before ->
  // [B, T, C].
  Scanned (*causal_conv)(const mx::array& x,
                         const CausalConv& conv,
                         const mx::array& state);
  // State [B, H, Dv, Dk] -> [B, T, H, Dv].
  Scanned (*matrix_scan)(const MatrixScan& scan, const mx::array& state);
  // State [B, C, N] -> [B, T, C].
  Scanned (*selective_scan)(const SelectiveScan& scan, const mx::array& state);
  // y = decay * (y of the token before, at first the state) + x. x and decay
  // [B, T, C], state [B, C] -> [B, T, C]; the new state is the last y.
  Scanned (*decayed_sum)(const mx::array& x,
                         const mx::array& decay,
                         const mx::array& state);

  // Final norm (may be null) and vocabulary projection. x [B, L, D] ->
  // [B, L, V].
  mx::array (*head)(const mx::array& x, const Norm* norm, const Linear& linear);

  // logits - log(sum(exp(logits))) along the last axis.
  mx::array (*log_softmax)(const mx::array& logits);
  // The first index of the largest along the last axis, uint32.
  mx::array (*argmax)(const mx::array& x);

  // Both may be null. prepare() makes an implementation's own form of the
  // weights and lets go of the arrays: those in `linear` are remade when
  // somebody evaluates them. embed() reads rows of a prepared table: tokens
  // [...] ->
  // [..., K] float32.
  void (*prepare)(Linear& linear) = nullptr;
  mx::array (*embed)(const Linear& table, const mx::array& tokens) = nullptr;
};

std::vector<mx::array> norm_heads(const Table& table,
                                  const mx::array& x,
                                  const Norm* norm,
                                  std::span<const HeadProjection> projections,
                                  const Positions& positions);

AppendedAttention append_attention(const Table& table,
                                   const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const mx::array& keys,
                                   const mx::array& values,
                                   int at,
                                   int num_keys,
                                   const AttentionParameters& parameters);

mx::array to_half(const Table& table, const mx::array& x);

mx::array concatenate_tokens(const Table& table,
                             const std::vector<mx::array>& parts);

mx::array finish_layer(const Table& table,
                       const mx::array& heads,
                       const mx::array& x,
                       const LayerEnd& end);

// The weight [N, K] (or [E, N, K]) in float32.
mx::array dequantized_weight(const Linear& linear);

// The function in plain MLX.
mx::array activate(const mx::array& x, Activation activation);

// As described there, or from the basis of the weights `back`. x [..., K].
mx::array rotate(const mx::array& x,
                 const InputRotation& rotation,
                 bool back = false);

// GateClamp's formula in plain MLX. gate, up [..., F] -> [..., F].
mx::array clamped_gate(const mx::array& gate,
                       const mx::array& up,
                       Activation activation,
                       const GateClamp& clamp);

// How the CPU multiplies with quantized weights: exact with float32
// activations, fast with activations rounded to integers of 16 bits, fastest
// with 8 bits (docs/PERFORMANCE.md). See keeps_halves(), too.
enum class CpuMode { exact, fast, fastest };

// Of the environment variable MLX_LM_CPU_MODE at first; throws Error{argument}
// if that names none.
CpuMode cpu_mode();
void set_cpu_mode(CpuMode mode);

// Whether table() would have float32 keys and values kept in float16: those of
// the CPU in all modes but exact.
bool keeps_halves();

// exact, fast or fastest; none for other names.
std::optional<CpuMode> cpu_mode_named(std::string_view name);

// The table in use: the fastest for the default device, or the one that the
// environment variable MLX_LM_KERNELS names. Throws Error{argument} if there is
// none of that name.
const Table& table();

// A table by name; null if there is none or this machine can't run it.
const Table* find_table(std::string_view name);

// The mask of `num_queries` tokens, the first at position `first_query`, over
// keys 0 to num_keys - 1: bool [num_queries, num_keys], true where the key is
// at or before the query and, if window_tokens > 0, among the newest
// window_tokens up to it.
mx::array causal_mask(int num_queries,
                      int num_keys,
                      int first_query,
                      int window_tokens = 0);

}  // namespace mlxlm::kernels
