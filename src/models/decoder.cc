#include "models/decoder.h"

#include <cstdint>
#include <map>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

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
      dtype_(activation_dtype(checkpoint, spec_.prefix + "embed_tokens")),
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
  embedding_ = weights.embedding(
      spec_.prefix + "embed_tokens", spec_.vocabulary_size, spec_.hidden_size);
  layers_.reserve(spec_.layers.size());
  for (int i = 0; i < num_layers(); ++i) {
    layers_.push_back(make_layer(weights, i));
  }
  norm_ = weights.norm(spec_.prefix + "norm", spec_.hidden_size, spec_.norm);
  if (!spec_.tied_head) {
    own_head_ = weights.linear(
        spec_.head_name, spec_.vocabulary_size, spec_.hidden_size);
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
  auto prepare_mlp = [&](nn::Mlp& mlp) {
    if (mlp.gate) prepare_one(*mlp.gate);
    prepare_one(mlp.up);
    prepare_one(mlp.down);
  };
  // An embedding that is nothing else is only looked up in.
  prepare_one(own_head_ ? *own_head_ : embedding_);
  for (auto& layer : layers_) {
    for (auto* each : {&layer.attention.q,
                       &layer.attention.k,
                       &layer.attention.v,
                       &layer.attention.o}) {
      prepare_one(*each);
    }
    if (auto* mlp = std::get_if<nn::Mlp>(&layer.mlp)) {
      prepare_mlp(*mlp);
      continue;
    }
    auto& experts = std::get<nn::Experts>(layer.mlp);
    for (auto* each :
         {&experts.router, &experts.gate, &experts.up, &experts.down}) {
      prepare_one(*each);
    }
    if (experts.shared) prepare_mlp(*experts.shared);
    if (experts.shared_gate) prepare_one(*experts.shared_gate);
  }
}

Decoder::Layer Decoder::make_layer(WeightBinder& weights, int index) const {
  const auto& layer = spec_.layers[index];
  const auto& names = spec_.names;
  const auto path = spec_.prefix + "layers." + std::to_string(index) + ".";
  auto norm = [&](const std::string& name) -> std::optional<kernels::Norm> {
    if (name.empty()) return std::nullopt;
    return weights.norm(path + name, spec_.hidden_size, spec_.norm);
  };
  const auto mlp_path = path + names.mlp + ".";
  auto mlp = [&]() -> std::variant<nn::Mlp, nn::Experts> {
    if (layer.experts) return make_experts(weights, mlp_path);
    return make_mlp(weights, mlp_path, spec_.intermediate_size);
  };
  return {
      .attention_norm = norm(names.attention_norm),
      .attention_output_norm = norm(names.attention_output_norm),
      .mlp_norm = norm(names.mlp_norm),
      .mlp_output_norm = norm(names.mlp_output_norm),
      .attention = make_attention(weights, path + names.attention + ".", layer),
      .mlp = mlp()};
}

nn::Attention Decoder::make_attention(WeightBinder& weights,
                                      const std::string& path,
                                      const LayerSpec& layer) const {
  const auto& names = spec_.names;
  const int q_size = spec_.num_heads * spec_.head_size;
  const int kv_size = spec_.num_kv_heads * spec_.head_size;
  auto projection = [&](const std::string& name, int size) {
    return weights.linear(path + name, size, spec_.hidden_size, spec_.qkv_bias);
  };
  std::vector<kernels::Linear> qkv;
  if (names.qkv.empty()) {
    qkv = {projection(names.q, q_size),
           projection(names.k, kv_size),
           projection(names.v, kv_size)};
  } else {
    const int sizes[] = {q_size, kv_size, kv_size};
    qkv = nn::split_rows(projection(names.qkv, q_size + 2 * kv_size), sizes);
  }
  nn::Attention attention{
      .q = qkv[0],
      .k = qkv[1],
      .v = qkv[2],
      .o = weights.linear(
          path + names.o, spec_.hidden_size, q_size, spec_.o_bias),
      .rope = layer.rope < 0 ? nullptr : &spec_.ropes[layer.rope],
      .num_heads = spec_.num_heads,
      .num_kv_heads = spec_.num_kv_heads,
      .spec = {.scale = spec_.attention_scale,
               .window_tokens = layer.window_tokens,
               .softcap = spec_.attention_softcap}};
  if (spec_.qk_norm != QkNorm::none) {
    const bool per_head = spec_.qk_norm == QkNorm::per_head;
    // Never with a bias, whatever the layer's own norms have.
    NormSpec norm = spec_.norm;
    norm.bias = false;
    attention.q_norm = weights.norm(
        path + "q_norm", per_head ? spec_.head_size : q_size, norm);
    attention.k_norm = weights.norm(
        path + "k_norm", per_head ? spec_.head_size : kv_size, norm);
  }
  return attention;
}

nn::Mlp Decoder::make_mlp(WeightBinder& weights,
                          const std::string& path,
                          int hidden_size) const {
  const auto& names = spec_.names;
  auto projection = [&](const std::string& name, int size) {
    return weights.linear(path + name, size, spec_.hidden_size, spec_.mlp_bias);
  };
  auto down = weights.linear(
      path + names.down, spec_.hidden_size, hidden_size, spec_.mlp_bias);
  if (!names.gate_up.empty()) {
    const int sizes[] = {hidden_size, hidden_size};
    auto parts =
        nn::split_rows(projection(names.gate_up, 2 * hidden_size), sizes);
    return {parts[0], parts[1], down, spec_.activation};
  }
  std::optional<kernels::Linear> gate;
  if (spec_.gated_mlp) gate = projection(names.gate, hidden_size);
  return {gate, projection(names.up, hidden_size), down, spec_.activation};
}

nn::Experts Decoder::make_experts(WeightBinder& weights,
                                  const std::string& path) const {
  const auto& experts = *spec_.experts;
  const auto& names = spec_.names;
  auto stack = [&](const std::string& name, int outputs, int inputs) {
    return weights.expert_stack(
        path + "switch_mlp." + name, experts.num_experts, outputs, inputs);
  };
  nn::Experts made{
      .router =
          weights.linear(path + "gate", experts.num_experts, spec_.hidden_size),
      .kind = experts.router,
      .num_chosen = experts.num_chosen,
      .normalize = experts.normalize,
      .gate = stack(names.gate, experts.hidden_size, spec_.hidden_size),
      .up = stack(names.up, experts.hidden_size, spec_.hidden_size),
      .down = stack(names.down, spec_.hidden_size, experts.hidden_size),
      .activation = spec_.activation};
  if (experts.shared_hidden_size > 0) {
    made.shared =
        make_mlp(weights, path + "shared_expert.", experts.shared_hidden_size);
    made.shared_gate =
        weights.linear(path + "shared_expert_gate", 1, spec_.hidden_size);
  }
  return made;
}

mx::array Decoder::run(const Layer& layer,
                       const mx::array& x,
                       Cache* cache) const {
  const auto* attention_norm = pointer(layer.attention_norm);
  const auto* dense = std::get_if<nn::Mlp>(&layer.mlp);
  if (dense != nullptr && !spec_.parallel) {
    return kernels::finish_layer(
        kernels::table(),
        layer.attention.attend(x, attention_norm, cache),
        x,
        {.out = &layer.attention.o,
         .out_norm = pointer(layer.attention_output_norm),
         .mlp_norm = pointer(layer.mlp_norm),
         .gate = dense->gate ? &*dense->gate : nullptr,
         .up = &dense->up,
         .down = &dense->down,
         .down_norm = pointer(layer.mlp_output_norm),
         .activation = dense->activation,
         .scale = spec_.residual_scale});
  }
  auto h = layer.attention(
      x,
      attention_norm,
      cache,
      {pointer(layer.attention_output_norm), &x, spec_.residual_scale});
  const auto& mlp_input = spec_.parallel ? x : h;
  const auto* mlp_norm =
      spec_.parallel ? attention_norm : pointer(layer.mlp_norm);
  const nn::Residual residual{
      pointer(layer.mlp_output_norm), &h, spec_.residual_scale};
  return std::visit(
      [&](const auto& mlp) { return mlp(mlp_input, mlp_norm, residual); },
      layer.mlp);
}

mx::array Decoder::embed(const mx::array& tokens) {
  return nn::embed(embedding_, tokens, dtype_);
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
  if (!cache.empty() && cache.size() != layers_.size()) {
    throw Error(ErrorKind::argument,
                "the prompt cache has " + std::to_string(cache.size()) +
                    " layers, the model " + std::to_string(layers_.size()));
  }
  auto h =
      input_embeddings ? mx::astype(*input_embeddings, dtype_) : embed(tokens);
  if (spec_.embedding_scale != 1.0f) {
    h = mx::multiply(h, mx::array(spec_.embedding_scale, dtype_));
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    h = run(layers_[i], h, cache.empty() ? nullptr : cache[i].get());
  }
  const auto& head = own_head_ ? *own_head_ : embedding_;
  return finish_logits(kernels::table().head(h, pointer(norm_), head));
}

PromptCache Decoder::make_cache(int max_kv_size) const {
  PromptCache cache;
  cache.reserve(spec_.layers.size());
  for (const auto& layer : spec_.layers) {
    if (layer.rotating_cache) {
      cache.push_back(make_rotating_cache(layer.window_tokens));
    } else if (max_kv_size > 0 && !spec_.own_caches) {
      cache.push_back(make_rotating_cache(max_kv_size, 4));
    } else {
      cache.push_back(make_kv_cache());
    }
  }
  return cache;
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
