#include "nn/attention.h"

#include <mlx/mlx.h>

#include "cache/mask.h"

namespace mlxlm::nn {

mx::array Attention::attend(const mx::array& x,
                            const kernels::Norm* norm,
                            Cache* cache) const {
  const int offset = cache != nullptr ? cache->offset() : 0;
  std::optional<kernels::Rope> turn;
  if (rope != nullptr) turn = rope->at(x.shape(1), offset);
  const kernels::Rope* rope_now = turn ? &*turn : nullptr;
  auto optional = [](const std::optional<kernels::Norm>& n) {
    return n ? &*n : nullptr;
  };
  const kernels::HeadProjection projections[] = {
      {&q, num_heads, optional(q_norm), rope_now},
      {&k, num_kv_heads, optional(k_norm), rope_now},
      {&v, num_kv_heads, nullptr, nullptr}};
  auto qkv =
      kernels::norm_heads(kernels::table(), x, norm, projections, offset);
  return cache != nullptr ? cache->attend(qkv[0], qkv[1], qkv[2], spec)
                          : attend_without_cache(qkv[0], qkv[1], qkv[2], spec);
}

mx::array Attention::operator()(const mx::array& x,
                                const kernels::Norm* norm,
                                Cache* cache,
                                const Residual& residual) const {
  auto out = attend(x, norm, cache);
  if (x.shape(1) > 1) out = mx::transpose(out, {0, 2, 1, 3});
  out = mx::reshape(out, {x.shape(0), x.shape(1), -1});
  return kernels::table().linear_residual(
      out, o, residual.post_norm, residual.stream, residual.scale);
}

}  // namespace mlxlm::nn
