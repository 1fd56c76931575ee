#include "models/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/batch_cache.h"
#include "models/compressed_layer.h"
#include "models/stream_layer.h"
#include "models/weight_sharding.h"
#include "nn/linear.h"
#include "ranks/ranks.h"

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

// Whether the embedding is neither quantized nor in 16 bits.
bool has_float32_weights(const Checkpoint& checkpoint,
                         const std::string& embedding) {
  const auto found = checkpoint.weights.find(embedding + ".weight");
  return found != checkpoint.weights.end() &&
         found->second.dtype() == mx::float32;
}

// The runs of the next tokens. Recurrent layers don't count theirs, others do.
std::vector<kernels::TokenRun> runs_of(const PromptCache& cache,
                                       int num_tokens) {
  if (cache.empty()) return token_runs(nullptr, num_tokens);
  auto runs = token_runs(cache[0].get(), num_tokens);
  for (const auto& layer : cache) {
    const auto counted = token_runs(layer.get(), num_tokens);
    for (std::size_t i = 0; i < runs.size(); ++i) {
      runs[i].offset = std::max(runs[i].offset, counted[i].offset);
    }
  }
  return runs;
}

}  // namespace

Decoder::Decoder(ArchSpec spec,
                 Checkpoint checkpoint,
                 const Adapter* adapter,
                 const LoadOptions& options)
    : spec_(std::move(spec)),
      config_(std::move(checkpoint.config)),
      dtype_(activation_dtype(checkpoint, spec_.prefix + spec_.embedding_name)),
      float32_weights_(
          has_float32_weights(checkpoint, spec_.prefix + spec_.embedding_name)),
      embedding_{.weight = mx::array(0.0f)} {
  auto splits = bind_weights(checkpoint, adapter, options);
  // The last others who have them.
  checkpoint.weights.clear();
  if (Ranks::all().several()) shard_weights(splits, options.lazy);
  if (!options.lazy) prepare_weights(std::move(splits));
  repeat_layers();
  index_caches();
  passes_keys_on_ = std::ranges::any_of(
      spec_.layers, [](const auto& layer) { return layer.projects_no_keys; });
  if (!options.lazy) {
    step_ = DecoderStep::make(spec_,
                              embedding_,
                              layers_,
                              norm_,
                              own_head_ ? *own_head_ : embedding_,
                              partial_head_);
  }
}

// The layers that have the weights of others, which come first.
void Decoder::repeat_layers() {
  for (int i = num_layers(); i < static_cast<int>(spec_.layers.size()); ++i) {
    layers_.push_back(
        repeat_layer(spec_, layers_.at(spec_.layers[i].weights_of), i));
  }
}

void Decoder::bind_ngrams(WeightBinder& weights, const NgramSpec& ngram) {
  const int num_tables = (ngram.longest - 1) * ngram.tables_per_length;
  const int size = spec_.hidden_size / num_tables;
  const auto path = spec_.prefix + ngram.name + ".";
  auto& made = ngram_embedding_.emplace();
  made.vocabulary_size = spec_.vocabulary_size;
  made.longest = ngram.longest;
  made.tables_per_length = ngram.tables_per_length;
  for (int i = 0; i < num_tables; ++i) {
    const auto number = "." + std::to_string(i);
    made.num_rows.push_back(ngram.num_rows + 2 * i);
    made.tables.push_back(weights.embedding(
        path + "embedders" + number, made.num_rows.back(), size));
    made.projections.push_back(
        weights.linear(path + "post_projs" + number, spec_.hidden_size, size));
  }
}

void Decoder::bind_side_inputs(WeightBinder& weights) {
  const int width = spec_.hidden_size;
  if (const auto& side = spec_.per_layer_input) {
    const int size = num_layers() * side->size;
    per_layer_inputs_ = nn::PerLayerInputs{
        .table = weights.embedding(spec_.prefix + "embed_tokens_per_layer",
                                   side->vocabulary_size,
                                   size),
        .projection = weights.linear(
            spec_.prefix + "per_layer_model_projection", size, width),
        .norm = weights.norm(
            spec_.prefix + "per_layer_projection_norm", side->size, spec_.norm),
        .num_layers = num_layers(),
        .vocabulary_size = side->vocabulary_size};
  }
  if (spec_.ngram) bind_ngrams(weights, *spec_.ngram);
  if (!spec_.altup) return;
  for (int i = 0; i + 1 < spec_.altup->num_streams; ++i) {
    const auto number = "." + std::to_string(i);
    altup_in_.push_back(weights.linear(
        spec_.prefix + "altup_projections" + number, width, width));
    altup_out_.push_back(weights.linear(
        spec_.prefix + "altup_unembed_projections" + number, width, width));
  }
}

std::vector<SplitTensor> Decoder::bind_weights(Checkpoint& checkpoint,
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
  bind_side_inputs(weights);
  layers_.reserve(spec_.layers.size());
  for (int i = 0; i < num_layers(); ++i) {
    layers_.push_back(make_layer(spec_, weights, i));
  }
  norm_ = weights.norm(spec_.prefix + spec_.norm_name,
                       spec_.hidden_size,
                       spec_.final_norm_spec.value_or(spec_.norm));
  if (spec_.hyper && spec_.hyper->reads_at_once) {
    hyper_head_ = make_hyper_head(spec_, weights);
  }
  if (spec_.block_layers > 0) {
    last_depth_mix_ =
        depth_mix(spec_, weights, spec_.prefix + "output_attn_res");
  }
  if (!spec_.tied_head) {
    own_head_ = weights.linear(spec_.head_name,
                               spec_.vocabulary_size,
                               spec_.hidden_size,
                               spec_.head_bias);
    if (!spec_.head_gain_name.empty()) {
      own_head_ =
          nn::times(*own_head_, weights.tensor(spec_.head_gain_name, {1}));
    }
  }
  if (spec_.draft_head) {
    draft_head_ = std::make_unique<DecoderDraftHead>(spec_, weights, *this);
  }
  weights.finish(options.strict, num_layers());
  parameters_ = weights.parameters();
  if (!options.lazy) mx::eval(weights.derived());
  return weights.take_splits();
}

void Decoder::shard_weights(std::vector<SplitTensor>& splits, bool lazy) {
  const auto& ranks = Ranks::all();
  WeightSharding shard({ranks.rank(), ranks.size()});
  for (auto& layer : layers_) shard(layer);
  if (own_head_) partial_head_ = shard.split_head(*own_head_);
  const auto joined = shard.replace(parameters_, splits);
  if (lazy) return;
  // Layer by layer: no more whole tensors than a layer's are held meanwhile.
  for (auto& layer : layers_) {
    std::vector<mx::array> arrays;
    for_each_linear(layer, [&](kernels::Linear& linear) {
      arrays.push_back(linear.weight);
      for (const auto* each : {&linear.scales, &linear.zeros}) {
        if (*each) arrays.push_back(**each);
      }
    });
    mx::eval(std::move(arrays));
  }
  std::vector<mx::array> others;
  for (const auto& each : parameters_) {
    if (!joined.contains(each.value.id())) others.push_back(each.value);
  }
  mx::eval(std::move(others));
}

// Matrix by matrix, so that no more than one is held twice; the largest first,
// while nothing else is in memory.
void Decoder::prepare_weights(std::vector<SplitTensor> splits) {
  WeightPreparation prepare(parameters_, std::move(splits));
  if (kernels::table().prepare != nullptr) {
    auto prepare_one = [&](kernels::Linear& linear) { prepare(linear); };
    // An embedding that is nothing else is only looked up in.
    prepare_one(own_head_ ? *own_head_ : embedding_);
    for (auto& layer : layers_) for_each_linear(layer, prepare_one);
    if (draft_head_) draft_head_->for_each_linear(prepare_one);
  }
  if (!Ranks::all().several()) {  // where shard_weights() has read them
    mx::eval(prepare.others());
  }
}

std::vector<Parameter> Decoder::parameters() const {
  if (!draft_head_) return parameters_;
  std::vector<Parameter> own;
  std::ranges::copy_if(
      parameters_, std::back_inserter(own), [&](const Parameter& parameter) {
        return !is_of_draft_head(parameter);
      });
  return own;
}

bool Decoder::is_of_draft_head(const Parameter& parameter) const {
  return parameter.name.starts_with(
      spec_.layer_path(static_cast<int>(spec_.layers.size())));
}

std::size_t Decoder::draft_head_nbytes() const {
  std::size_t sum = 0;
  for (const Parameter& parameter : parameters_) {
    sum += is_of_draft_head(parameter) ? parameter.value.nbytes() : 0;
  }
  return sum;
}

mx::array Decoder::embed(const mx::array& tokens) {
  return embed_after(tokens, {});
}

mx::array Decoder::embed_after(const mx::array& tokens,
                               const PromptCache& cache) const {
  auto own = nn::embed(embedding_, tokens, dtype_);
  if (!ngram_embedding_) return own;
  return (*ngram_embedding_)(
      tokens, own, cache.empty() ? nullptr : cache[0].get());
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
  if (!spec_.hidden_tokens.empty()) {
    const auto& ids = spec_.hidden_tokens;
    const mx::array hidden(ids.data(), {static_cast<int>(ids.size())});
    const mx::array lowest(-std::numeric_limits<float>::infinity(),
                           logits.dtype());
    auto shape = logits.shape();
    shape.back() = hidden.shape(0);
    logits =
        mx::put_along_axis(logits, mx::broadcast_to(hidden, shape), lowest, -1);
  }
  return logits;
}

mx::array Decoder::forward(const mx::array& tokens,
                           const PromptCache& cache,
                           const std::optional<mx::array>& input_embeddings) {
  if (step_ && !input_embeddings) {
    if (auto logits = step_->run(tokens, cache)) return finish_logits(*logits);
  }
  return logits_of(run_layers(tokens, cache, input_embeddings), pointer(norm_));
}

ModelPass Decoder::forward_with_states(
    const mx::array& tokens,
    const PromptCache& cache,
    const std::vector<int>& positions,
    const std::optional<mx::array>& input_embeddings) {
  auto h = run_layers(tokens, cache, input_embeddings);
  auto states = norm_ ? kernels::table().norm(h, *norm_) : h;
  if (!positions.empty()) h = take_positions(h, positions);
  return {logits_of(h, pointer(norm_)), std::move(states)};
}

mx::array Decoder::forward_at(
    const std::vector<int>& positions,
    const mx::array& tokens,
    const PromptCache& cache,
    const std::optional<mx::array>& input_embeddings) {
  if (step_ && !input_embeddings) {
    if (auto logits = step_->run(tokens, cache)) {
      return finish_logits(take_positions(*logits, positions));
    }
  }
  auto h = run_layers(tokens, cache, input_embeddings);
  return logits_of(take_positions(h, positions), pointer(norm_));
}

mx::array Decoder::logits_of(const mx::array& h,
                             const kernels::Norm* norm) const {
  const auto& head = own_head_ ? *own_head_ : embedding_;
  auto logits = kernels::table().head(h, norm, head);
  return finish_logits(partial_head_ ? Ranks::all().side_by_side(logits)
                                     : logits);
}

mx::array Decoder::run_layers(
    const mx::array& tokens,
    const PromptCache& cache,
    const std::optional<mx::array>& input_embeddings) {
  if (!cache.empty() && static_cast<int>(cache.size()) != num_caches_) {
    throw Error(ErrorKind::argument,
                "the prompt cache has " + std::to_string(cache.size()) +
                    " layers, the model " + std::to_string(num_caches_));
  }
  auto h = input_embeddings ? mx::astype(*input_embeddings, dtype_)
                            : embed_after(tokens, cache);
  Pass pass{.runs = runs_of(cache, h.shape(1)), .caches = layer_caches(cache)};
  pass.tokens = &tokens;
  h = first_state(h, pass.runs);
  std::vector<mx::array> side_inputs;  // [B, L, P] for each layer
  if (per_layer_inputs_) {
    side_inputs = mx::split((*per_layer_inputs_)(tokens, h), num_layers(), 2);
    for (auto& each : side_inputs) each = mx::squeeze(each, 2);
  }
  const auto first = h;
  if (spec_.altup) h = nn::split_streams(h, altup_in_);
  if (spec_.hyper) {
    const int count = spec_.hyper->num_streams;
    h = mx::repeat(mx::expand_dims(h, 2), count, 2);
    // The first part reads the first stream.
    auto first_only =
        mx::reshape(mx::equal(mx::arange(count), mx::array(0)), {1, 1, count});
    pass.read = mx::astype(first_only, mx::float32);
  }
  for (int i = 0; i < static_cast<int>(layers_.size()); ++i) {
    const auto& layer = layers_[i];
    const Caches caches{pass.cache_of(i),
                        pass.cache_of(spec_.layers[i].also_reads)};
    if (layer.altup) {
      h = run_streams(layer, h, side_inputs[i], caches, pass);
      continue;
    }
    const auto shortcut = std::exchange(pass.shortcut, std::nullopt);
    h = run(layer, h, caches, pass);
    if (shortcut) h = mx::add(h, *shortcut);
    if (layer.per_layer_gate) {
      h = mx::add(h, (*layer.per_layer_gate)(h, side_inputs[i]));
    }
    if (layer.first_state_gain) {
      h = mx::add(h, mx::multiply(first, *layer.first_state_gain));
    }
    if (layer.scalar) h = mx::multiply(h, *layer.scalar);
    if (spec_.layers[i].norm_after) h = kernels::table().norm(h, *norm_);
  }
  if (hyper_head_) return (*hyper_head_)(h);
  if (pass.read) return nn::collapse(h, *pass.read);
  if (last_depth_mix_) h = pass.blocks.mix(h, *last_depth_mix_);
  return spec_.altup ? nn::join_streams(h, altup_out_) : h;
}

bool Decoder::depends_on_chunks() const {
  return std::ranges::any_of(spec_.ropes, [](const nn::Rope& rope) {
    return rope.depends_on_length();
  });
}

std::string Decoder::model_type() const {
  return config_.value("model_type", "");
}

// Those that repeat others' weights aren't counted; they come last.
int Decoder::num_layers() const {
  return static_cast<int>(std::ranges::count_if(
      spec_.layers, [](const auto& layer) { return layer.weights_of < 0; }));
}

std::vector<int> Decoder::eos_token_ids() const {
  return ConfigReader(config_)
      .find_ints("eos_token_id")
      .value_or(std::vector<int>{});
}

}  // namespace mlxlm
