// gpt2, gpt_bigcode, gpt_neox, gptj: LayerNorm, an MLP without a gate.
#include "models/config_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
namespace {

using Action = WeightRule::Action;

constexpr FieldNames kGptFields{.hidden_size = "n_embd",
                                .num_layers = "n_layer",
                                .intermediate_size = nullptr,
                                .num_heads = "n_head",
                                .num_kv_heads = nullptr,
                                .context_tokens = "n_positions"};

// Sizes, LayerNorm with biases, an MLP four times as wide without a gate.
ArchSpec gpt_like(const ConfigReader& config, const FieldDefaults& defaults) {
  auto spec =
      read_sizes(config, KvHeads::as_heads, HeadSize::from_width, defaults);
  if (spec.hidden_size % spec.num_heads != 0) {
    config.fail(defaults.names.hidden_size,
                "a multiple of " + std::string(defaults.names.num_heads));
  }
  use_layer_norm(spec);
  spec.intermediate_size = 4 * spec.hidden_size;
  spec.gated_mlp = false;
  spec.mlp_bias = true;
  spec.activation = kernels::Activation::gelu_tanh;
  return spec;
}

void use_learned_positions(ArchSpec& spec) {
  spec.positions_name = "wpe";
  spec.num_positions = spec.context_tokens;
  for (auto& layer : spec.layers) layer.rope = -1;
}

void use_gpt_projections(ArchSpec& spec) {
  spec.names.qkv = "c_attn";
  spec.names.o = "c_proj";
  spec.names.up = "c_fc";
  spec.names.down = "c_proj";
}

// The reference has a key head for each query head, whatever this says.
void require_kv_heads_as_heads(const ConfigReader& config,
                               const ArchSpec& spec) {
  if (config.get_int("num_key_value_heads", spec.num_heads) != spec.num_heads) {
    config.fail("num_key_value_heads",
                "the number of heads, " + std::to_string(spec.num_heads));
  }
}

}  // namespace

ArchSpec gpt2_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec =
      gpt_like(config, {.eps_name = "layer_norm_epsilon", .names = kGptFields});
  require_kv_heads_as_heads(config, spec);
  config.find_int("n_ctx");  // n_positions counts
  use_gpt_names(spec);
  use_gpt_projections(spec);
  use_learned_positions(spec);
  spec.prefix = "model.";
  spec.qkv_bias = spec.o_bias = true;
  spec.tied_head = true;
  apply_rules(checkpoint,
              {{Action::rename, "transformer.*", "*"},
               {Action::drop, "h.*.attn.bias"},
               {Action::drop, "h.*.attn.masked_bias"},
               {Action::transpose, "h.*.attn.c_attn.weight"},
               {Action::transpose, "h.*.c_proj.weight"},
               {Action::transpose, "h.*.mlp.c_fc.weight"},
               {Action::rename, "h.*", "model.h.*"},
               {Action::rename, "w*e.weight", "model.w*e.weight"},
               {Action::rename, "ln_f.*", "model.ln_f.*"}});
  return spec;
}

ArchSpec gpt_bigcode_spec(const ConfigReader& config, Checkpoint&) {
  const bool one_key_head = config.get_bool("multi_query", true);
  auto names = kGptFields;
  names.intermediate_size = "n_inner";
  auto spec = gpt_like(config,
                       {.eps_name = "layer_norm_epsilon",
                        .num_kv_heads = one_key_head ? 1 : 0,
                        .names = names});
  spec.intermediate_size = config.require_int("n_inner", 1);
  const int num_kv_heads =
      config.get_int("num_key_value_heads", spec.num_kv_heads);
  if (num_kv_heads != spec.num_kv_heads) {
    config.fail(
        "num_key_value_heads",
        "what multi_query makes it, " + std::to_string(spec.num_kv_heads));
  }
  use_gpt_names(spec);
  use_gpt_projections(spec);
  use_learned_positions(spec);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", true);
  spec.mlp_bias = config.get_bool("mlp_bias", true);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  spec.activation = kernels::Activation::gelu;
  return spec;
}

ArchSpec gpt_neox_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = gpt_like(
      config,
      {.eps_name = "layer_norm_eps",
       .names = {.intermediate_size = nullptr, .num_kv_heads = nullptr}});
  require_kv_heads_as_heads(config, spec);
  spec.embedding_name = "embed_in";
  spec.layers_name = "h";
  spec.norm_name = "final_layer_norm";
  spec.head_name = "model.embed_out";
  spec.names.attention = "attention";
  spec.names.qkv = "query_key_value";
  spec.names.o = "dense";
  spec.names.up = "dense_h_to_4h";
  spec.names.down = "dense_4h_to_h";
  spec.qkv_layout = QkvLayout::by_key_head;
  spec.qkv_bias = spec.o_bias = true;
  spec.parallel = config.get_bool("use_parallel_residual", true);
  const double base = config.require_float("rotary_emb_base");
  if (base <= 0) config.fail("rotary_emb_base", "a positive number");
  spec.ropes = {nn::make_rope(
      {.dimensions = rotated_dimensions(
           config, spec.head_size, config.require_float("rotary_pct")),
       .base = base},
      std::nullopt)};
  apply_rules(checkpoint,
              {{Action::rename, "model.gpt_neox.*", "gpt_neox.*"},
               {Action::drop, "*.attention.bias"},
               {Action::drop, "*.attention.masked_bias"},
               {Action::rename, "gpt_neox.layers.*", "model.h.*"},
               {Action::rename, "gpt_neox.*", "model.*"},
               {Action::rename, "embed_out.*", "model.embed_out.*"}});
  return spec;
}

ArchSpec gptj_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = gpt_like(config,
                       {.hidden_size = 4096,
                        .num_layers = 28,
                        .num_heads = 16,
                        .vocabulary_size = 50400,
                        .eps_name = "layer_norm_epsilon",
                        .eps = 1e-5,
                        .names = kGptFields});
  if (spec.context_tokens == 0) spec.context_tokens = 2048;
  use_gpt_names(spec);
  spec.prefix = "model.";
  spec.names.mlp_norm = "";
  spec.names.o = "out_proj";
  spec.names.up = "fc_in";
  spec.names.down = "fc_out";
  spec.parallel = true;
  spec.head_bias = true;
  const bool given_as_null = config.raw().contains("rotary_dim");
  int dimensions =
      config.get_int("rotary_dim", given_as_null ? 0 : 64, 0, spec.head_size);
  if (dimensions == 0) dimensions = spec.head_size;
  spec.ropes = {nn::make_rope({.dimensions = dimensions, .traditional = true},
                              std::nullopt)};
  apply_rules(checkpoint,
              {{Action::drop, "transformer.h.*.attn.masked_bias"},
               {Action::drop, "transformer.h.*.attn.bias"},
               {Action::rename, "transformer.*", "model.*"}});
  return spec;
}

}  // namespace mlxlm
