// Tokenizers from files written here: ids, special tokens, hostile input.
#include <filesystem>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <mlxlm/error.h>
#include <mlxlm/tokenizer.h>

#include "tests/support/gguf_writer.h"
#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"
#include "text/markers.h"
#include "text/utf8.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// A folder with the byte tokenizer of tiny models.
class TokenizerFolder : public testing::Test {
 protected:
  void SetUp() override {
    tokenizer_ = tiny_tokenizer();
    config_ = tiny_tokenizer_config();
  }

  TokenizerPtr load() {
    write_text(folder_ / "tokenizer.json", tokenizer_.dump());
    write_text(folder_ / "tokenizer_config.json", config_.dump());
    return load_tokenizer(folder_.path().string());
  }

  std::string error_of(const std::string& tokenizer_json) {
    write_text(folder_ / "tokenizer.json", tokenizer_json);
    try {
      load_tokenizer(folder_.path().string());
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::tokenizer) << error.what();
      return error.what();
    }
    return "no error";
  }

  TemporaryFolder folder_;
  json tokenizer_;
  json config_;
};

TEST_F(TokenizerFolder, EncodesAndDecodes) {
  auto tokenizer = load();
  std::string text = "a<|im_end|>\xF0\x9F\x8E\x89";
  std::vector<int> ids = tokenizer->encode(text, false);
  EXPECT_THAT(ids, ElementsAre('a', kTinyEnd, 0xF0, 0x9F, 0x8E, 0x89));
  EXPECT_EQ(tokenizer->decode(ids), text);
  EXPECT_EQ(tokenizer->decode(ids, true), "a\xF0\x9F\x8E\x89");
  EXPECT_EQ(tokenizer->decode(std::vector<int>{-1, 1 << 30}), "");
  EXPECT_EQ(tokenizer->encode("\xFF", false),
            tokenizer->encode(kReplacementCharacter, false));
  EXPECT_EQ(tokenizer->vocabulary_size(), 260);
  EXPECT_EQ(tokenizer->token_to_id("<|pad|>"), kTinyPad);
  EXPECT_EQ(tokenizer->id_to_token(kTinyPad), "<|pad|>");
  EXPECT_EQ(tokenizer->id_to_token(9999), std::nullopt);
}

TEST_F(TokenizerFolder, LongRunsAreNotQuadratic) {
  auto tokenizer = load();
  for (char character : {'a', ' ', '\n', '7'}) {
    std::string run(200000, character);
    EXPECT_EQ(tokenizer->encode(run, false).size(), run.size());
  }
}

TEST_F(TokenizerFolder, EndOfSequenceComesFromAllFiles) {
  write_text(folder_ / "config.json",
             R"({"model_type": "llama", "eos_token_id": 5})");
  EXPECT_THAT(load()->eos_token_ids(), ElementsAre(5, kTinyEnd));
  write_text(folder_ / "generation_config.json", R"({"eos_token_id": [6, 7]})");
  auto tokenizer = load();
  EXPECT_THAT(tokenizer->eos_token_ids(), ElementsAre(6, 7, kTinyEnd));
  tokenizer->add_eos_token("12");
  tokenizer->add_eos_token("<|pad|>");
  EXPECT_THAT(tokenizer->eos_token_ids(),
              ElementsAre(6, 7, kTinyEnd, 12, kTinyPad));
  EXPECT_THROW(tokenizer->add_eos_token("nonsense"), Error);
  tokenizer->set_eos_token_ids({1, 1});
  EXPECT_THAT(tokenizer->eos_token_ids(), ElementsAre(1));
  auto given = load_tokenizer(folder_.path().string(), {.eos_token_ids = {9}});
  EXPECT_THAT(given->eos_token_ids(), ElementsAre(9, kTinyEnd));
}

TEST_F(TokenizerFolder, TokensOfTheConfigAreAdded) {
  config_["added_tokens_decoder"] = {
      {"260", {{"content", "<think>"}, {"special", false}}},
      {"261", {{"content", "</think>"}, {"special", false}}}};
  config_["additional_special_tokens"] = {"<extra>", "<|im_end|>"};
  auto tokenizer = load();
  EXPECT_EQ(tokenizer->token_to_id("<think>"), 260);
  EXPECT_EQ(tokenizer->token_to_id("<extra>"), 262);
  EXPECT_EQ(tokenizer->vocabulary_size(), 263);
  EXPECT_TRUE(tokenizer->has_thinking());
  EXPECT_EQ(tokenizer->think_end(), "</think>");
}

TEST_F(TokenizerFolder, ChatTemplates) {
  config_["chat_template"] =
      "{{ messages[0].content }}{{ bos_token }}{{ enable_thinking }}";
  config_["bos_token"] = "<|im_start|>";
  auto tokenizer = load();
  EXPECT_EQ(tokenizer->apply_chat_template(R"([{"content": "x"}])"),
            "x<|im_start|>False");
  EXPECT_EQ(tokenizer->apply_chat_template(
                R"([{"content": "x"}])",
                {.kwargs_json = R"({"enable_thinking": true})"}),
            "x<|im_start|>True");
  write_text(folder_ / "chat_template.jinja", "from the file\n");
  EXPECT_EQ(load()->apply_chat_template(R"([{}])"), "from the file");
  tokenizer->set_chat_template("[TOOL_CALLS]");
  EXPECT_TRUE(tokenizer->has_tool_calling());
  EXPECT_EQ(tokenizer->tool_call_start(), "[TOOL_CALLS]");
  EXPECT_EQ(tokenizer->tool_call_end(), "");
}

TEST_F(TokenizerFolder, BrokenFilesAreRefused) {
  std::string whole = tokenizer_.dump();
  EXPECT_THAT(error_of(whole.substr(0, whole.size() / 2)),
              HasSubstr("tokenizer.json is not a usable tokenizer"));
  for (const char* broken : {"", "[]", "{}", "null", "{\"model\": 3}"}) {
    EXPECT_NE(error_of(broken), "no error") << broken;
  }
  json changed = tokenizer_;
  changed["model"]["vocab"]["a"] = -1;
  EXPECT_NE(error_of(changed.dump()), "no error");
  changed = tokenizer_;
  changed["model"]["merges"] = {"a nothing"};
  EXPECT_NE(error_of(changed.dump()), "no error");
  changed = tokenizer_;
  changed["model"]["merges"] = {"a"};
  EXPECT_NE(error_of(changed.dump()), "no error");
  changed = tokenizer_;
  changed["pre_tokenizer"] = {{"type", "Split"},
                              {"pattern", {{"Regex", "("}}},
                              {"behavior", "Isolated"},
                              {"invert", false}};
  EXPECT_NE(error_of(changed.dump()), "no error");
  EXPECT_NE(error_of(std::string(100000, '[')), "no error");
}

TEST_F(TokenizerFolder, OddIdsAndMergesAreHarmless) {
  tokenizer_["model"]["vocab"]["zz"] = 4294967295u;
  // Merges that lead back to the same pieces.
  tokenizer_["model"]["vocab"]["ab"] = 300;
  tokenizer_["model"]["vocab"]["aba"] = 301;
  tokenizer_["model"]["vocab"]["ba"] = 302;
  tokenizer_["model"]["merges"] = {"a b", "b a", "ab a", "a ba"};
  auto tokenizer = load();
  std::string text(3001, 'a');
  for (std::size_t i = 1; i < text.size(); i += 2) {
    text[i] = 'b';
  }
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text, false)), text);
  EXPECT_EQ(tokenizer->token_to_id("zz"), std::nullopt);
}

TEST_F(TokenizerFolder, MissingFileSaysSo) {
  try {
    load_tokenizer(folder_.path().string());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::tokenizer);
    EXPECT_THAT(error.what(), HasSubstr("has no tokenizer.json"));
  }
}

// ---- GGUF ----

GgufWriter spm_file() {
  GgufWriter writer;
  std::vector<std::string> tokens = {"<unk>",
                                     "<s>",
                                     "</s>",
                                     "<0xC3>",
                                     "<0xA9>",
                                     "\xE2\x96\x81",
                                     "a",
                                     "b",
                                     "ab",
                                     "\xE2\x96\x81"
                                     "ab",
                                     "<tool>"};
  writer.add("general.architecture", "llama")
      .add("tokenizer.ggml.model", "llama")
      .add("tokenizer.ggml.tokens", tokens)
      .add("tokenizer.ggml.scores",
           std::vector<float>{0, 0, 0, 0, 0, -5, -6, -7, -1, -2, 0})
      .add("tokenizer.ggml.token_type",
           std::vector<std::int32_t>{2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 4})
      .add("tokenizer.ggml.bos_token_id", 1u)
      .add("tokenizer.ggml.eos_token_id", 2u)
      .add("tokenizer.ggml.unknown_token_id", 0u)
      .add("tokenizer.chat_template", "{{ bos_token }}x");
  return writer;
}

TEST(GgufTokenizer, SentencePiece) {
  TemporaryFolder folder;
  spm_file().write(folder / "model.gguf");
  auto tokenizer = load_tokenizer((folder / "model.gguf").string());
  EXPECT_THAT(tokenizer->encode("ab ab"), ElementsAre(1, 9, 9));
  EXPECT_THAT(tokenizer->encode("\xC3\xA9", false), ElementsAre(5, 3, 4));
  EXPECT_THAT(tokenizer->encode("a<tool>", false), ElementsAre(5, 6, 10));
  EXPECT_EQ(tokenizer->decode(std::vector<int>{9, 9}), "ab ab");
  EXPECT_THAT(tokenizer->eos_token_ids(), ElementsAre(2));
  EXPECT_EQ(tokenizer->bos_token(), "<s>");
  EXPECT_EQ(tokenizer->apply_chat_template(R"([{}])"), "<s>x");
}

TEST(GgufTokenizer, SentencePieceStreams) {
  TemporaryFolder folder;
  spm_file().write(folder / "model.gguf");
  auto detokenizer =
      load_tokenizer((folder / "model.gguf").string())->detokenizer();
  std::vector<std::string> segments;
  for (int token : {9, 3, 4, 9, 3}) {
    detokenizer->add_token(token);
    segments.push_back(detokenizer->last_segment());
  }
  EXPECT_THAT(segments, ElementsAre("ab", "", "\xC3\xA9", " ab", ""));
  detokenizer->finalize();
  EXPECT_EQ(detokenizer->last_segment(), kReplacementCharacter);
}

std::string gguf_error_of(const GgufWriter& writer) {
  TemporaryFolder folder;
  writer.write(folder / "model.gguf");
  try {
    load_tokenizer((folder / "model.gguf").string());
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(GgufTokenizer, BrokenVocabulariesAreRefused) {
  auto writer = [](const char* model, std::vector<std::string> tokens) {
    GgufWriter result;
    result.add("general.architecture", "llama")
        .add("tokenizer.ggml.model", model)
        .add("tokenizer.ggml.tokens", tokens);
    return result;
  };
  EXPECT_THAT(gguf_error_of(writer("rwkv", {"a"})), HasSubstr("\"rwkv\""));
  EXPECT_THAT(gguf_error_of(writer("gpt2", {"a", "a"})),
              HasSubstr("tokens 0 and 1 are both"));
  EXPECT_THAT(gguf_error_of(writer("gpt2", {"\xFF"})), HasSubstr("token 0"));
  EXPECT_THAT(
      gguf_error_of(writer("gpt2", {"a"}).add("tokenizer.ggml.pre", "martian")),
      HasSubstr("martian"));
  EXPECT_THAT(gguf_error_of(writer("gpt2", {"a"})
                                .add("tokenizer.ggml.merges",
                                     std::vector<std::string>{"ab"})),
              HasSubstr("merge 0"));
  EXPECT_THAT(gguf_error_of(writer("gpt2", {"a"})
                                .add("tokenizer.ggml.merges",
                                     std::vector<std::string>{"a b"})),
              HasSubstr("no usable tokenizer"));
  EXPECT_THAT(gguf_error_of(writer("llama", {"a"})), HasSubstr("scores"));
  EXPECT_THAT(gguf_error_of(writer("t5", {"a"})), HasSubstr("scores"));
  EXPECT_THAT(gguf_error_of(
                  writer("llama", {"a"})
                      .add("tokenizer.ggml.scores", std::vector<float>{1, 2})),
              HasSubstr("2 entries for 1 tokens"));
  EXPECT_THAT(gguf_error_of(GgufWriter().add("general.architecture", "llama")),
              HasSubstr("has no tokenizer"));
}

TEST(GgufTokenizer, EveryNamedPreTokenizerLoads) {
  for (const char* name :
       {"default",     "llama-bpe",  "gpt-2",        "qwen2",
        "qwen35",      "smollm",     "deepseek-llm", "deepseek-coder",
        "deepseek-v3", "command-r",  "falcon",       "tekken",
        "glm4",        "gpt-4o",     "kimi-k2",      "superbpe",
        "bailingmoe",  "seed-coder", "exaone-moe",   "minicpm5",
        "poro-chat",   "viking",     "tiny_aya"}) {
    TemporaryFolder folder;
    GgufWriter writer;
    writer.add("general.architecture", "llama")
        .add("tokenizer.ggml.model", "gpt2")
        .add("tokenizer.ggml.pre", name)
        .add("tokenizer.ggml.tokens",
             std::vector<std::string>{"a", "b", "\xC4\xA0", "1"});
    writer.write(folder / "model.gguf");
    auto tokenizer = load_tokenizer((folder / "model.gguf").string());
    EXPECT_THAT(tokenizer->encode("ab 1", false), ElementsAre(0, 1, 2, 3))
        << name;
  }
}

TEST(Markers, FollowTemplateThenVocabulary) {
  auto none = [](std::string_view) { return false; };
  EXPECT_FALSE(infer_markers("", "", none).tool_calling);
  EXPECT_EQ(infer_markers("<tool_call> tool_call.name", "", none).tool_call_end,
            "</tool_call>");
  EXPECT_EQ(infer_markers("", "kimi_k2", none).tool_call_start,
            "<|tool_calls_section_begin|>");
  auto channel = [](std::string_view token) {
    return token == "<|channel>" || token == "<channel|>";
  };
  EXPECT_EQ(infer_markers("", "", channel).think_start, "<|channel>thought");
}

TEST(Utf8, ReplacesAsPythonDoes) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(replace_invalid_utf8("a\x80"
                                 "b"),
            "a" + r + "b");
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82"), r);
  EXPECT_EQ(replace_invalid_utf8("\xE2\x28\xA1"), r + "(" + r);
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x8E"), r);
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), r + r);
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), r + r + r + r);
}

}  // namespace
}  // namespace mlxlm
