// The families of architectures, one function per model type.
#pragma once

#include <span>
#include <string_view>

#include "load/checkpoint.h"
#include "load/config.h"
#include "models/arch_spec.h"

namespace mlxlm {

// Turns a configuration into a spec. May rename, join and drop the
// checkpoint's tensors until they have the names that the spec gives them; what
// all families need (lm_head of tied models, rotary tables) isn't its business.
using MakeSpec = ArchSpec (*)(const ConfigReader& config,
                              Checkpoint& checkpoint);

struct Family {
  std::string_view model_type;
  MakeSpec make_spec;
};

std::span<const Family> families();

ArchSpec llama_spec(const ConfigReader&, Checkpoint&);
ArchSpec smollm3_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen2_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen3_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen2_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen3_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec mixtral_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma2_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma3_text_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma3_spec(const ConfigReader&, Checkpoint&);
ArchSpec phi3_spec(const ConfigReader&, Checkpoint&);
ArchSpec granite_spec(const ConfigReader&, Checkpoint&);
ArchSpec olmo2_spec(const ConfigReader&, Checkpoint&);
ArchSpec cohere2_spec(const ConfigReader&, Checkpoint&);
ArchSpec glm4_spec(const ConfigReader&, Checkpoint&);
ArchSpec starcoder2_spec(const ConfigReader&, Checkpoint&);

}  // namespace mlxlm
