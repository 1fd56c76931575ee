// olmo, olmo2, olmo3, olmo_hybrid (gated delta networks among attention).
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {

ArchSpec olmo_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::from_width,
                         {.eps_name = nullptr,
                          .eps = 1e-5,
                          .names = {.hidden_size = "d_model",
                                    .num_layers = "n_layers",
                                    .intermediate_size = nullptr,
                                    .num_heads = "n_heads",
                                    .num_kv_heads = nullptr,
                                    .vocabulary_size = "embedding_size",
                                    .context_tokens = nullptr}});
  config.require_int("vocab_size");  // the embedding has more rows
  spec.norm.kind = kernels::NormKind::layer;
  spec.norm.weight = false;
  const int mlp_ratio = config.get_int("mlp_ratio", 4, 1, 1 << 10);
  // Of gate and up together.
  const int both = config.get_int(
      "mlp_hidden_size", mlp_ratio * spec.hidden_size, 2, 1 << 20);
  spec.intermediate_size = both / 2;
  spec.prefix = "model.transformer.";
  spec.embedding_name = "wte";
  spec.layers_name = "blocks";
  spec.head_name = spec.prefix + "ff_out";
  spec.names.attention = spec.names.mlp = "";
  spec.names.qkv = "att_proj";
  spec.names.o = "attn_out";
  spec.names.up_gate = "ff_proj";
  spec.names.down = "ff_out";
  spec.tied_head = config.get_bool("weight_tying", false);
  spec.ropes = {read_plain_rope(config,
                                spec.head_size,
                                10000,
                                config.get_bool("rope_traditional", false))};
  return spec;
}

ArchSpec olmo2_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  read_biases(config, spec);
  spec.qk_norm = QkNorm::over_heads;
  use_output_norms_only(spec);
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.find_int("max_position_embeddings"))};
  return spec;
}

ArchSpec olmo3_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  spec.qkv_bias = spec.o_bias = config.get_bool("attention_bias", false);
  spec.qk_norm = QkNorm::over_heads;
  use_output_norms_only(spec);
  read_windows(config, spec, 4);
  spec.ropes = {
      read_scaled_rope(config,
                       spec.head_size,
                       0,
                       false,
                       config.require_int("max_position_embeddings", 1)),
      read_plain_rope(config, spec.head_size, 0)};
  for (auto& layer : spec.layers) layer.rope = layer.window_tokens > 0 ? 1 : 0;
  return spec;
}

namespace {

// rope_theta of rope_parameters, else of the configuration; if null, there are
// no positions.
std::vector<nn::Rope> read_hybrid_ropes(const ConfigReader& config,
                                        int head_size) {
  const auto& fields = config.raw();
  auto parameters = config.find_object("rope_parameters");
  const auto& from = parameters ? parameters->raw() : fields;
  if (from.contains("rope_theta") && from.at("rope_theta").is_null()) return {};
  const double own = config.get_float("rope_theta", 10000);
  const double theta =
      parameters ? parameters->get_float("rope_theta", 10000) : own;
  if (theta <= 0) config.fail("rope_theta", "a positive number");
  return {
      nn::make_rope({.dimensions = head_size, .base = theta}, std::nullopt)};
}

}  // namespace

ArchSpec olmo_hybrid_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config, KvHeads::as_heads, HeadSize::optional);
  spec.tied_head = config.require_bool("tie_word_embeddings");
  spec.qkv_bias = spec.o_bias = config.require_bool("attention_bias");
  spec.qk_norm = QkNorm::over_heads;
  spec.ropes = read_hybrid_ropes(config, spec.head_size);
  auto size = [&](const char* key) {
    return config.require_int(key, 1, 1 << 14);
  };
  DeltaNetSpec delta_net{
      .num_heads = size("linear_num_value_heads"),
      .num_key_heads = size("linear_num_key_heads"),
      .key_size = size("linear_key_head_dim"),
      .value_size = size("linear_value_head_dim"),
      .num_taps = config.require_int("linear_conv_kernel_dim", 2, 1 << 10),
      .qkv = {"q_proj", "k_proj", "v_proj"},
      .convs = {"q_conv1d", "k_conv1d", "v_conv1d"},
      .decay = {"a_proj"},
      .gate = {"g_proj"},
      .beta = "b_proj",
      .norm = "o_norm",
      .out = "o_proj",
      .norm_eps =
          static_cast<float>(config.get_float("layer_norm_epsilon", 1e-5))};
  if (delta_net.num_heads % delta_net.num_key_heads != 0) {
    config.fail("linear_num_key_heads", "a divisor of linear_num_value_heads");
  }
  if (config.require_bool("linear_allow_neg_eigval")) delta_net.beta_scale = 2;
  spec.mixers = {delta_net};

  const auto types = config.find_strings("layer_types");
  if (types && types->size() != spec.layers.size()) {
    config.fail("layer_types",
                "a list of num_hidden_layers = " +
                    std::to_string(spec.layers.size()) + " types");
  }
  // The layers that attend have their norms behind their parts.
  auto attending = spec;
  use_output_norms_only(attending);
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    auto& layer = spec.layers[i];
    if (types ? (*types)[i] == "linear_attention" : i % 4 != 3) {
      layer.mixer = 0;
    } else {
      layer.names = attending.names;
      layer.rope = spec.ropes.empty() ? -1 : 0;
    }
  }
  spec.own_caches = true;
  return spec;
}

}  // namespace mlxlm
