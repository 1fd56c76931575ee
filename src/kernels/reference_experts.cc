// Mixture-of-experts in plain MLX. Method: mlx_lm/models/switch_layers.py.
#include <mlx/mlx.h>

#include "kernels/reference.h"

namespace mlxlm::kernels::reference {
namespace {

// From this many choices on, tokens are brought into the order of their
// experts, so that each expert's weights are read once.
constexpr std::size_t kSortFrom = 64;

mx::array stack_product(const mx::array& x,
                        const mx::array& stack,
                        const mx::array& indices,
                        bool sorted) {
  return mx::gather_mm(
      x, mx::astype(stack, x.dtype()), std::nullopt, indices, sorted);
}

// Expert indices[i] of the stack for each row: x [..., 1, K] -> [..., 1, N].
mx::array expert_linear(const mx::array& x,
                        const Linear& linear,
                        const mx::array& indices,
                        bool sorted) {
  auto y = linear.quantized()
               ? mx::astype(mx::gather_qmm(x,
                                           linear.weight,
                                           *linear.scales,
                                           linear.zeros,
                                           std::nullopt,
                                           indices,
                                           /*transpose=*/true,
                                           linear.group_size,
                                           linear.bits,
                                           linear.mode,
                                           linear.global_scale,
                                           sorted),
                            x.dtype())
               : stack_product(
                     x, mx::swapaxes(linear.weight, -1, -2), indices, sorted);
  if (linear.bias) {
    auto bias = mx::take(*linear.bias, indices, 0);
    y = mx::add(y, mx::astype(mx::expand_dims(bias, -2), x.dtype()));
  }
  if (const LowRank* low_rank = linear.low_rank.get()) {
    auto z = stack_product(x, low_rank->a, indices, sorted);
    z = stack_product(z, low_rank->b, indices, sorted);
    y = mx::add(y, mx::multiply(z, mx::array(low_rank->scale, z.dtype())));
  }
  return y;
}

mx::array run_experts(const mx::array& x,
                      const Experts& experts,
                      const mx::array& indices,
                      bool sorted) {
  auto up = expert_linear(x, *experts.up, indices, sorted);
  auto hidden = up;
  if (experts.gate != nullptr) {
    auto gate = expert_linear(x, *experts.gate, indices, sorted);
    hidden = clamped_gate(gate, up, experts.activation, experts.clamp);
  } else {
    hidden = activate(up, experts.activation);
  }
  return expert_linear(hidden, *experts.down, indices, sorted);
}

}  // namespace

mx::array expert_mlp(const mx::array& x,
                     const Experts& experts,
                     const mx::array& indices,
                     const mx::array& scores) {
  const int chosen = indices.shape(-1);
  auto rows = mx::expand_dims(x, {-2, -3});  // [B, L, 1, 1, D]
  auto y = rows;
  if (indices.size() < kSortFrom) {
    y = run_experts(rows, experts, indices, /*sorted=*/false);
  } else {
    auto flat = mx::flatten(indices);
    auto order = mx::argsort(flat);
    auto token = mx::floor_divide(order, mx::array(chosen, order.dtype()));
    auto sorted_rows = mx::take(mx::flatten(rows, 0, -3), token, 0);
    y = run_experts(sorted_rows, experts, mx::take(flat, order), true);
    y = mx::unflatten(mx::take(y, mx::argsort(order), 0), 0, indices.shape());
  }
  y = mx::squeeze(y, -2);  // [B, L, k, D]
  auto weighted =
      mx::multiply(y, mx::expand_dims(mx::astype(scores, y.dtype()), -1));
  return mx::sum(weighted, -2);
}

}  // namespace mlxlm::kernels::reference
