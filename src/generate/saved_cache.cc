// Whether a saved prompt cache is one of a model.
#include <algorithm>
#include <functional>
#include <sstream>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "cache/arrays_cache.h"
#include "cache/cache_list.h"
#include "cache/rotating_cache.h"
#include "cache/settle.h"
#include "core/log.h"
#include "core/sha256.h"
#include "generate/prefill.h"

namespace mlxlm {
namespace {

constexpr int kSampledValues = 64;
constexpr int kSampledTokens = 1000;
constexpr char kProbe[] = "The 3 naïve foxes\n\tjumped (over) 42 λ's. 你好";

std::string hash_of_config(const Model& model) {
  Sha256 hash;
  hash.add(model.config().dump(
      -1, ' ', true, nlohmann::json::error_handler_t::replace));
  return hash.hex();
}

// The first values of the last axis, as float32 [n].
mx::array sample_of(const mx::array& values) {
  mx::Shape start(values.ndim(), 0);
  mx::Shape stop(values.ndim(), 1);
  if (values.ndim() > 0) {
    stop.back() = std::min(values.shape(-1), kSampledValues);
  }
  auto sample = mx::slice(values, start, stop);
  return mx::contiguous(mx::flatten(mx::astype(sample, mx::float32)));
}

// The names and shapes of all weights, and some values of each: a fine-tuned
// model differs from its base in nothing else.
std::string hash_of_weights(const Model& model) {
  auto parameters = model.parameters();
  std::ranges::sort(parameters, {}, &Parameter::name);
  std::vector<mx::array> samples;
  for (const auto& parameter : parameters) {
    samples.push_back(sample_of(parameter.value));
  }
  mx::eval(samples);
  Sha256 hash;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    std::ostringstream shape;
    shape << parameters[i].value.shape();
    hash.add_field(parameters[i].name);
    hash.add_field(shape.str());
    hash.add_field({samples[i].data<char>(), samples[i].nbytes()});
  }
  return hash.hex();
}

// Its size, tokens spread over the vocabulary, and how it splits a text.
std::string hash_of_tokenizer(const Tokenizer& tokenizer) {
  Sha256 hash;
  int size = tokenizer.vocabulary_size();
  hash.add_field(std::to_string(size));
  for (int id = 0; id < size; id += std::max(1, size / kSampledTokens)) {
    hash.add_field(tokenizer.id_to_token(id).value_or(""));
  }
  for (int id : tokenizer.encode(kProbe)) {
    hash.add_field(std::to_string(id));
  }
  return hash.hex();
}

std::string hash_of_text(const std::string& text) {
  Sha256 hash;
  hash.add(text);
  return hash.hex();
}

std::string_view without_quantization(std::string_view kind) {
  constexpr std::string_view kPrefix = "Quantized";
  return kind.starts_with(kPrefix) ? kind.substr(kPrefix.size()) : kind;
}

// Compares a cache with one that the model made and has read a token into.
class LayerCheck {
 public:
  LayerCheck(std::string where) : where_(std::move(where)) {}

  void check(const Cache& held, const Cache& own) const {
    auto kind = without_quantization(held.kind());
    // What grows may also have been limited with max_kv_size.
    bool same = kind == own.kind() ||
                (own.kind() == "KVCache" &&
                 (kind == "RotatingKVCache" || kind == "ConcatenateKVCache"));
    if (!same) {
      fail("is of kind " + std::string(held.kind()), std::string(own.kind()));
    }
    if (auto* list = dynamic_cast<const CacheList*>(&held)) {
      check_list(*list, dynamic_cast<const CacheList&>(own));
    } else if (auto* arrays = dynamic_cast<const ArraysCache*>(&held)) {
      check_arrays(*arrays, dynamic_cast<const ArraysCache&>(own));
    } else if (auto* rows = dynamic_cast<const AttentionCache*>(&held)) {
      check_rows(*rows, dynamic_cast<const AttentionCache&>(own));
    }
  }

 private:
  void check_list(const CacheList& held, const CacheList& own) const {
    if (held.count() != own.count()) {
      fail("has " + std::to_string(held.count()) + " parts",
           std::to_string(own.count()));
    }
    for (std::size_t i = 0; i < held.count(); ++i) {
      check(*held[i], *own[i]);
    }
  }

  void check_arrays(const ArraysCache& held, const ArraysCache& own) const {
    if (held.count() != own.count()) {
      fail("has " + std::to_string(held.count()) + " arrays",
           std::to_string(own.count()));
    }
    for (std::size_t i = 0; i < held.count(); ++i) {
      if (held[i] && own[i] && held[i]->shape() != own[i]->shape()) {
        std::ostringstream shapes[2];
        shapes[0] << "holds an array of shape " << held[i]->shape();
        shapes[1] << own[i]->shape();
        fail(shapes[0].str(), shapes[1].str());
      }
    }
  }

  void check_rows(const AttentionCache& held, const AttentionCache& own) const {
    auto* limited = dynamic_cast<const RotatingKVCache*>(&held);
    auto* window = dynamic_cast<const RotatingKVCache*>(&own);
    if (limited && window && limited->max_size() != window->max_size()) {
      fail("holds " + std::to_string(limited->max_size()) + " tokens at most",
           std::to_string(window->max_size()));
    }
    if (held.empty() || own.empty()) {
      return;
    }
    for (auto part : {&KeysAndValues::keys, &KeysAndValues::values}) {
      std::string one = sizes_of(held.rows().*part);
      std::string other = sizes_of(own.rows().*part);
      if (one != other) {
        fail("holds " + one, other);
      }
    }
  }

  static std::string sizes_of(const Rows& rows) {
    return std::to_string(rows.batch_size()) + " rows of " +
           std::to_string(rows.num_heads()) + " heads of " +
           std::to_string(rows.head_size()) + " numbers";
  }

  [[noreturn]] void fail(const std::string& held,
                         const std::string& own) const {
    throw Error(ErrorKind::argument,
                where_ + " " + held + ", this model has " + own);
  }

  std::string where_;
};

// Returns a cache of the model's own, with a token read but not computed.
PromptCache check_layers(const std::string& name,
                         const PromptCache& cache,
                         const std::string& saved_for,
                         Model& model) {
  PromptCache own = model.make_cache();
  if (cache.size() != own.size()) {
    throw Error(ErrorKind::argument,
                name + " was saved with " + std::to_string(cache.size()) +
                    " layers (" + describe_layers(cache) + ")" + saved_for +
                    ", this model (" + model.model_type() + ") has " +
                    std::to_string(own.size()) + " (" + describe_layers(own) +
                    ")");
  }
  // Only for the shapes: nothing is computed.
  model.forward(token_row({0}), own);
  for (std::size_t i = 0; i < cache.size(); ++i) {
    LayerCheck(name + ", saved" + saved_for + ": layer " + std::to_string(i))
        .check(*cache[i], *own[i]);
  }
  return own;
}

bool is_half(const mx::array& array) {
  return array.dtype() == mx::float16 || array.dtype() == mx::bfloat16;
}

// With float32 for those arrays.
CacheState widened(const CacheState& state,
                   const std::function<bool(const mx::array&)>& those) {
  if (auto* array = std::get_if<mx::array>(&state.value)) {
    return {those(*array) ? mx::astype(*array, mx::float32) : *array};
  }
  if (auto* list = std::get_if<CacheState::List>(&state.value)) {
    CacheState::List items;
    for (const CacheState& item : *list) {
      items.push_back(widened(item, those));
    }
    return {std::move(items)};
  }
  return state;
}

// 16-bit numbers become float32 for a model that has none, or, on the CPU, that
// doesn't have these.
void widen_as(const PromptCache& own, PromptCache& cache) {
  const auto own_arrays = arrays_of(own);
  const bool on_cpu = mx::default_device() == mx::Device::cpu;
  if (!on_cpu && std::ranges::any_of(own_arrays, is_half)) return;
  auto is_foreign = [&](const mx::array& array) {
    return is_half(array) && std::ranges::none_of(own_arrays, [&](auto& each) {
             return each.dtype() == array.dtype();
           });
  };
  for (auto& layer : cache) {
    std::vector<mx::array> arrays;
    layer->append_arrays_to(arrays);
    if (std::ranges::any_of(arrays, is_foreign)) {
      layer->set_state(widened(layer->state(), is_foreign));
    }
  }
}

bool differ(const std::string& one, const std::string& other) {
  return !one.empty() && !other.empty() && one != other;
}

}  // namespace

CacheOrigin cache_origin(const Model& model,
                         const Tokenizer* tokenizer,
                         const std::optional<std::vector<int>>& tokens) {
  CacheOrigin origin{.model_type = model.model_type(),
                     .config_hash = hash_of_config(model),
                     .weights_hash = hash_of_weights(model),
                     .tokens = tokens};
  if (tokenizer != nullptr) {
    origin.tokenizer_hash = hash_of_tokenizer(*tokenizer);
    origin.template_hash = hash_of_text(
        tokenizer->has_chat_template() ? tokenizer->chat_template() : "");
  }
  return origin;
}

void check_saved_cache(const std::string& name,
                       PromptCache& cache,
                       const CacheMetadata& metadata,
                       Model& model,
                       const Tokenizer* tokenizer) {
  auto saved = origin_in(metadata);
  PromptCache own = check_layers(
      name, cache, saved ? " for " + saved->model_type : "", model);
  widen_as(own, cache);
  if (!saved) {
    log_info(name +
             " doesn't say which weights made it: its layers fit this model, "
             "the rest can't be verified");
    return;
  }
  CacheOrigin current = cache_origin(model, tokenizer);
  auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::argument,
                name + " was saved " + what +
                    "; it can't be used here, make it again with this model");
  };
  if (differ(saved->model_type, current.model_type)) {
    refuse("for " + saved->model_type + ", this model is " +
           current.model_type);
  }
  if (differ(saved->config_hash, current.config_hash)) {
    refuse("by a model with another config.json");
  }
  if (differ(saved->weights_hash, current.weights_hash)) {
    refuse("by a model with other weights");
  }
  if (differ(saved->tokenizer_hash, current.tokenizer_hash)) {
    refuse("with another tokenizer");
  }
  if (differ(saved->template_hash, current.template_hash)) {
    log_warning(name +
                " was saved with another chat template: what continues it may "
                "not fit");
  }
}

}  // namespace mlxlm
