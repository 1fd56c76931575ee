// prism_hadamard_qwen35: qwen3_5 with matrices of 2 bits, to the inputs of
// which a Hadamard rotation belongs.
#include "models/config_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

constexpr int kMaxBlock = 8192;

void check_format(const ConfigReader& config) {
  const int version = config.get_int("schema_version", 2, 1, 2);
  require_text(config,
               "tensor_namespace",
               version == 1 ? "mlx-lm-text" : "mlx-vlm-qwen3_5");
  require_text(config, "gdn_activation_layout", "grouped");
  const auto quantization = config.require_object("quantization");
  if (quantization.require_int("bits") != 2) quantization.fail("bits", "2");
  if (quantization.require_int("group_size") != 128) {
    quantization.fail("group_size", "128");
  }
  require_text(quantization, "mode", "affine");
}

// Of one record of `modules`; 0: its inputs aren't rotated.
int read_block(const ConfigReader& module) {
  require_text(module, "dtype", "float16");
  const int block = module.require_int("block", 0, kMaxBlock);
  if (block != 0 && (block < 512 || (block & (block - 1)) != 0)) {
    module.fail("block", "0 or a power of two from 512 to 8192");
  }
  return block;
}

}  // namespace

ArchSpec prism_hadamard_qwen35_spec(const ConfigReader& config,
                                    Checkpoint& checkpoint) {
  check_format(config);
  auto spec = qwen3_5_spec(config, checkpoint);
  const auto* modules = config.find("modules");
  if (modules == nullptr || !modules->is_array() || modules->empty()) {
    config.fail("modules", "a list of the modules that are packed");
  }
  const std::string text_half = "language_model.";
  for (const auto& record : *modules) {
    if (!record.is_object()) config.fail("modules", "a list of objects");
    const ConfigReader module(record, "config.json: modules");
    const auto path = text_half + module.require_string("path");
    const bool embedding = path == spec.prefix + spec.embedding_name;
    if (module.require_bool("embedding") != embedding) {
      module.fail("embedding", "true for the table of embeddings alone");
    }
    const int block = read_block(module);
    if (block > 0) checkpoint.rotated.insert_or_assign(path, block);
  }
  return spec;
}

}  // namespace mlxlm
