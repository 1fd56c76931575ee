// Every family against the reference: the models that make_models.py made.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/cache.h>
#include <mlxlm/model.h>

#include "kernels/seam.h"
#include "tests/parity/batch_check.h"
#include "tests/parity/expectation.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm::parity {
namespace {

namespace fs = std::filesystem;

constexpr int kGroupSize = 32;  // of quantized keys and values

mx::array row_of(const std::vector<int>& tokens) {
  return mx::array(tokens.data(), {1, static_cast<int>(tokens.size())});
}

mx::array forward(Model& model,
                  const std::vector<int>& tokens,
                  const PromptCache& cache) {
  auto logits = mx::squeeze(model.forward(row_of(tokens), cache), 0);
  mx::eval(logits);
  return logits;
}

// In chunks of 7 and 9 tokens, then token by token.
mx::array forward_in_chunks(Model& model, const std::vector<int>& tokens) {
  auto cache = model.make_cache();
  std::vector<mx::array> parts;
  std::size_t begin = 0;
  for (std::size_t step = 0; begin < tokens.size(); ++step) {
    const std::size_t size = step == 0 ? 7 : step == 1 ? 9 : 1;
    const auto end = std::min(begin + size, tokens.size());
    parts.push_back(
        forward(model, {tokens.begin() + begin, tokens.begin() + end}, cache));
    begin = end;
  }
  return mx::concatenate(parts, 0);
}

struct Greedy {
  std::vector<int> tokens;
  std::vector<mx::array> logprobs;
};

// As the reference's generate_step: all but the last prompt token at once.
// `after_step` may exchange the caches.
Greedy run_greedy(Model& model,
                  std::vector<int> prompt,
                  PromptCache cache,
                  const std::function<void(PromptCache&)>& after_step = {}) {
  Greedy result;
  std::vector<int> next{prompt.back()};
  prompt.pop_back();
  forward(model, prompt, cache);
  for (int step = 0; step < 24; ++step) {
    if (after_step) after_step(cache);
    auto logits = forward(model, next, cache);
    auto logprobs = mx::subtract(logits, mx::logsumexp(logits, -1, true));
    const int token = static_cast<int>(mx::argmax(logits).item<uint32_t>());
    result.tokens.push_back(token);
    result.logprobs.push_back(mx::squeeze(logprobs, 0));
    next = {token};
  }
  return result;
}

void quantize(PromptCache& cache, int bits) {
  for (auto& layer : cache) {
    if (layer->kind() == "KVCache")
      layer = layer->to_quantized({bits, bits, kGroupSize});
  }
}

// Their codes for keys or values in place of ours, which may differ where a
// number lies on the edge between two codes: sums in another order.
void adopt(const Expectation& expected,
           const std::string& name,
           int bits,
           CacheState& rows) {
  const std::vector<mx::array> theirs = {expected.array(name + "_data"),
                                         expected.array(name + "_scales"),
                                         expected.array(name + "_biases")};
  std::vector<mx::array> ours;
  auto& leaves = std::get<CacheState::List>(rows.value);
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    auto& leaf = std::get<mx::array>(leaves.at(i).value);
    ours.push_back(mx::slice(leaf, {0, 0, 0, 0}, theirs[i].shape()));
    leaf = theirs[i];
  }
  auto values = [bits](const std::vector<mx::array>& q) {
    return mx::dequantize(q[0], q[1], q[2], kGroupSize, bits);
  };
  auto step = mx::repeat(mx::abs(theirs[1]), kGroupSize, -1);
  auto gap = mx::divide(mx::abs(mx::subtract(values(ours), values(theirs))),
                        step);  // in steps between codes
  EXPECT_LE(mx::max(gap).item<float>(), 1.1f) << name;
  auto differ = mx::astype(mx::greater(gap, mx::array(0.1f)), mx::float32);
  EXPECT_LE(mx::mean(differ).item<float>(), 0.005f) << name;
}

// The first step from the reference's quantized keys and values.
mx::array step_from_their_codes(Model& model,
                                const Expectation& expected,
                                std::vector<int> tokens,
                                int bits) {
  const int last = tokens.back();
  tokens.pop_back();
  auto cache = model.make_cache();
  forward(model, tokens, cache);
  quantize(cache, bits);
  for (std::size_t i = 0; i < cache.size(); ++i) {
    if (cache[i]->kind() != "QuantizedKVCache") continue;
    const auto name = "kv" + std::to_string(bits) + "_" + std::to_string(i);
    auto state = cache[i]->state();
    auto& parts = std::get<CacheState::List>(state.value);
    adopt(expected, name + "_keys", bits, parts.at(0));
    adopt(expected, name + "_values", bits, parts.at(1));
    cache[i]->set_state(state);
  }
  auto logits = forward(model, {last}, cache);
  return mx::squeeze(mx::subtract(logits, mx::logsumexp(logits, -1, true)), 0);
}

// A cache that was saved and loaded goes on as the one it was saved from.
void check_saved(Model& model, std::vector<int> tokens) {
  const int last = tokens.back();
  tokens.pop_back();
  auto cache = model.make_cache();
  forward(model, tokens, cache);
  const TemporaryFolder folder;
  const auto path = (folder.path() / "cache.safetensors").string();
  save_prompt_cache(path, cache);
  const auto saved = load_prompt_cache(path).first;
  EXPECT_TRUE(mx::array_equal(forward(model, {last}, saved),
                              forward(model, {last}, cache))
                  .item<bool>());
}

void check_model(const fs::path& folder) {
  SCOPED_TRACE(folder.string());
  const Expectation expected(folder);
  auto model = load_model(folder.string());
  const auto tokens = expected.ints("tokens");
  EXPECT_TRUE(expected.near("logits", forward(*model, tokens, {})));
  EXPECT_TRUE(
      expected.near("logits_cached", forward_in_chunks(*model, tokens)));
  auto greedy = run_greedy(*model, tokens, model->make_cache());
  EXPECT_TRUE(expected.same_tokens("greedy", greedy.tokens));
  for (int bits : {4, 8}) {
    const auto name = "kv" + std::to_string(bits);
    if (!expected.has(name + "_greedy")) continue;
    auto run = run_greedy(
        *model, tokens, model->make_cache(), [&](PromptCache& cache) {
          quantize(cache, bits);
        });
    EXPECT_TRUE(expected.same_tokens(name, run.tokens));
    EXPECT_TRUE(
        expected.near(name + "_first_logprobs",
                      step_from_their_codes(*model, expected, tokens, bits)));
  }
  if (expected.has("rot_greedy")) {
    auto run = run_greedy(*model, tokens, model->make_cache(16));
    EXPECT_TRUE(expected.same_tokens("rot", run.tokens));
    if (run.tokens == expected.ints("rot_greedy")) {
      EXPECT_TRUE(expected.near("rot_last_logprobs", run.logprobs.back()));
    }
  }
  if (folder.filename() == "visible") check_saved(*model, tokens);
  if (expected.has("single_greedy")) {
    check_batch(model, expected);
  } else {
    check_batch(model, tokens);
  }
}

constexpr const char* kFamilies[] = {
    "Klear",
    "afm7",
    "afmoe",
    "apertus",
    "baichuan_m1",
    "bailing_hybrid",
    "bailing_moe",
    "bailing_moe_linear",
    "bailing_moe_v3",
    "bitnet",
    "cohere",
    "cohere2",
    "dbrx",
    "deepseek",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "deepseek_v41",
    "deepseek_v41_text",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone",
    "exaone4",
    "exaone_moe",
    "falcon_h1",
    "falcon_mamba",
    "gear",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma3n",
    "gemma4",
    "gemma4_text",
    "gemma4_unified",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "helium",
    "hunyuan",
    "hunyuan_v1_dense",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "iquestloopcoder",
    "jamba",
    "joyai_llm_flash",
    "kimi_k2",
    "kimi_k25",
    "kimi_k3",
    "kimi_linear",
    "kimi_vl",
    "laguna",
    "lfm2",
    "lfm2-vl",
    "lfm2_moe",
    "lille-130m",
    "llama",
    "llama4",
    "llama4_text",
    "llava",
    "longcat_flash",
    "longcat_flash_ngram",
    "mamba",
    "mamba2",
    "mellum",
    "mimo",
    "mimo_v2_flash",
    "minicpm",
    "minicpm3",
    "minimax",
    "minimax_m2",
    "minimax_m3_vl",
    "ministral3",
    "mistral",
    "mistral3",
    "mistral4",
    "mixtral",
    "muse_glimmer",
    "muse_spark",
    "nanbeige",
    "nanochat",
    "nemotron",
    "nemotron-nas",
    "nemotron_h",
    "olmo",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "olmoe",
    "openelm",
    "phi",
    "phi-msft",
    "phi3",
    "phi3small",
    "phimoe",
    "phixtral",
    "pixtral",
    "plamo",
    "plamo2",
    "plamo3",
    "prism_hadamard_qwen35",
    "qwen",
    "qwen2",
    "qwen2_5_vl",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_vl",
    "qwen3_vl_moe",
    "recurrent_gemma",
    "rwkv7",
    "seed_oss",
    "smollm3",
    "solar_open",
    "spark2_5",
    "stablelm",
    "starcoder2",
    "step3p5",
    "talkie",
    "telechat3",
    "xverse",
    "youtu_llm",
};

class ModelParity : public testing::TestWithParam<const char*> {};

TEST_P(ModelParity, EveryVariant) {
  const char* models = std::getenv("MLXLM_PARITY_MODELS");
  if (models == nullptr) {
    GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set; ./test makes the models";
  }
  if (std::ifstream skipped(fs::path(models) / "SKIPPED"); skipped) {
    GTEST_SKIP() << std::string(std::istreambuf_iterator<char>(skipped), {});
  }
  const auto family = fs::path(models) / GetParam();
  ASSERT_TRUE(fs::is_directory(family)) << family;
  std::vector<fs::path> variants(fs::directory_iterator(family), {});
  std::sort(variants.begin(), variants.end());
  EXPECT_GE(variants.size(), 3u);
  // Whatever the kernels, options take the same ways: two show them.
  if (kernels::table().name == "reference") variants.resize(2);
  for (const auto& variant : variants) check_model(variant);
}

TEST(ModelParityList, EveryModelThatWasMadeIsCompared) {
  const char* models = std::getenv("MLXLM_PARITY_MODELS");
  if (models == nullptr) GTEST_SKIP() << "MLXLM_PARITY_MODELS isn't set";
  for (const auto& entry : fs::directory_iterator(models)) {
    const auto name = entry.path().filename().string();
    EXPECT_TRUE(!entry.is_directory() ||
                std::ranges::find(kFamilies, name) != std::end(kFamilies))
        << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Families,
                         ModelParity,
                         testing::ValuesIn(kFamilies),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace mlxlm::parity
