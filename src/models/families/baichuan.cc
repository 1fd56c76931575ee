// baichuan_m1: keys and values mixed with those of the token before.
#include <algorithm>

#include "models/config_fields.h"
#include "models/family.h"
#include "models/weight_names.h"

namespace mlxlm {
ArchSpec baichuan_m1_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config, KvHeads::required, HeadSize::from_width);
  if (config.require_int("conv_window", 1) != 2) {
    config.fail("conv_window", "2");
  }
  spec.tied_head = config.get_bool("tie_word_embeddings", false);
  give_unit_length(checkpoint, "lm_head", -1);
  const int window = config.require_int("sliding_window", 1);
  const auto windowed = config.find_ints("sliding_window_layers");
  if (!windowed) config.fail("sliding_window_layers", "a list of layers");

  auto make = [&](int num_heads, int num_kv_heads, int window_tokens) {
    if (num_heads == 0 || num_kv_heads == 0 ||
        spec.hidden_size % num_heads != 0 || num_heads % num_kv_heads != 0) {
      config.fail("num_swa_attention_heads",
                  "a divisor of hidden_size and a multiple of the key heads, "
                  "as must num_attention_heads be");
    }
    const int head_size = spec.hidden_size / num_heads;
    spec.ropes.push_back(read_plain_rope(config, head_size, 0));
    return ConvAttentionSpec{.num_heads = num_heads,
                             .num_kv_heads = num_kv_heads,
                             .head_size = head_size,
                             .window_tokens = window_tokens,
                             .rope = static_cast<int>(spec.ropes.size()) - 1};
  };
  const int swa_heads = config.get_int("num_swa_attention_heads", 0);
  const int swa_kv_heads = config.get_int("num_swa_key_value_heads", 0);
  spec.mixers = {make(spec.num_heads, spec.num_kv_heads, 0),
                 make(swa_heads > 0 ? swa_heads : spec.num_heads,
                      swa_kv_heads > 0 ? swa_kv_heads : spec.num_kv_heads,
                      window)};
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const bool is_windowed =
        std::ranges::find(*windowed, static_cast<int>(i)) != windowed->end();
    spec.layers[i].mixer = is_windowed ? 1 : 0;
  }
  spec.own_caches = true;
  return spec;
}

}  // namespace mlxlm
