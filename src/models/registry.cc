#include "models/family.h"

namespace mlxlm {
namespace {

constexpr Family kFamilies[] = {
    {"cohere2", cohere2_spec},
    {"gemma", gemma_spec},
    {"gemma2", gemma2_spec},
    {"gemma3", gemma3_spec},
    {"gemma3_text", gemma3_text_spec},
    {"glm4", glm4_spec},
    {"granite", granite_spec},
    {"iquestcoder", llama_spec},
    {"llama", llama_spec},
    {"mistral", llama_spec},
    {"mixtral", mixtral_spec},
    {"olmo2", olmo2_spec},
    {"phi3", phi3_spec},
    {"qwen2", qwen2_spec},
    {"qwen2_moe", qwen2_moe_spec},
    {"qwen3", qwen3_spec},
    {"qwen3_moe", qwen3_moe_spec},
    {"smollm3", smollm3_spec},
    {"starcoder2", starcoder2_spec},
    {"xverse", llama_spec},
};

}  // namespace

std::span<const Family> families() { return kFamilies; }

}  // namespace mlxlm
