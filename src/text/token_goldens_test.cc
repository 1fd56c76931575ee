// Ids and texts that Python's tokenizers gave for 2,000 strings, as
// fingerprints (see tests/data/make_token_goldens.py): trained tokenizers, and
// those of the two real models where MLX_LM_MODELS_DIR names their folder.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <mlxlm/tokenizer.h>

#include "core/file.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_data.h"

namespace mlxlm {
namespace {

using nlohmann::json;

// FNV-1a, 32 bits.
class Fingerprint {
 public:
  void add(std::uint8_t byte) { value_ = (value_ ^ byte) * 0x01000193u; }
  void add_number(std::uint32_t number) {
    for (int shift = 0; shift < 32; shift += 8) {
      add(static_cast<std::uint8_t>(number >> shift));
    }
  }
  std::uint32_t value() const { return value_; }

 private:
  std::uint32_t value_ = 0x811C9DC5u;
};

std::string from_base64(const std::string& text) {
  const std::string digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  std::uint32_t waiting = 0;
  int bits = 0;
  for (char digit : text) {
    std::size_t value = digits.find(digit);
    if (value == std::string::npos) {
      break;
    }
    waiting = (waiting << 6) | static_cast<std::uint32_t>(value);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      bytes += static_cast<char>(waiting >> bits);
    }
  }
  return bytes;
}

std::uint32_t fingerprint_of_ids(std::span<const int> ids) {
  Fingerprint fingerprint;
  for (int id : ids) {
    fingerprint.add_number(static_cast<std::uint32_t>(id));
  }
  return fingerprint.value();
}

// The fingerprint counts each byte of a text as a number.
std::uint32_t fingerprint_of_text(const std::string& text) {
  Fingerprint fingerprint;
  for (unsigned char byte : text) {
    fingerprint.add_number(byte);
  }
  return fingerprint.value();
}

void expect_golden_tokens(const std::string& name, const Tokenizer& tokenizer) {
  json goldens = json::parse(read_file(test_data("token_goldens.json")));
  const json& strings = goldens["strings"];
  const json& expected = goldens["tokenizers"][name];
  ASSERT_GE(strings.size(), 2000u);
  int differing = 0;
  for (std::size_t i = 0; i < strings.size() && differing < 10; ++i) {
    std::string text = from_base64(strings[i]);
    std::vector<int> ids = tokenizer.encode(text, false);
    bool same =
        fingerprint_of_ids(ids) == expected["ids"][i] &&
        fingerprint_of_text(tokenizer.decode(ids)) == expected["texts"][i];
    differing += !same;
    EXPECT_TRUE(same) << name << ", string " << i << ": " << text << " -> "
                      << json(ids);
  }
}

class TrainedTokenizer : public testing::TestWithParam<const char*> {};

TEST_P(TrainedTokenizer, GivesPythonsIds) {
  TemporaryFolder folder;
  std::filesystem::copy_file(
      test_data("tokenizers/" + std::string(GetParam()) + ".json"),
      folder / "tokenizer.json");
  expect_golden_tokens(GetParam(), *load_tokenizer(folder.path().string()));
}

INSTANTIATE_TEST_SUITE_P(
    TokenGoldens,
    TrainedTokenizer,
    testing::Values("byte_level", "split_pattern", "sentencepiece", "unigram"));

void expect_real_model(const char* name, const char* file) {
  const char* folder = std::getenv("MLX_LM_MODELS_DIR");
  if (folder == nullptr || *folder == '\0') {
    GTEST_SKIP() << "MLX_LM_MODELS_DIR is not set";
  }
  std::filesystem::path path = std::filesystem::path(folder) / file;
  expect_golden_tokens(name, *load_tokenizer(path.string()));
}

TEST(RealTokenizer, SmolLM2GivesPythonsIds) {
  expect_real_model("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf");
}

TEST(RealTokenizer, Gemma3GivesPythonsIds) {
  expect_real_model("gemma3", "gemma-3-270m-q4_k_m.gguf");
}

}  // namespace
}  // namespace mlxlm
