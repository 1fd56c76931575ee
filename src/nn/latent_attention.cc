#include "nn/latent_attention.h"

#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "cache/cache_list.h"
#include "cache/mask.h"
#include "nn/linear.h"

namespace mlxlm::nn {
namespace {

// The first `size` numbers of each row, and the rest.
std::vector<mx::array> split_at(const mx::array& x, int size) {
  return mx::split(x, mx::Shape{size}, -1);
}

// [B, 1, T, D] -> [B, H, T, D]
mx::array for_all_heads(const mx::array& x, int num_heads) {
  auto shape = x.shape();
  shape[1] = num_heads;
  return mx::broadcast_to(x, shape);
}

mx::array times(const mx::array& x, float factor) {
  return factor == 1.0f ? x : mx::multiply(x, mx::array(factor, x.dtype()));
}

}  // namespace

std::vector<kernels::Linear*> LatentAttention::linears() {
  std::vector<kernels::Linear*> all{&q, &kv_down, &o};
  if (q_down) all.push_back(&*q_down);
  if (kv_up) all.push_back(&*kv_up);
  if (gate) all.push_back(&*gate);
  if (index) {
    for (auto* each : index->linears()) all.push_back(each);
  }
  return all;
}

LatentAttention::Projected LatentAttention::project(const mx::array& x,
                                                    const Runs& runs) const {
  const auto& table = kernels::table();
  const int tokens = x.shape(1);
  const int offset = runs[0].offset;
  const kernels::Positions positions(runs);
  std::optional<kernels::Rope> turn;
  if (rope != nullptr) turn = rope->at(runs[0].num_tokens, offset);
  auto rotate = [&](const mx::array& heads, int count) {
    return table.norm_rope(
        heads, count, nullptr, turn ? &*turn : nullptr, positions);
  };
  const std::vector<const kernels::Linear*> first{q_down ? &*q_down : &q,
                                                  &kv_down};
  auto made = table.norm_linear(x, nullptr, first);
  auto q_input = x;
  auto queries = made[0];
  if (q_down) {
    q_input = table.norm(queries, *q_norm);
    queries = table.linear_residual(q_input, q, nullptr, nullptr, 1.0f);
  }
  queries = mx::reshape(times(queries, query_factor),
                        {x.shape(0), tokens, sizes.num_heads, sizes.head()});
  auto q_parts = split_at(queries, sizes.fixed);
  auto kv_parts = split_at(made[1], sizes.rank);
  auto latent = times(table.norm(kv_parts[0], latent_norm), latent_factor);
  auto q_rotated = rotate(mx::flatten(q_parts[1], 2, 3), sizes.num_heads);
  return {
      .q_fixed = query_scale(mx::transpose(q_parts[0], {0, 2, 1, 3}), offset),
      .q_rotated = query_scale(q_rotated, offset),
      .latent = mx::expand_dims(latent, 1),
      .k_rotated = rotate(kv_parts[1], 1),
      .q_input = q_input};
}

mx::array LatentAttention::attend_plain(const Projected& p,
                                        Cache* cache) const {
  auto kv = kernels::table().linear_residual(
      mx::squeeze(p.latent, 1), *kv_up, nullptr, nullptr, 1.0f);
  kv =
      mx::transpose(mx::unflatten(kv, -1, {sizes.num_heads, -1}), {0, 2, 1, 3});
  auto parts = split_at(kv, sizes.fixed);
  auto q = mx::concatenate({p.q_fixed, p.q_rotated}, -1);
  auto k = mx::concatenate(
      {parts[0], for_all_heads(p.k_rotated, sizes.num_heads)}, -1);
  return cache != nullptr ? cache->attend(q, k, parts[1], spec)
                          : attend_without_cache(q, k, parts[1], spec);
}

// Few queries go down into the latents' space, where all heads share one key;
// for many it is less work to bring the latents up to each head's keys.
mx::array LatentAttention::attend_absorbed(const Projected& p,
                                           Cache* cache,
                                           AttendSpec how) const {
  const int up = sizes.fixed + sizes.value;
  const bool go_down =
      p.q_fixed.shape(2) * (2 * sizes.rank - up) < sizes.rank * up;
  if (go_down) {
    how.expand = [](const mx::array& latents, const mx::array& rotated) {
      return std::pair(mx::concatenate({latents, rotated}, -1), latents);
    };
  } else {
    how.expand = [this](const mx::array& latents, const mx::array& rotated) {
      auto fixed = stack_product(latents, *key_up, /*transposed=*/false);
      return std::pair(
          mx::concatenate({fixed, for_all_heads(rotated, sizes.num_heads)}, -1),
          stack_product(latents, *value_up, /*transposed=*/true));
    };
  }
  auto q_fixed = go_down ? stack_product(p.q_fixed, *key_up, true) : p.q_fixed;
  auto q = mx::concatenate({q_fixed, p.q_rotated}, -1);
  auto out = cache != nullptr
                 ? cache->attend(q, p.latent, p.k_rotated, how)
                 : attend_without_cache(q, p.latent, p.k_rotated, how);
  return go_down ? stack_product(out, *value_up, true) : out;
}

mx::array LatentAttention::attend(const mx::array& x,
                                  const kernels::Norm* norm,
                                  Cache* cache) const {
  const auto runs = token_runs(cache, x.shape(1));
  if (runs.size() > 1 && row_by_row()) {
    auto one = [&](const mx::array& row, Cache* own) {
      return mx::swapaxes(attend(row, norm, own), 1, 2);
    };
    return mx::swapaxes(each_row(x, cache, one), 1, 2);
  }
  auto input = norm != nullptr ? kernels::table().norm(x, *norm) : x;
  auto heads = answers(input, runs, cache);
  if (!gate) return heads;
  auto factors = mx::sigmoid(
      kernels::table().linear_residual(input, *gate, nullptr, nullptr, 1.0f));
  factors = mx::unflatten(factors, -1, {sizes.num_heads, -1});
  return mx::multiply(heads, mx::swapaxes(factors, 1, 2));
}

mx::array LatentAttention::answers(const mx::array& x,
                                   const Runs& runs,
                                   Cache* cache) const {
  auto p = project(x, runs);
  if (kv_up) return attend_plain(p, cache);
  if (!index) return attend_absorbed(p, cache, spec);
  auto* list = dynamic_cast<CacheList*>(cache);
  auto how = spec;
  how.visible =
      (*index)(x, p.q_input, list != nullptr ? (*list)[1].get() : nullptr);
  return attend_absorbed(p, list != nullptr ? (*list)[0].get() : nullptr, how);
}

}  // namespace mlxlm::nn
