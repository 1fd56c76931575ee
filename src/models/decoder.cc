#include "models/decoder.h"

#include <algorithm>
#include <cstdint>
#include <map>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/batch_cache.h"
#include "cache/cache_list.h"
#include "cache/chunked_cache.h"
#include "cache/kv_cache.h"
#include "cache/rotating_cache.h"
#include "nn/linear.h"

namespace mlxlm {
namespace {

// On the CPU all activations are float32: its half-precision sums are neither
// exact nor fast. Elsewhere they have the embedding's dtype.
mx::Dtype activation_dtype(const Checkpoint& checkpoint,
                           const std::string& embedding) {
  if (mx::default_device() == mx::Device::cpu) return mx::float32;
  const auto& weights = checkpoint.weights;
  for (const char* tensor : {".scales", ".weight"}) {
    auto found = weights.find(embedding + tensor);
    if (found == weights.end()) continue;
    if (mx::issubdtype(found->second.dtype(), mx::floating)) {
      return found->second.dtype();
    }
  }
  return mx::bfloat16;
}

const kernels::Norm* pointer(const std::optional<kernels::Norm>& norm) {
  return norm ? &*norm : nullptr;
}

}  // namespace

Decoder::Decoder(ArchSpec spec,
                 Checkpoint checkpoint,
                 const Adapter* adapter,
                 const LoadOptions& options)
    : spec_(std::move(spec)),
      config_(std::move(checkpoint.config)),
      dtype_(activation_dtype(checkpoint, spec_.prefix + spec_.embedding_name)),
      embedding_{.weight = mx::array(0.0f)} {
  bind_weights(checkpoint, adapter, options);
  // The last others who have them.
  checkpoint.weights.clear();
  if (!options.lazy) prepare_weights();
}

void Decoder::bind_weights(Checkpoint& checkpoint,
                           const Adapter* adapter,
                           const LoadOptions& options) {
  WeightBinder weights(checkpoint, dtype_, adapter);
  embedding_ = weights.embedding(spec_.prefix + spec_.embedding_name,
                                 spec_.vocabulary_size,
                                 spec_.hidden_size);
  if (!spec_.positions_name.empty()) {
    positions_ = weights.embedding(spec_.prefix + spec_.positions_name,
                                   spec_.num_positions,
                                   spec_.hidden_size);
  }
  layers_.reserve(spec_.layers.size());
  for (int i = 0; i < num_layers(); ++i) {
    layers_.push_back(make_layer(spec_, weights, i));
  }
  norm_ = weights.norm(spec_.prefix + spec_.norm_name,
                       spec_.hidden_size,
                       spec_.final_norm_spec.value_or(spec_.norm));
  if (!spec_.tied_head) {
    own_head_ = weights.linear(spec_.head_name,
                               spec_.vocabulary_size,
                               spec_.hidden_size,
                               spec_.head_bias);
  }
  weights.finish(options.strict, num_layers());
  parameters_ = weights.parameters();
  if (!options.lazy) {
    auto arrays = weights.derived();
    for (const auto& parameter : parameters_) arrays.push_back(parameter.value);
    mx::eval(std::move(arrays));
  }
}

// Layer by layer, so that no more than one is held twice. What is part of a
// fused tensor stays as it is.
void Decoder::prepare_weights() {
  auto prepare = kernels::table().prepare;
  if (prepare == nullptr) return;
  std::map<std::uintptr_t, Parameter*> by_id;
  for (auto& parameter : parameters_) {
    by_id.emplace(parameter.value.id(), &parameter);
  }
  auto prepare_one = [&](kernels::Linear& linear) {
    auto find = [&](const mx::array& array) -> Parameter* {
      auto found = by_id.find(array.id());
      return found == by_id.end() ? nullptr : found->second;
    };
    Parameter* weight = find(linear.weight);
    Parameter* scales = linear.scales ? find(*linear.scales) : nullptr;
    Parameter* zeros = linear.zeros ? find(*linear.zeros) : nullptr;
    if (weight == nullptr || (linear.scales && scales == nullptr) ||
        (linear.zeros && zeros == nullptr)) {
      return;
    }
    prepare(linear);
    weight->value = linear.weight;
    if (scales != nullptr) scales->value = *linear.scales;
    if (zeros != nullptr) zeros->value = *linear.zeros;
  };
  // An embedding that is nothing else is only looked up in.
  prepare_one(own_head_ ? *own_head_ : embedding_);
  for (auto& layer : layers_) for_each_linear(layer, prepare_one);
}

mx::array Decoder::run(const Layer& layer,
                       const mx::array& x,
                       Cache* cache) const {
  const auto* attention_norm = pointer(layer.attention_norm);
  auto heads = std::visit(
      [&](const auto& part) { return part.attend(x, attention_norm, cache); },
      layer.attention);
  const kernels::Linear& out =
      *std::visit([](const auto& part) { return &part.o; }, layer.attention);
  const auto* dense = std::get_if<nn::Mlp>(&layer.mlp);
  if (dense != nullptr && dense->fusible() && !spec_.parallel) {
    return kernels::finish_layer(
        kernels::table(),
        heads,
        x,
        {.out = &out,
         .out_norm = pointer(layer.attention_output_norm),
         .mlp_norm = pointer(layer.mlp_norm),
         .gate = dense->gate ? &*dense->gate : nullptr,
         .up = &dense->up,
         .down = &dense->down,
         .down_norm = pointer(layer.mlp_output_norm),
         .activation = dense->activation,
         .scale = spec_.residual_scale});
  }
  auto h =
      kernels::table().linear_residual(nn::in_token_order(heads),
                                       out,
                                       pointer(layer.attention_output_norm),
                                       &x,
                                       spec_.residual_scale);
  const auto& mlp_input = spec_.parallel ? x : h;
  const bool shared_norm = spec_.parallel && !layer.mlp_norm;
  const auto* mlp_norm = shared_norm ? attention_norm : pointer(layer.mlp_norm);
  const nn::Residual residual{
      pointer(layer.mlp_output_norm), &h, spec_.residual_scale};
  return std::visit(
      [&](const auto& mlp) { return mlp(mlp_input, mlp_norm, residual); },
      layer.mlp);
}

mx::array Decoder::embed(const mx::array& tokens) {
  return nn::embed(embedding_, tokens, dtype_);
}

// embeddings [B, L, D] of the tokens of these runs.
mx::array Decoder::first_state(mx::array h, const TokenRuns& runs) const {
  if (spec_.embedding_scale != 1.0f) {
    h = mx::multiply(h, mx::array(spec_.embedding_scale, dtype_));
  }
  if (positions_) {
    std::vector<int> places;
    for (const auto& [count, offset] : runs) {
      const int end = offset + count;
      if (end > spec_.num_positions) {
        throw Error(ErrorKind::argument,
                    "the model has positions for " +
                        std::to_string(spec_.num_positions) +
                        " tokens, the text needs " + std::to_string(end));
      }
      for (int place = offset; place < end; ++place) places.push_back(place);
    }
    const mx::array all(places.data(), {h.shape(1)}, mx::int32);
    h = mx::add(h, nn::embed(*positions_, all, dtype_));
  }
  if (!spec_.embedding_norm) return h;
  return kernels::table().norm(
      h,
      {.kind = spec_.embedding_norm->kind, .eps = spec_.embedding_norm->eps});
}

mx::array Decoder::finish_logits(mx::array logits) const {
  if (spec_.logit_scale != 1.0f) {
    logits = mx::multiply(logits, mx::array(spec_.logit_scale, logits.dtype()));
  }
  if (spec_.logit_softcap != 0.0f) {
    mx::array cap(spec_.logit_softcap, logits.dtype());
    logits = mx::multiply(mx::tanh(mx::divide(logits, cap)), cap);
  }
  return logits;
}

mx::array Decoder::forward(const mx::array& tokens,
                           const PromptCache& cache,
                           const std::optional<mx::array>& input_embeddings) {
  return logits_of(run_layers(tokens, cache, input_embeddings));
}

mx::array Decoder::forward_at(
    const std::vector<int>& positions,
    const mx::array& tokens,
    const PromptCache& cache,
    const std::optional<mx::array>& input_embeddings) {
  auto h = run_layers(tokens, cache, input_embeddings);
  return logits_of(take_positions(h, positions));
}

mx::array Decoder::logits_of(const mx::array& h) const {
  const auto& head = own_head_ ? *own_head_ : embedding_;
  return finish_logits(kernels::table().head(h, pointer(norm_), head));
}

mx::array Decoder::run_layers(
    const mx::array& tokens,
    const PromptCache& cache,
    const std::optional<mx::array>& input_embeddings) {
  if (!cache.empty() && cache.size() != layers_.size()) {
    throw Error(ErrorKind::argument,
                "the prompt cache has " + std::to_string(cache.size()) +
                    " layers, the model " + std::to_string(layers_.size()));
  }
  auto h =
      input_embeddings ? mx::astype(*input_embeddings, dtype_) : embed(tokens);
  h = first_state(
      h, token_runs(cache.empty() ? nullptr : cache[0].get(), h.shape(1)));
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    h = run(layers_[i], h, cache.empty() ? nullptr : cache[i].get());
  }
  return h;
}

PromptCache Decoder::make_cache(int max_kv_size) const {
  const bool indexed = spec_.latent && spec_.latent->index.num_heads > 0;
  PromptCache cache;
  cache.reserve(spec_.layers.size());
  for (const auto& layer : spec_.layers) {
    if (layer.rotating_cache) {
      cache.push_back(make_rotating_cache(layer.window_tokens));
    } else if (layer.chunk_tokens > 0) {
      cache.push_back(make_chunked_cache(layer.chunk_tokens));
    } else if (indexed) {
      cache.push_back(make_cache_list({make_kv_cache(), make_kv_cache()}));
    } else if (max_kv_size > 0 && !spec_.own_caches) {
      cache.push_back(make_rotating_cache(max_kv_size, 4));
    } else {
      cache.push_back(make_kv_cache());
    }
  }
  return cache;
}

bool Decoder::depends_on_chunks() const {
  return std::ranges::any_of(spec_.ropes, [](const nn::Rope& rope) {
    return rope.depends_on_length();
  });
}

std::string Decoder::model_type() const {
  return config_.value("model_type", "");
}

int Decoder::num_layers() const {
  return static_cast<int>(spec_.layers.size());
}

std::vector<int> Decoder::eos_token_ids() const {
  return ConfigReader(config_)
      .find_ints("eos_token_id")
      .value_or(std::vector<int>{});
}

}  // namespace mlxlm
