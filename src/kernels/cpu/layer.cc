// The two large operations around attention as nodes of MLX's graph: norm,
// projections and rope before it; output projection and MLP after it.
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/composite.h"
#include "kernels/cpu/bind.h"
#include "kernels/cpu/layer_run.h"
#include "kernels/cpu/rope.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {

std::vector<mx::array> norm_heads(const mx::array& x,
                                  const Norm* norm,
                                  std::span<const HeadProjection> projections,
                                  const Positions& positions) {
  std::vector<const Linear*> linears;
  for (const auto& each : projections) linears.push_back(each.linear);
  if (!suits(x, linears)) {
    return composite::norm_heads(cpu_table(), x, norm, projections, positions);
  }
  const int batch = x.shape(0);
  const int tokens = x.shape(1);
  std::vector<mx::array> inputs{x};
  auto bound = bind_heads(norm, projections, inputs);
  std::vector<HostOutput> outputs;
  for (std::size_t i = 0; i < projections.size(); ++i) {
    const int heads = projections[i].num_heads;
    const int width = bound.heads[i].weights->matrix().num_rows;
    outputs.push_back({{batch, heads, tokens, width / heads}, mx::float32});
    bound.heads[i].rope = rope_table(projections[i].rope, positions, tokens);
  }
  return host_op("cpu_norm_heads",
                 std::move(outputs),
                 std::move(inputs),
                 [bound = std::move(bound)](auto in, auto out) {
                   run_norm_heads(bound, in, out);
                 });
}

mx::array finish_layer(const mx::array& heads,
                       const mx::array& x,
                       const LayerEnd& end) {
  std::vector<const Linear*> linears{end.out, end.up, end.down};
  if (end.gate != nullptr) linears.push_back(end.gate);
  if (!suits(x, linears) || heads.dtype() != mx::float32) {
    return composite::finish_layer(cpu_table(), heads, x, end);
  }
  std::vector<mx::array> inputs{mx::contiguous(heads), x};
  auto bound = bind_end(end, inputs);
  return host_op("cpu_finish_layer",
                 {{x.shape(), mx::float32}},
                 std::move(inputs),
                 [bound = std::move(bound)](auto in, auto out) {
                   run_finish_layer(bound, in, out[0]);
                 })[0];
}

}  // namespace mlxlm::kernels::cpu
