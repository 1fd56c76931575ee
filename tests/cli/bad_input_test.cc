// What goes wrong is told in one line, with nothing on standard output.
#include <filesystem>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include <mlx/mlx.h>

#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

namespace mx = mlx::core;

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class CliBadInput : public CliTest {
 protected:
  void SetUp() override { write_model(); }

  std::filesystem::path file(const std::string& name) const {
    return folder_ / "model" / name;
  }

  void cut(const std::string& name, double share) const {
    std::filesystem::resize_file(
        file(name),
        static_cast<std::uintmax_t>(
            share *
            static_cast<double>(std::filesystem::file_size(file(name)))));
  }

  void change_config(const std::function<void(json&)>& change) const {
    json config = tiny_config();
    change(config);
    write_text(file("config.json"), config.dump());
  }

  void change_weights(
      const std::function<void(std::unordered_map<std::string, mx::array>&)>&
          change) const {
    auto weights = tiny_weights();
    change(weights);
    mx::save_safetensors(file("model.safetensors").string(), weights);
  }

  void set_template(const std::string& source) const {
    json config = tiny_tokenizer_config();
    config["chat_template"] = source;
    write_text(file("tokenizer_config.json"), config.dump());
  }

  ProcessResult generate_some(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words = {"-p", "hi", "-m", "2", "--ignore-eos"};
    words.insert(words.end(), more.begin(), more.end());
    return generate(words);
  }
};

TEST_F(CliBadInput, MissingFolder) {
  for (const char* verb : {"generate", "info", "benchmark"}) {
    EXPECT_THAT(run({verb, "--model", path("nowhere")}),
                FailsWith(HasSubstr("nowhere")));
  }
  EXPECT_THAT(run({"score", "--model", path("nowhere"), "--text", "x"}),
              FailsWith(HasSubstr("nowhere")));
}

TEST_F(CliBadInput, TheDefaultModelIsMissing) {
  EXPECT_THAT(run({"generate"}), FailsWith(HasSubstr("smollm2-135m-instruct")));
}

TEST_F(CliBadInput, AHubModelThatIsNotInTheCacheWhileOffline) {
  EXPECT_THAT(run({"generate", "--model", "org/name"}),
              FailsWith(HasSubstr("org/name")));
}

TEST_F(CliBadInput, EmptyFolder) {
  std::filesystem::create_directory(folder_ / "empty");
  EXPECT_THAT(run({"generate", "--model", path("empty")}),
              FailsWith(HasSubstr("config.json")));
}

TEST_F(CliBadInput, TruncatedSafetensors) {
  cut("model.safetensors", 0.5);
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("model.safetensors")));
}

TEST_F(CliBadInput, SafetensorsWithoutContent) {
  write_text(file("model.safetensors"), "");
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("model.safetensors")));
}

TEST_F(CliBadInput, SafetensorsWithAHugeHeader) {
  write_text(file("model.safetensors"), std::string(8, '\xFF') + "{}");
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("model.safetensors")));
}

TEST_F(CliBadInput, TruncatedGguf) {
  write_text(folder_ / "model.gguf", std::string("GGUF\3\0\0\0\1\0", 10));
  EXPECT_THAT(run({"generate", "--model", path("model.gguf")}),
              FailsWith(HasSubstr("model.gguf")));
}

TEST_F(CliBadInput, HostileGguf) {
  // 2^63 tensors and metadata entries.
  std::string count("\0\0\0\0\0\0\0\x80", 8);
  write_text(folder_ / "model.gguf",
             std::string("GGUF\3\0\0\0", 8) + count + count);
  EXPECT_THAT(run({"generate", "--model", path("model.gguf")}),
              FailsWith(HasSubstr("model.gguf")));
}

TEST_F(CliBadInput, ConfigIsNotJson) {
  write_text(file("config.json"), "{\"model_type\": ");
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("config.json")));
}

TEST_F(CliBadInput, ConfigWithoutAField) {
  change_config([](json& config) { config.erase("hidden_size"); });
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("hidden_size")));
}

TEST_F(CliBadInput, ConfigWithAWrongType) {
  change_config([](json& config) { config["num_hidden_layers"] = "two"; });
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("num_hidden_layers")));
}

TEST_F(CliBadInput, ConfigWithZeroHeads) {
  change_config([](json& config) { config["num_attention_heads"] = 0; });
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("num_attention_heads")));
}

TEST_F(CliBadInput, UnknownModelTypeNamesTheNearest) {
  change_config([](json& config) { config["model_type"] = "lama"; });
  EXPECT_THAT(generate_some(),
              FailsWith(AllOf(HasSubstr("lama"), HasSubstr("llama"))));
}

TEST_F(CliBadInput, WeightsMissingExtraAndMisshapenAreListedAtOnce) {
  change_weights([](auto& weights) {
    weights.erase("model.norm.weight");
    weights.emplace("model.surplus.weight", mx::zeros({2, 2}));
    weights.insert_or_assign("model.layers.0.mlp.up_proj.weight",
                             mx::zeros({3, 5}));
  });
  EXPECT_THAT(generate_some(),
              FailsWith(AllOf(HasSubstr("model.norm.weight"),
                              HasSubstr("model.surplus.weight"),
                              HasSubstr("model.layers.0.mlp.up_proj"))));
}

TEST_F(CliBadInput, TokenizerCutShort) {
  cut("tokenizer.json", 0.5);
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("tokenizer.json")));
}

TEST_F(CliBadInput, NoTokenizer) {
  write_model({.tokenizer = false});
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("tokenizer")));
}

TEST_F(CliBadInput, TemplateThatLoopsForever) {
  set_template(
      "{% for i in range(100000) %}{% for j in range(100000) %}"
      "{% for k in range(100000) %}x{% endfor %}{% endfor %}{% endfor %}");
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("template")));
}

TEST_F(CliBadInput, TemplateThatRecurses) {
  set_template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("template")));
}

TEST_F(CliBadInput, TemplateThatDoesNotParse) {
  set_template("{% if %}");
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("template")));
}

TEST_F(CliBadInput, TemplateThatRaises) {
  set_template("{{ raise_exception('only assistants') }}");
  EXPECT_THAT(generate_some(), FailsWith(HasSubstr("only assistants")));
}

TEST_F(CliBadInput, ChatTemplateConfigIsNoObject) {
  EXPECT_THAT(generate_some({"--chat-template-config", "[1]"}),
              FailsWith(HasSubstr("--chat-template-config must be a JSON "
                                  "object")));
  EXPECT_THAT(generate_some({"--chat-template-config", "{\"a\":"}),
              FailsWith(HasSubstr("--chat-template-config")));
}

TEST_F(CliBadInput, EmptyPrompt) {
  EXPECT_THAT(generate({"-p", "", "--ignore-chat-template"}),
              FailsWith(HasSubstr("--prompt is empty")));
  EXPECT_THAT(generate({"-p", "-", "--ignore-chat-template"}, ""),
              FailsWith(HasSubstr("--prompt is empty")));
  EXPECT_THAT(run({"score", "--model", model(), "--text", ""}),
              FailsWith(HasSubstr("empty")));
}

TEST_F(CliBadInput, TokensOutsideTheVocabulary) {
  EXPECT_THAT(generate({"--tokens", "1,260", "-m", "1"}),
              FailsWith(HasSubstr("260")));
  EXPECT_THAT(run({"score", "--model", model(), "--tokens", "1,260"}),
              FailsWith(HasSubstr("260")));
}

TEST_F(CliBadInput, ABiasOutsideTheVocabulary) {
  EXPECT_THAT(generate_some({"--logit-bias", "260:1"}),
              FailsWith(HasSubstr("--logit-bias names token 260")));
}

TEST_F(CliBadInput, EveryTokenExcluded) {
  std::string bias = "0:-inf";
  for (int id = 1; id < 260; ++id) {
    bias += "," + std::to_string(id) + ":-inf";
  }
  EXPECT_THAT(generate_some({"--logit-bias", bias}),
              FailsWith(HasSubstr("no token is possible")));
  EXPECT_THAT(generate_some({"--logit-bias",
                             bias,
                             "--temp",
                             "1",
                             "--top-p",
                             "0.5",
                             "--xtc-probability",
                             "1"}),
              FailsWith(HasSubstr("no token is possible")));
}

TEST_F(CliBadInput, APromptLongerThanTheContextWarns) {
  ProcessResult result =
      generate({"-p", std::string(600, 'a'), "-m", "1", "--ignore-eos"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.errors,
              AllOf(HasSubstr("mlx-lm: warning: "), HasSubstr("512")));
}

TEST_F(CliBadInput, APromptLongerThanMemoryIsRefusedWithTheEstimate) {
  environment_["MLX_LM_MEMORY_LIMIT"] = "20MB";
  // 10 million tokens of 1 KiB of cache each.
  EXPECT_THAT(generate({"-p", "-", "-m", "1"}, std::string(10'000'000, 'a')),
              FailsWith(AllOf(HasSubstr("GB"), HasSubstr("memory"))));
}

TEST_F(CliBadInput, AMissingPromptCache) {
  EXPECT_THAT(generate_some({"--prompt-cache-file", path("nowhere")}),
              FailsWith(HasSubstr("nowhere")));
  write_text(folder_ / "broken", "not a cache");
  EXPECT_THAT(generate_some({"--prompt-cache-file", path("broken")}),
              FailsWith(HasSubstr("broken")));
}

TEST_F(CliBadInput, AMissingAdapter) {
  EXPECT_THAT(generate_some({"--adapter-path", path("nowhere")}),
              FailsWith(HasSubstr("nowhere")));
}

TEST_F(CliBadInput, KvBitsThatMlxDoesNotHave) {
  EXPECT_THAT(generate_some({"--kv-bits", "7"}), FailsWith(HasSubstr("7")));
}

TEST_F(CliBadInput, LogitsIntoAFolderThatIsNotThere) {
  EXPECT_THAT(run({"score",
                   "--model",
                   model(),
                   "--text",
                   "x",
                   "--logits",
                   path("nowhere/logits.safetensors")}),
              FailsWith(HasSubstr("nowhere")));
}

}  // namespace
}  // namespace mlxlm
