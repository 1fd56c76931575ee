#include "models/draft_head.h"

#include <mlx/mlx.h>

#include "models/decoder.h"

namespace mlxlm {
namespace {

int index_of_head(const ArchSpec& spec) {
  return static_cast<int>(spec.layers.size());
}

kernels::Norm make_norm(const ArchSpec& spec,
                        WeightBinder& weights,
                        const std::string& name) {
  return weights.norm(
      spec.layer_path(index_of_head(spec)) + name, spec.hidden_size, spec.norm);
}

}  // namespace

DecoderDraftHead::DecoderDraftHead(const ArchSpec& spec,
                                   WeightBinder& weights,
                                   Decoder& decoder)
    : spec_(spec),
      decoder_(decoder),
      token_norm_(make_norm(spec, weights, "enorm")),
      state_norm_(make_norm(spec, weights, "hnorm")),
      projection_(
          weights.linear(spec.layer_path(index_of_head(spec)) + "eh_proj",
                         spec.hidden_size,
                         2 * spec.hidden_size)),
      layer_(make_layer(spec, weights, index_of_head(spec))),
      norm_(make_norm(spec, weights, "shared_head.norm")) {}

mx::array DecoderDraftHead::forward(const mx::array& tokens,
                                    const mx::array& states,
                                    const PromptCache& cache) {
  const auto& table = kernels::table();
  auto token = table.norm(decoder_.embed(tokens), token_norm_);
  auto state = table.norm(states, state_norm_);
  auto both = spec_.draft_head->state_first
                  ? mx::concatenate({std::move(state), std::move(token)}, -1)
                  : mx::concatenate({std::move(token), std::move(state)}, -1);
  const kernels::Linear* projection = &projection_;
  auto x = table.norm_linear(both, nullptr, {&projection, 1})[0];
  x = decoder_.run_alone(layer_, x, cache.empty() ? nullptr : cache[0].get());
  return table.norm(x, norm_);
}

mx::array DecoderDraftHead::logits(const mx::array& states) {
  return decoder_.logits_of(states, nullptr);
}

PromptCache DecoderDraftHead::make_cache(int max_kv_size) const {
  return {decoder_.make_layer_cache(spec_.draft_head->layer, max_kv_size)};
}

std::size_t DecoderDraftHead::nbytes() const {
  return decoder_.draft_head_nbytes();
}

void DecoderDraftHead::for_each_linear(
    const std::function<void(kernels::Linear&)>& visit) {
  visit(projection_);
  mlxlm::for_each_linear(layer_, visit);
}

}  // namespace mlxlm
