#include "nn/attention.h"

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/batch_cache.h"
#include "cache/mask.h"

namespace mlxlm::nn {
namespace {

using kernels::HeadProjection;

const kernels::Norm* pointer(const std::optional<kernels::Norm>& norm) {
  return norm ? &*norm : nullptr;
}

bool is_each_head(const std::optional<kernels::Norm>& norm) {
  return norm && norm->weight && norm->weight->ndim() == 2;
}

// x [B, L, H * Dh], each head normalized with its row of the weight [H, Dh].
mx::array norm_each_head(const mx::array& x, const kernels::Norm& norm) {
  const auto& weight = *norm.weight;
  auto heads = mx::reshape(
      x, {x.shape(0), x.shape(1), weight.shape(0), weight.shape(1)});
  auto y = kernels::table().norm(heads, {.kind = norm.kind, .eps = norm.eps});
  return mx::reshape(mx::multiply(y, mx::astype(weight, y.dtype())), x.shape());
}

// heads [B, H, L, Dh] with head a * (H / n) + b, a < n, at b * n + a.
mx::array swap_head_axes(const mx::array& heads, int n) {
  const auto& s = heads.shape();
  auto split = mx::reshape(heads, {s[0], n, s[1] / n, s[2], s[3]});
  return mx::reshape(mx::swapaxes(split, 1, 2), s);
}

// x as a whole number of steps from -128 to 127.
mx::array rounded(const mx::array& x, const mx::array& step) {
  auto steps = mx::clip(
      mx::round(mx::divide(x, step)), mx::array(-128.0f), mx::array(127.0f));
  return mx::astype(mx::multiply(steps, step), x.dtype());
}

// Of a pass without a cache: which tokens are in the same chunk, [L, L].
mx::array same_chunk(int num_tokens, int chunk_tokens) {
  auto chunks =
      mx::floor_divide(mx::arange(num_tokens), mx::array(chunk_tokens));
  return mx::equal(mx::expand_dims(chunks, 0), mx::expand_dims(chunks, 1));
}

mx::array gate_factors(const mx::array& x, GateFunction function) {
  return function == GateFunction::sigmoid
             ? mx::sigmoid(x)
             : mx::logaddexp(x, mx::array(0.0f, x.dtype()));
}

}  // namespace

mx::array MixGate::operator()(const mx::array& q,
                              const mx::array& first,
                              const mx::array& second) const {
  auto logits =
      mx::add(mx::matmul(q, mx::expand_dims(mx::astype(weight, q.dtype()), -1)),
              mx::reshape(mx::astype(bias, q.dtype()), {-1, 1, 1}));
  auto gate = mx::sigmoid(logits);
  return mx::add(second, mx::multiply(gate, mx::subtract(first, second)));
}

std::vector<kernels::Linear*> Attention::linears() {
  std::vector<kernels::Linear*> all{&q, &o};
  for (auto* each : {&k, &v, &gate}) {
    if (*each) all.push_back(&**each);
  }
  if (index) {
    for (auto* each : index->linears()) all.push_back(each);
  }
  return all;
}

std::vector<mx::array> Attention::project(
    const mx::array& x,
    const kernels::Norm* norm,
    const Runs& runs,
    std::optional<ProjectedKeys>* projected) const {
  const auto& table = kernels::table();
  const kernels::Positions positions(runs);
  std::optional<kernels::Rope> turn;
  if (rope != nullptr) turn = rope->at(runs[0].num_tokens, runs[0].offset);
  const kernels::Rope* rope_now = turn ? &*turn : nullptr;
  const bool each_head = is_each_head(q_norm);
  const bool fused_norm = !each_head && !norm_after_rope;
  std::vector<HeadProjection> projections{
      {&q, num_heads, fused_norm ? pointer(q_norm) : nullptr, rope_now}};
  const bool has_keys = k || projected != nullptr;
  if (has_keys) {
    projections.push_back({k ? &*k : nullptr,
                           num_kv_heads,
                           fused_norm ? pointer(k_norm) : nullptr,
                           rope_now});
    projections.push_back({v   ? &*v
                           : k ? &*k
                               : nullptr,
                           num_kv_heads,
                           pointer(v_norm),
                           nullptr});
  }
  if (gate) projections.push_back({&*gate, num_heads, nullptr, nullptr});

  std::vector<mx::array> made;
  if (each_head || clip > 0 || projected != nullptr) {
    std::vector<const kernels::Linear*> linears;
    for (const auto& p : projections) {
      if (p.linear != nullptr) linears.push_back(p.linear);
    }
    made = table.norm_linear(x, norm, linears);
    if (projected != nullptr) {
      if (k) {
        *projected = ProjectedKeys{made[1], made[2]};
      } else {
        made.insert(made.begin() + 1, {(*projected)->k, (*projected)->v});
      }
    }
    if (clip > 0) {
      const mx::array limit(clip, x.dtype());
      for (auto& y : made) y = mx::clip(y, mx::negative(limit), limit);
    }
    if (each_head) {
      made[0] = norm_each_head(made[0], *q_norm);
      if (has_keys) made[1] = norm_each_head(made[1], *k_norm);
    }
    for (std::size_t i = 0; i < made.size(); ++i) {
      const auto& p = projections[i];
      made[i] = table.norm_rope(made[i],
                                p.num_heads,
                                each_head && i < 2 ? nullptr : p.norm,
                                p.rope,
                                positions);
    }
  } else {
    made = kernels::norm_heads(table, x, norm, projections, positions);
  }
  if (q_norm && norm_after_rope) {
    made[0] = table.norm(made[0], *q_norm);
    if (has_keys) made[1] = table.norm(made[1], *k_norm);
  }
  return made;
}

mx::array Attention::attend(const mx::array& x,
                            const kernels::Norm* norm,
                            Cache* cache,
                            Cache* other,
                            std::optional<ProjectedKeys>* projected) const {
  auto runs = token_runs(cache, x.shape(1));
  if (runs.size() > 1 && row_by_row()) {
    if (other != nullptr || projected != nullptr) {
      throw Error(ErrorKind::unsupported,
                  "layers that read each other's keys aren't batched with "
                  "positions that depend on the length");
    }
    auto one = [&](const mx::array& row, Cache* own) {
      return mx::swapaxes(attend(row, norm, own), 1, 2);
    };
    return mx::swapaxes(each_row(x, cache, one), 1, 2);
  }
  const bool reads_again = !k && projected == nullptr;
  if (reads_again) {  // the other layer has read these tokens already
    for (auto& run : runs) run.offset -= run.num_tokens;
  }
  auto made = project(x, norm, runs, projected);
  made[0] = query_scale(made[0], runs[0].offset);
  if (query_gain) made[0] = mx::multiply(made[0], *query_gain);
  if (alternating_heads) {
    made[0] = swap_head_axes(made[0], num_heads / num_kv_heads);
  }
  if (key_step) made[1] = rounded(made[1], *key_step);
  if (value_step) made[2] = rounded(made[2], *value_step);
  if (value_factor != 1.0f) {
    made[2] = mx::multiply(made[2], mx::array(value_factor, x.dtype()));
  }
  auto how = spec;
  if (index) {
    auto* list = dynamic_cast<CacheList*>(cache);
    const auto input = norm != nullptr ? kernels::table().norm(x, *norm) : x;
    how.visible = (*index)(
        input, num_heads, list != nullptr ? (*list)[1].get() : nullptr);
    if (list != nullptr) cache = (*list)[0].get();
  }
  if (blocks) how.visible = (*blocks)(num_heads, x.shape(1), cache);
  auto heads = [&] {
    if (reads_again) return cache->attend_again(made[0], how);
    if (cache != nullptr) return cache->attend(made[0], made[1], made[2], how);
    if (chunk_tokens > 0) how.visible = same_chunk(x.shape(1), chunk_tokens);
    return attend_without_cache(made[0], made[1], made[2], how);
  }();
  if (other != nullptr) {
    auto everything = spec;
    everything.window_tokens = 0;
    heads = (*mix)(made[0], other->attend_again(made[0], everything), heads);
  }
  if (alternating_heads) heads = swap_head_axes(heads, num_kv_heads);
  if (answer_norm) heads = kernels::table().norm(heads, *answer_norm);
  if (gate) {
    heads = mx::multiply(heads, gate_factors(made.back(), gate_function));
  }
  if (heads_norm) {
    const auto shape = heads.shape();
    auto rows = kernels::table().norm(in_token_order(heads), *heads_norm);
    heads = mx::transpose(
        mx::reshape(rows, {shape[0], shape[2], shape[1], shape[3]}),
        {0, 2, 1, 3});
  }
  return heads;
}

mx::array in_token_order(const mx::array& heads) {
  auto y = heads.shape(2) > 1 ? mx::transpose(heads, {0, 2, 1, 3}) : heads;
  return mx::reshape(y, {heads.shape(0), heads.shape(2), -1});
}

}  // namespace mlxlm::nn
