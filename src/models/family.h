// The families of architectures, one function per model type.
#pragma once

#include <span>
#include <string_view>

#include "load/checkpoint.h"
#include "load/config.h"
#include "models/traits.h"

namespace mlxlm {

// Turns a configuration into a spec. May rename, join and drop the
// checkpoint's tensors until they have the names that the spec gives them; what
// all families need (lm_head of tied models, rotary tables) isn't its business.
using MakeSpec = ArchSpec (*)(const ConfigReader& config,
                              Checkpoint& checkpoint);

// Before make_spec where the draft head is asked for: changes the configuration
// so that it describes one layer more, the head's, and gives the head's tensors
// the names that DraftHeadSpec says. Only the first of several heads is used.
using PlaceDraftHead = DraftHeadSpec (*)(nlohmann::json& config,
                                         Checkpoint& checkpoint);

struct Family {
  std::string_view model_type;
  MakeSpec make_spec;
  Traits traits = 0;                          // of the list of model types
  PlaceDraftHead place_draft_head = nullptr;  // it has none
};

std::span<const Family> families();

ArchSpec afm7_spec(const ConfigReader&, Checkpoint&);
ArchSpec apertus_spec(const ConfigReader&, Checkpoint&);
ArchSpec arcee_spec(const ConfigReader&, Checkpoint&);
ArchSpec hy_v3_spec(const ConfigReader&, Checkpoint&);
ArchSpec baichuan_m1_spec(const ConfigReader&, Checkpoint&);
ArchSpec bailing_hybrid_spec(const ConfigReader&, Checkpoint&);
ArchSpec bailing_moe_linear_spec(const ConfigReader&, Checkpoint&);
ArchSpec bitnet_spec(const ConfigReader&, Checkpoint&);
ArchSpec cohere2_spec(const ConfigReader&, Checkpoint&);
ArchSpec cohere_spec(const ConfigReader&, Checkpoint&);
ArchSpec ernie4_5_spec(const ConfigReader&, Checkpoint&);
ArchSpec exaone4_spec(const ConfigReader&, Checkpoint&);
ArchSpec exaone_spec(const ConfigReader&, Checkpoint&);
ArchSpec falcon_h1_spec(const ConfigReader&, Checkpoint&);
ArchSpec gear_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma2_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma3_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma3_text_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma3n_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma4_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma4_text_spec(const ConfigReader&, Checkpoint&);
ArchSpec gemma_spec(const ConfigReader&, Checkpoint&);
ArchSpec glm4_spec(const ConfigReader&, Checkpoint&);
ArchSpec glm_spec(const ConfigReader&, Checkpoint&);
ArchSpec gpt2_spec(const ConfigReader&, Checkpoint&);
ArchSpec gpt_bigcode_spec(const ConfigReader&, Checkpoint&);
ArchSpec gpt_neox_spec(const ConfigReader&, Checkpoint&);
ArchSpec gptj_spec(const ConfigReader&, Checkpoint&);
ArchSpec granite_spec(const ConfigReader&, Checkpoint&);
ArchSpec granitemoehybrid_spec(const ConfigReader&, Checkpoint&);
ArchSpec helium_spec(const ConfigReader&, Checkpoint&);
ArchSpec hunyuan_spec(const ConfigReader&, Checkpoint&);
ArchSpec hunyuan_v1_dense_spec(const ConfigReader&, Checkpoint&);
ArchSpec internlm2_spec(const ConfigReader&, Checkpoint&);
ArchSpec internlm3_spec(const ConfigReader&, Checkpoint&);
ArchSpec iquestloopcoder_spec(const ConfigReader&, Checkpoint&);
ArchSpec jamba_spec(const ConfigReader&, Checkpoint&);
ArchSpec kimi_linear_spec(const ConfigReader&, Checkpoint&);
ArchSpec kimi_k3_spec(const ConfigReader&, Checkpoint&);
ArchSpec lfm2_spec(const ConfigReader&, Checkpoint&);
ArchSpec lfm2_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec lfm2_vl_spec(const ConfigReader&, Checkpoint&);
ArchSpec lille_spec(const ConfigReader&, Checkpoint&);
ArchSpec llama_spec(const ConfigReader&, Checkpoint&);
ArchSpec mamba_spec(const ConfigReader&, Checkpoint&);
ArchSpec mamba2_spec(const ConfigReader&, Checkpoint&);
ArchSpec mimo_spec(const ConfigReader&, Checkpoint&);
ArchSpec minicpm_spec(const ConfigReader&, Checkpoint&);
ArchSpec ministral3_spec(const ConfigReader&, Checkpoint&);
ArchSpec mistral3_spec(const ConfigReader&, Checkpoint&);
ArchSpec mixtral_spec(const ConfigReader&, Checkpoint&);
ArchSpec muse_glimmer_spec(const ConfigReader&, Checkpoint&);
ArchSpec muse_spark_spec(const ConfigReader&, Checkpoint&);
ArchSpec nanbeige_spec(const ConfigReader&, Checkpoint&);
ArchSpec nanochat_spec(const ConfigReader&, Checkpoint&);
ArchSpec nemotron_nas_spec(const ConfigReader&, Checkpoint&);
ArchSpec nemotron_spec(const ConfigReader&, Checkpoint&);
ArchSpec nemotron_h_spec(const ConfigReader&, Checkpoint&);
ArchSpec olmo2_spec(const ConfigReader&, Checkpoint&);
ArchSpec olmo3_spec(const ConfigReader&, Checkpoint&);
ArchSpec olmo_spec(const ConfigReader&, Checkpoint&);
ArchSpec olmo_hybrid_spec(const ConfigReader&, Checkpoint&);
ArchSpec openelm_spec(const ConfigReader&, Checkpoint&);
ArchSpec phi3_spec(const ConfigReader&, Checkpoint&);
ArchSpec phi3small_spec(const ConfigReader&, Checkpoint&);
ArchSpec phi_spec(const ConfigReader&, Checkpoint&);
ArchSpec pixtral_spec(const ConfigReader&, Checkpoint&);
ArchSpec plamo2_spec(const ConfigReader&, Checkpoint&);
ArchSpec plamo3_spec(const ConfigReader&, Checkpoint&);
ArchSpec plamo_spec(const ConfigReader&, Checkpoint&);
ArchSpec prism_hadamard_qwen35_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen2_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen2_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen2_vl_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen3_5_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen3_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen3_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen3_next_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen3_vl_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen_spec(const ConfigReader&, Checkpoint&);
ArchSpec recurrent_gemma_spec(const ConfigReader&, Checkpoint&);
ArchSpec rwkv7_spec(const ConfigReader&, Checkpoint&);
ArchSpec seed_oss_spec(const ConfigReader&, Checkpoint&);
ArchSpec smollm3_spec(const ConfigReader&, Checkpoint&);
ArchSpec spark2_5_spec(const ConfigReader&, Checkpoint&);
ArchSpec stablelm_spec(const ConfigReader&, Checkpoint&);
ArchSpec starcoder2_spec(const ConfigReader&, Checkpoint&);
ArchSpec talkie_spec(const ConfigReader&, Checkpoint&);
ArchSpec telechat3_spec(const ConfigReader&, Checkpoint&);
ArchSpec deepseek_spec(const ConfigReader&, Checkpoint&);
ArchSpec deepseek_v2_spec(const ConfigReader&, Checkpoint&);
ArchSpec deepseek_v3_spec(const ConfigReader&, Checkpoint&);
ArchSpec kimi_k25_spec(const ConfigReader&, Checkpoint&);
ArchSpec deepseek_v32_spec(const ConfigReader&, Checkpoint&);
ArchSpec deepseek_v4_spec(const ConfigReader&, Checkpoint&);
ArchSpec deepseek_v41_spec(const ConfigReader&, Checkpoint&);
ArchSpec glm_moe_dsa_spec(const ConfigReader&, Checkpoint&);
ArchSpec glm4_moe_lite_spec(const ConfigReader&, Checkpoint&);
ArchSpec mistral4_spec(const ConfigReader&, Checkpoint&);
ArchSpec youtu_llm_spec(const ConfigReader&, Checkpoint&);
ArchSpec minicpm3_spec(const ConfigReader&, Checkpoint&);
ArchSpec olmoe_spec(const ConfigReader&, Checkpoint&);
ArchSpec granitemoe_spec(const ConfigReader&, Checkpoint&);
ArchSpec ernie4_5_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec longcat_flash_ngram_spec(const ConfigReader&, Checkpoint&);
ArchSpec longcat_flash_spec(const ConfigReader&, Checkpoint&);
ArchSpec mellum_spec(const ConfigReader&, Checkpoint&);
ArchSpec minimax_m3_vl_spec(const ConfigReader&, Checkpoint&);
ArchSpec minimax_spec(const ConfigReader&, Checkpoint&);
ArchSpec klear_spec(const ConfigReader&, Checkpoint&);
ArchSpec phimoe_spec(const ConfigReader&, Checkpoint&);
ArchSpec glm4_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec dots1_spec(const ConfigReader&, Checkpoint&);
ArchSpec exaone_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec gpt_oss_spec(const ConfigReader&, Checkpoint&);
ArchSpec qwen3_vl_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec afmoe_spec(const ConfigReader&, Checkpoint&);
ArchSpec step3p5_spec(const ConfigReader&, Checkpoint&);
ArchSpec laguna_spec(const ConfigReader&, Checkpoint&);
ArchSpec mimo_v2_flash_spec(const ConfigReader&, Checkpoint&);
ArchSpec llama4_spec(const ConfigReader&, Checkpoint&);
ArchSpec llama4_text_spec(const ConfigReader&, Checkpoint&);
ArchSpec bailing_moe_spec(const ConfigReader&, Checkpoint&);
ArchSpec dbrx_spec(const ConfigReader&, Checkpoint&);
ArchSpec phixtral_spec(const ConfigReader&, Checkpoint&);

DraftHeadSpec place_deepseek_head(nlohmann::json&, Checkpoint&);
DraftHeadSpec place_kimi_head(nlohmann::json&, Checkpoint&);
DraftHeadSpec place_mimo_head(nlohmann::json&, Checkpoint&);
DraftHeadSpec place_mimo_v2_head(nlohmann::json&, Checkpoint&);
DraftHeadSpec place_exaone_moe_head(nlohmann::json&, Checkpoint&);
DraftHeadSpec place_qwen_hybrid_head(nlohmann::json&, Checkpoint&);

}  // namespace mlxlm
