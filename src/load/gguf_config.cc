#include "load/gguf_config.h"

#include <cmath>
#include <cstring>
#include <optional>
#include <string>

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxRopeFactors = 1 << 16;

class ConfigBuilder {
 public:
  ConfigBuilder(const GgufParts& parts, const GgufArchitecture& architecture)
      : parts_(parts),
        metadata_(parts.metadata()),
        prefix_(std::string(architecture.name) + "."),
        type_(architecture.model_type) {}

  json build() {
    config_["model_type"] = type_;
    add_sizes();
    add_rope();
    add_family();
    add_special_tokens();
    return std::move(config_);
  }

 private:
  bool is(std::string_view type) const { return type_ == type; }
  std::string key(std::string_view name) const {
    return prefix_ + std::string(name);
  }
  bool has_tensor(std::string_view name) const {
    return parts_.find_tensor(name).tensor != nullptr;
  }

  // A number that some files give for each layer; here all must agree.
  std::optional<std::int64_t> integer(std::string_view name) const {
    std::string full = key(name);
    if (!metadata_.is_array(full)) {
      return metadata_.integer(full);
    }
    auto values = *metadata_.integers(full);
    for (auto value : values) {
      if (value != values.front()) {
        throw Error(ErrorKind::unsupported,
                    parts_.first().path() + ": " + quoted_name(full) +
                        " differs from layer to layer, which isn't supported");
      }
    }
    return values.empty() ? std::nullopt : std::optional(values.front());
  }
  std::int64_t required_integer(std::string_view name) const {
    auto value = integer(name);
    return value ? *value : metadata_.required_integer(key(name));
  }
  std::optional<double> number(std::string_view name) const {
    return metadata_.number(key(name));
  }
  double required_number(std::string_view name) const {
    return metadata_.required_number(key(name));
  }

  // Sizes that a tensor's shape tells where the metadata doesn't.
  std::int64_t integer_or_dimension(std::string_view name,
                                    std::string_view tensor_name,
                                    std::size_t from_last) const {
    if (auto value = integer(name)) {
      return *value;
    }
    const auto* tensor = parts_.find_tensor(tensor_name).tensor;
    if (tensor == nullptr || tensor->shape.size() <= from_last) {
      return metadata_.required_integer(key(name));
    }
    return tensor->shape[tensor->shape.size() - 1 - from_last];
  }

  std::int64_t num_heads() const {
    auto heads = required_integer("attention.head_count");
    if (heads <= 0) {
      throw parts_.first().error(quoted_name(key("attention.head_count")) +
                                 " is " + std::to_string(heads));
    }
    return heads;
  }

  std::int64_t head_size() const {
    if (auto size = integer("attention.key_length")) {
      return *size;
    }
    return required_integer("embedding_length") / num_heads();
  }

  void add_sizes() {
    config_["hidden_size"] = required_integer("embedding_length");
    config_["num_hidden_layers"] = required_integer("block_count");
    auto heads = num_heads();
    config_["num_attention_heads"] = heads;
    config_["num_key_value_heads"] =
        integer("attention.head_count_kv").value_or(heads);
    config_["head_dim"] = head_size();
    if (!is("qwen2_moe") && !is("qwen3_moe")) {
      config_["intermediate_size"] = required_integer("feed_forward_length");
    }
    if (auto tokens = integer("context_length")) {
      config_["max_position_embeddings"] = *tokens;
    }
    if (const auto* embedding =
            parts_.find_tensor("token_embd.weight").tensor) {
      config_["vocab_size"] = embedding->shape.front();
    }
    config_["tie_word_embeddings"] = !has_tensor("output.weight");
    config_["attention_bias"] = has_tensor("blk.0.attn_q.bias");
    config_["mlp_bias"] = has_tensor("blk.0.ffn_up.bias");
    if (is("cohere2")) {
      config_["layer_norm_eps"] =
          required_number("attention.layer_norm_epsilon");
    } else if (is("starcoder2")) {
      config_["norm_epsilon"] = required_number("attention.layer_norm_epsilon");
    } else {
      config_["rms_norm_eps"] =
          required_number("attention.layer_norm_rms_epsilon");
    }
  }

  // The values of a small float32 tensor, if the file has it.
  std::optional<std::vector<float>> factors(std::string_view name) const {
    auto [file, tensor] = parts_.find_tensor(name);
    if (tensor == nullptr) {
      return std::nullopt;
    }
    std::size_t count = tensor->data.size() / sizeof(float);
    if (tensor->type->name != "F32" || count > kMaxRopeFactors) {
      throw file->error("tensor " + quoted_name(name) +
                        " is no list of at most " +
                        std::to_string(kMaxRopeFactors) + " F32 factors");
    }
    std::vector<float> values(count);
    std::memcpy(values.data(), tensor->data.data(), count * sizeof(float));
    for (float value : values) {
      if (!std::isfinite(value)) {
        throw file->error("tensor " + quoted_name(name) +
                          " holds what isn't a finite number");
      }
    }
    return values;
  }

  void add_rope() {
    config_["rope_theta"] = number("rope.freq_base").value_or(10000.0);
    auto dimensions = integer("rope.dimension_count");
    auto size = head_size();
    if (dimensions && size > 0 && (is("phi3") || is("glm4"))) {
      config_["partial_rotary_factor"] =
          static_cast<double>(*dimensions) / static_cast<double>(size);
    }
    auto original = integer("rope.scaling.original_context_length");
    if (is("phi3") && original) {
      config_["original_max_position_embeddings"] = *original;
    }
    json scaling = rope_scaling(original);
    if (scaling.is_null()) {
      return;
    }
    if (is("phi3") && !scaling.contains("long_factor")) {
      scaling["long_factor"] = {1.0};  // the reference asks for it always
    }
    config_["rope_scaling"] = std::move(scaling);
  }

  json rope_scaling(std::optional<std::int64_t> original) const {
    auto type = metadata_.string(key("rope.scaling.type")).value_or("");
    auto factor = number("rope.scaling.factor");
    if (!factor) {
      factor = number("rope.scale_linear");
    }
    auto long_factors = factors("rope_factors_long.weight");
    auto short_factors = factors("rope_factors_short.weight");
    if (long_factors && short_factors) {
      return {{"type", "longrope"},
              {"long_factor", *long_factors},
              {"short_factor", *short_factors},
              {"original_max_position_embeddings",
               original ? *original : required_integer("context_length")}};
    }
    // Llama 3's scaling comes as what it does to each frequency. The reference
    // scales by such factors under the name longrope, and leaves the length of
    // queries and keys alone if the context isn't beyond the original one.
    if (auto each = factors("rope_freqs.weight")) {
      return {{"type", "longrope"},
              {"long_factor", *each},
              {"short_factor", *each},
              {"original_max_position_embeddings",
               required_integer("context_length")}};
    }
    if (type == "yarn") {
      json yarn = {
          {"type", "yarn"},
          {"factor", factor ? *factor : required_number("rope.scaling.factor")},
          {"original_max_position_embeddings",
           original
               ? *original
               : required_integer("rope.scaling.original_context_length")}};
      if (auto beta = number("rope.scaling.yarn_beta_fast")) {
        yarn["beta_fast"] = *beta;
      }
      if (auto beta = number("rope.scaling.yarn_beta_slow")) {
        yarn["beta_slow"] = *beta;
      }
      return yarn;
    }
    if (type == "linear" || (type.empty() && factor)) {
      double value = factor.value_or(1.0);
      return value == 1.0 || value == 0.0
                 ? json()
                 : json{{"type", "linear"}, {"factor", value}};
    }
    if (type.empty() || type == "none") {
      return nullptr;
    }
    throw Error(ErrorKind::unsupported,
                parts_.first().path() + ": the rope scaling " +
                    quoted_name(type) +
                    " isn't supported; linear, yarn, longrope and Llama 3's "
                    "are");
  }

  void add_family() {
    if (is("mixtral")) {
      config_["num_local_experts"] = required_integer("expert_count");
      config_["num_experts_per_tok"] = required_integer("expert_used_count");
    } else if (is("qwen2_moe") || is("qwen3_moe")) {
      add_qwen_experts();
    } else if (is("gemma2")) {
      add_gemma2();
    } else if (is("gemma3_text")) {
      add_gemma3();
    } else if (is("granite")) {
      config_["logits_scaling"] = number("logit_scale").value_or(1.0);
      config_["attention_multiplier"] =
          number("attention.scale")
              .value_or(1 / std::sqrt(static_cast<double>(head_size())));
      config_["embedding_multiplier"] = number("embedding_scale").value_or(1.0);
      config_["residual_multiplier"] = number("residual_scale").value_or(1.0);
    } else if (is("cohere2")) {
      config_["logit_scale"] = required_number("logit_scale");
      config_["sliding_window"] = required_integer("attention.sliding_window");
      config_["sliding_window_pattern"] = window_pattern(4);
    } else if (is("smollm3")) {
      // Not in the metadata; all models of this kind have it.
      config_["no_rope_layer_interval"] = 4;
    } else if (is("olmo2") && metadata_.has(key("attention.sliding_window"))) {
      throw Error(ErrorKind::unsupported,
                  parts_.first().path() +
                      ": an OLMo 2 file with sliding windows is OLMo 3, which "
                      "isn't supported");
    }
  }

  void add_qwen_experts() {
    config_["num_experts"] = required_integer("expert_count");
    config_["num_experts_per_tok"] = required_integer("expert_used_count");
    auto width = integer_or_dimension(
        "expert_feed_forward_length", "blk.0.ffn_gate_exps.weight", 1);
    config_["moe_intermediate_size"] = width;
    config_["intermediate_size"] =
        integer("feed_forward_length").value_or(width);
    if (is("qwen2_moe")) {
      config_["shared_expert_intermediate_size"] =
          integer_or_dimension("expert_shared_feed_forward_length",
                               "blk.0.ffn_gate_shexp.weight",
                               1);
      return;
    }
    config_["decoder_sparse_step"] = 1;
    config_["mlp_only_layers"] = json::array();
    config_["norm_topk_prob"] =
        metadata_.boolean(key("expert_weights_norm")).value_or(true);
  }

  // The 27B models scale attention by width per head, the others by the head's
  // size; the files don't say so, and are told apart by their layers.
  void add_query_scale(std::int64_t layers_of_27b) {
    if (auto scale = number("attention.scale"); scale && *scale > 0) {
      config_["query_pre_attn_scalar"] = 1 / (*scale * *scale);
    } else if (required_integer("block_count") == layers_of_27b) {
      config_["query_pre_attn_scalar"] =
          required_integer("embedding_length") / num_heads();
    } else {
      config_["query_pre_attn_scalar"] = head_size();
    }
  }

  void add_gemma2() {
    add_query_scale(46);
    config_["attn_logit_softcapping"] =
        number("attn_logit_softcapping").value_or(50.0);
    config_["final_logit_softcapping"] =
        number("final_logit_softcapping").value_or(30.0);
    if (auto window = integer("attention.sliding_window")) {
      config_["sliding_window"] = *window;
    }
  }

  void add_gemma3() {
    add_query_scale(62);
    config_["rope_local_base_freq"] =
        number("rope.freq_base_swa").value_or(10000.0);
    if (number("final_logit_softcapping").value_or(0) != 0) {
      throw Error(ErrorKind::unsupported,
                  parts_.first().path() +
                      ": Gemma 3 with a cap on its logits isn't supported");
    }
    auto window = integer("attention.sliding_window");
    if (window) {
      config_["sliding_window"] = *window;
      config_["sliding_window_pattern"] = window_pattern(6);
    } else {
      config_["sliding_window_pattern"] = 1;  // all layers see everything
    }
  }

  // Every how many layers one has no window: a number, or a flag per layer.
  std::int64_t window_pattern(std::int64_t usual) const {
    std::string full = key("attention.sliding_window_pattern");
    if (!metadata_.is_array(full)) {
      return metadata_.integer(full).value_or(usual);
    }
    auto windowed = *metadata_.booleans(full);
    std::size_t period = 0;
    while (period < windowed.size() && windowed[period]) {
      ++period;
    }
    ++period;
    for (std::size_t i = 0; i < windowed.size(); ++i) {
      if (windowed[i] != ((i + 1) % period != 0)) {
        throw Error(ErrorKind::unsupported,
                    parts_.first().path() + ": " + quoted_name(full) +
                        " isn't regular, which isn't supported");
      }
    }
    return static_cast<std::int64_t>(period);
  }

  void add_special_tokens() {
    json ends = json::array();
    for (const char* name : {"eos", "eot", "eom"}) {
      auto id = metadata_.integer("tokenizer.ggml." + std::string(name) +
                                  "_token_id");
      if (id && std::ranges::find(ends, json(*id)) == ends.end()) {
        ends.push_back(*id);
      }
    }
    if (!ends.empty()) {
      config_["eos_token_id"] = ends.size() == 1 ? ends.front() : ends;
    }
    if (auto id = metadata_.integer("tokenizer.ggml.bos_token_id")) {
      config_["bos_token_id"] = *id;
    }
    if (auto id = metadata_.integer("tokenizer.ggml.padding_token_id")) {
      config_["pad_token_id"] = *id;
    }
  }

  const GgufParts& parts_;
  const GgufMetadata& metadata_;
  std::string prefix_;
  std::string type_;
  json config_ = json::object();
};

}  // namespace

json gguf_config(const GgufParts& parts, const GgufArchitecture& architecture) {
  return ConfigBuilder(parts, architecture).build();
}

}  // namespace mlxlm
