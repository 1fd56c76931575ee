#include "kernels/reference.h"

#include <cmath>
#include <numbers>

#include <mlx/mlx.h>

#include "kernels/shapes.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace reference {
namespace {

mx::array scalar_like(float value, const mx::array& x) {
  return mx::array(value, x.dtype());
}

mx::array matrix_product(const mx::array& x, const Linear& linear) {
  if (linear.quantized()) {
    return mx::astype(mx::quantized_matmul(x,
                                           linear.weight,
                                           *linear.scales,
                                           linear.zeros,
                                           /*transpose=*/true,
                                           linear.group_size,
                                           linear.bits,
                                           linear.mode),
                      x.dtype());
  }
  return mx::matmul(x, mx::transpose(mx::astype(linear.weight, x.dtype())));
}

// By the table in use, which may be faster.
mx::array rotated_product(const mx::array& x, const Linear& linear) {
  auto plain = linear;
  plain.rotation.reset();
  plain.low_rank.reset();
  plain.bias.reset();
  auto y = table().linear_residual(
      rotate(x, *linear.rotation), plain, nullptr, nullptr, 1.0f);
  linear.prepared = plain.prepared;
  return y;
}

mx::array norm(const mx::array& x, const Norm& norm) {
  auto y = norm.kind == NormKind::rms
               ? mx::fast::rms_norm(x, norm.weight, norm.eps)
               : mx::fast::layer_norm(x, norm.weight, norm.bias, norm.eps);
  return mx::astype(y, x.dtype());
}

mx::array norm_if(const mx::array& x, const Norm* optional) {
  return optional != nullptr ? norm(x, *optional) : x;
}

std::vector<mx::array> norm_linear(const mx::array& x,
                                   const Norm* optional_norm,
                                   std::span<const Linear* const> linears) {
  auto n = norm_if(x, optional_norm);
  std::vector<mx::array> result;
  result.reserve(linears.size());
  for (const Linear* each : linears) result.push_back(linear(n, *each));
  return result;
}

mx::array linear_residual(const mx::array& x,
                          const Linear& weights,
                          const Norm* post_norm,
                          const mx::array* residual,
                          float scale) {
  auto y = norm_if(linear(x, weights), post_norm);
  if (scale != 1.0f) y = mx::multiply(y, scalar_like(scale, y));
  return residual != nullptr ? mx::add(*residual, y) : y;
}

mx::array norm_gated_mlp(const mx::array& x,
                         const Norm* optional_norm,
                         const Linear* gate,
                         const Linear& up,
                         Activation activation) {
  auto n = norm_if(x, optional_norm);
  if (gate == nullptr) return activate(linear(n, up), activation);
  return mx::multiply(activate(linear(n, *gate), activation), linear(n, up));
}

// The first `dimensions` of the last axis times the rope's input scale.
mx::array scale_rotated(const mx::array& x, const Rope& rope) {
  if (rope.input_scale == 1.0f) return x;
  auto factor = scalar_like(rope.input_scale, x);
  if (rope.dimensions == x.shape(-1)) return mx::multiply(x, factor);
  auto parts = mx::split(x, mx::Shape{rope.dimensions}, -1);
  return mx::concatenate({mx::multiply(parts[0], factor), parts[1]}, -1);
}

// x [B, H, L, Dh], its first token at `offset`.
mx::array rotated(const mx::array& x, const Rope& rope, int offset) {
  return mx::fast::rope(
      scale_rotated(x, rope),
      rope.dimensions,
      rope.traditional,
      rope.freqs ? std::nullopt : std::optional<float>(rope.base),
      rope.scale,
      offset,
      rope.freqs);
}

mx::array norm_rope(const mx::array& x,
                    int num_heads,
                    const Norm* optional_norm,
                    const Rope* rope,
                    const Positions& positions) {
  const int rows = x.shape(0);
  const int tokens = x.shape(1);
  const int head_size = x.shape(2) / num_heads;
  const bool over_all_heads =
      optional_norm != nullptr && optional_norm->weight &&
      optional_norm->weight->shape(0) == x.shape(2) && num_heads > 1;
  auto y = over_all_heads ? norm(x, *optional_norm) : x;
  // A single token's heads already lie one after the other.
  y = tokens == 1
          ? mx::reshape(y, {rows, num_heads, 1, head_size})
          : mx::transpose(mx::reshape(y, {rows, tokens, num_heads, head_size}),
                          {0, 2, 1, 3});
  if (!over_all_heads) y = norm_if(y, optional_norm);
  if (rope == nullptr) return y;
  const auto runs = positions.runs(tokens);
  if (runs.size() == 1) return rotated(y, *rope, runs[0].offset);
  std::vector<mx::array> parts;
  int first = 0;
  for (const TokenRun& run : runs) {
    parts.push_back(rotated(
        tokens_of(y, first, first + run.num_tokens), *rope, run.offset));
    first += run.num_tokens;
  }
  return mx::concatenate(std::move(parts), 2);
}

mx::array head(const mx::array& x,
               const Norm* optional_norm,
               const Linear& weights) {
  return linear(norm_if(x, optional_norm), weights);
}

}  // namespace

mx::array linear(const mx::array& x, const Linear& linear) {
  auto y =
      linear.rotation ? rotated_product(x, linear) : matrix_product(x, linear);
  if (const LowRank* low_rank = linear.low_rank.get()) {
    auto z = mx::matmul(mx::matmul(x, mx::astype(low_rank->a, x.dtype())),
                        mx::astype(low_rank->b, x.dtype()));
    y = mx::add(y, mx::multiply(z, scalar_like(low_rank->scale, z)));
    if (low_rank->row_scale) {
      y = mx::multiply(y, mx::astype(*low_rank->row_scale, x.dtype()));
    }
  }
  return linear.bias ? mx::add(y, mx::astype(*linear.bias, x.dtype())) : y;
}

}  // namespace reference

mx::array dequantized_weight(const Linear& linear) {
  if (!linear.quantized()) return mx::astype(linear.weight, mx::float32);
  const bool affine = linear.zeros.has_value();
  auto zeros = linear.zeros;
  if (affine) zeros = mx::astype(*zeros, mx::float32);
  return mx::dequantize(
      linear.weight,
      affine ? mx::astype(*linear.scales, mx::float32) : *linear.scales,
      zeros,
      linear.group_size,
      linear.bits,
      linear.mode,
      linear.global_scale,
      mx::float32);
}

mx::array activate(const mx::array& x, Activation activation) {
  auto constant = [&](double value) {
    return mx::array(static_cast<float>(value), x.dtype());
  };
  switch (activation) {
    case Activation::silu:
      return mx::multiply(x, mx::sigmoid(x));
    case Activation::gelu: {
      auto t = mx::erf(mx::multiply(x, constant(1 / std::numbers::sqrt2)));
      return mx::multiply(mx::multiply(x, constant(0.5)),
                          mx::add(t, constant(1)));
    }
    case Activation::gelu_tanh: {
      auto cube = mx::multiply(mx::multiply(x, x), x);
      auto inner = mx::add(x, mx::multiply(cube, constant(0.044715)));
      auto t = mx::tanh(
          mx::multiply(inner, constant(std::sqrt(2 / std::numbers::pi))));
      return mx::multiply(mx::multiply(x, constant(0.5)),
                          mx::add(t, constant(1)));
    }
    case Activation::gelu_fast:
      return mx::multiply(x, mx::sigmoid(mx::multiply(x, constant(1.702))));
    case Activation::relu:
      return mx::maximum(x, constant(0));
    case Activation::relu_squared:
      return mx::square(mx::maximum(x, constant(0)));
  }
  return x;
}

mx::array rotate(const mx::array& x, const InputRotation& rotation, bool back) {
  auto y = mx::astype(x, mx::float32);
  if (!back) y = mx::multiply(y, rotation.signs);
  const float scale = 1 / std::sqrt(static_cast<float>(rotation.block));
  y = mx::hadamard_transform(mx::reshape(y, {-1, rotation.block}), scale);
  y = mx::reshape(y, x.shape());
  if (back) y = mx::multiply(y, rotation.signs);
  return mx::astype(y, x.dtype());
}

mx::array clamped_gate(const mx::array& gate,
                       const mx::array& up,
                       Activation activation,
                       const GateClamp& clamp) {
  auto limit = [&](float value) { return mx::array(value, up.dtype()); };
  auto g = std::isfinite(clamp.gate_max)
               ? mx::minimum(gate, limit(clamp.gate_max))
               : gate;
  auto u = std::isfinite(clamp.up_limit)
               ? mx::clip(up, limit(-clamp.up_limit), limit(clamp.up_limit))
               : up;
  if (clamp.up_offset != 0.0f) u = mx::add(u, limit(clamp.up_offset));
  auto bent = [&](const mx::array& x, float bend) {
    return mx::multiply(mx::tanh(mx::divide(x, limit(bend))), limit(bend));
  };
  if (clamp.up_bend > 0.0f) u = bent(u, clamp.up_bend);
  auto activated = clamp.gate_bend > 0.0f
                       ? mx::multiply(bent(g, clamp.gate_bend), mx::sigmoid(g))
                       : activate(g, activation);
  return mx::multiply(activated, u);
}

namespace {

mx::array log_softmax(const mx::array& logits) {
  return mx::subtract(logits, mx::logsumexp(logits, -1, /*keepdims=*/true));
}

mx::array argmax(const mx::array& x) { return mx::argmax(x, -1); }

}  // namespace

const Table& reference_table() {
  // Without the fused operations: those of its others define them.
  static const Table table{
      .name = "reference",
      .norm = reference::norm,
      .norm_linear = reference::norm_linear,
      .linear_residual = reference::linear_residual,
      .norm_gated_mlp = reference::norm_gated_mlp,
      .norm_rope = reference::norm_rope,
      .attention = reference::attention,
      .quantized_attention = reference::quantized_attention,
      .expert_mlp = reference::expert_mlp,
      .causal_conv = reference::causal_conv,
      .matrix_scan = reference::matrix_scan,
      .selective_scan = reference::selective_scan,
      .decayed_sum = reference::decayed_sum,
      .head = reference::head,
      .log_softmax = log_softmax,
      .argmax = argmax,
  };
  return table;
}

}  // namespace mlxlm::kernels
