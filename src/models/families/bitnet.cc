// bitnet: ternary weights, norms before the last projections.
#include "load/foreign_formats.h"
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

// Four numbers a byte, as published, become 2-bit groups without loss.
void convert_ternary(Checkpoint& checkpoint) {
  const nlohmann::json settings = {{"linear_class", "autobitlinear"}};
  Faults faults;
  const auto before = checkpoint.weights.size();
  const auto quantization = foreign::convert_bitnet(
      ConfigReader(settings), checkpoint.weights, faults);
  faults.throw_if_any(checkpoint.source);
  if (checkpoint.weights.size() == before) return;  // none was there
  for (const auto& [name, value] : checkpoint.weights) {
    const std::string suffix = ".scales";
    if (!name.ends_with(suffix)) continue;
    checkpoint.quantized.try_emplace(
        name.substr(0, name.size() - suffix.size()), quantization);
  }
}

}  // namespace

ArchSpec bitnet_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  convert_ternary(checkpoint);
  auto spec = read_sizes(config, KvHeads::required, HeadSize::optional);
  spec.tied_head = config.get_bool("tie_word_embeddings", true);
  read_biases(config, spec);
  spec.activation = kernels::Activation::relu_squared;
  spec.names.heads_norm = "attn_sub_norm";
  spec.names.hidden_norm = "ffn_sub_norm";
  spec.ropes = {read_rope(config,
                          spec.head_size,
                          10000,
                          false,
                          config.find_int("max_position_embeddings"))};
  return spec;
}

}  // namespace mlxlm
