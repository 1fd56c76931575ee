#include "nn/attention.h"

#include <array>

#include <mlx/mlx.h>

#include "cache/mask.h"

namespace mlxlm::nn {

mx::array Attention::operator()(const mx::array& x,
                                const kernels::Norm* norm,
                                Cache* cache,
                                const Residual& residual) const {
  const auto& table = kernels::table();
  const std::array<const kernels::Linear*, 3> projections{&q, &k, &v};
  auto qkv = table.norm_linear(x, norm, projections);

  const int offset = cache != nullptr ? cache->offset() : 0;
  std::optional<kernels::Rope> turn;
  if (rope != nullptr) turn = rope->at(x.shape(1), offset);
  const kernels::Rope* rope_now = turn ? &*turn : nullptr;
  auto optional = [](const std::optional<kernels::Norm>& n) {
    return n ? &*n : nullptr;
  };
  auto queries =
      table.norm_rope(qkv[0], num_heads, optional(q_norm), rope_now, offset);
  auto keys =
      table.norm_rope(qkv[1], num_kv_heads, optional(k_norm), rope_now, offset);
  auto values = table.norm_rope(qkv[2], num_kv_heads, nullptr, nullptr, 0);

  auto out = cache != nullptr
                 ? cache->attend(queries, keys, values, spec)
                 : attend_without_cache(queries, keys, values, spec);
  if (x.shape(1) > 1) out = mx::transpose(out, {0, 2, 1, 3});
  out = mx::reshape(out, {x.shape(0), x.shape(1), -1});
  return table.linear_residual(
      out, o, residual.post_norm, residual.stream, residual.scale);
}

}  // namespace mlxlm::nn
