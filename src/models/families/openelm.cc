// openelm: every layer has sizes of its own.
#include <algorithm>
#include <cmath>

#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

constexpr int kMaxWidth = 1 << 20;

// The nearest multiple of `divisor`, at least one, and not less than 90 % of
// `value`.
int nearest_multiple(double value, int divisor) {
  auto nearest = std::max<double>(
      divisor, std::floor((value + divisor / 2.0) / divisor) * divisor);
  if (nearest < 0.9 * value) nearest += divisor;
  return static_cast<int>(std::min<double>(nearest, kMaxWidth));
}

}  // namespace

ArchSpec openelm_spec(const ConfigReader& config, Checkpoint&) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::required,
                         {.eps = 1e-6,
                          .names = {.hidden_size = "model_dim",
                                    .num_layers = "num_transformer_layers",
                                    .intermediate_size = nullptr,
                                    .num_heads = nullptr,
                                    .num_kv_heads = nullptr,
                                    .context_tokens = "max_context_length"}});
  require_true(config, "ffn_with_glu");
  const auto num_layers = spec.layers.size();
  const std::string wanted =
      "a list of num_transformer_layers = " + std::to_string(num_layers) +
      " positive numbers";
  auto read = [&](const char* key) {
    auto list = config.find_floats(key);
    if (!list || list->size() != num_layers ||
        !std::all_of(list->begin(), list->end(), [](double each) {
          return each > 0 && each < 1 << 14;
        })) {
      config.fail(key, wanted);
    }
    return *list;
  };
  const auto heads = read("num_query_heads");
  const auto kv_heads = read("num_kv_heads");
  const auto multipliers = read("ffn_multipliers");
  const int divisor = config.require_int("ffn_dim_divisor", 1, kMaxWidth);
  for (std::size_t i = 0; i < num_layers; ++i) {
    auto& layer = spec.layers[i];
    layer.num_heads = static_cast<int>(heads[i]);
    layer.num_kv_heads = static_cast<int>(kv_heads[i]);
    if (layer.num_kv_heads < 1 || layer.num_heads % layer.num_kv_heads != 0) {
      config.fail("num_kv_heads", "divisors of num_query_heads");
    }
    layer.intermediate_size =
        nearest_multiple(multipliers[i] * spec.hidden_size, divisor);
  }
  spec.prefix = "transformer.";
  spec.embedding_name = "token_embeddings";
  spec.tied_head = config.get_bool("share_input_output_layers", true);
  spec.names.attention = "attn";
  spec.names.qkv = "qkv_proj";
  spec.names.o = "out_proj";
  spec.names.attention_norm = "attn_norm";
  spec.names.mlp = "ffn";
  spec.names.gate_up = "proj_1";
  spec.names.down = "proj_2";
  spec.names.mlp_norm = "ffn_norm";
  if (config.get_bool("normalize_qk_projections", true)) {
    spec.qk_norm = QkNorm::per_head;
  }
  const double base = config.get_float("rope_freq_constant", 10000);
  if (base <= 0) config.fail("rope_freq_constant", "a positive number");
  spec.ropes = {nn::make_rope({.dimensions = spec.head_size, .base = base},
                              std::nullopt)};
  return spec;
}

}  // namespace mlxlm
