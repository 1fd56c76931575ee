// Tiny models with seeded random weights, as files.
//
//   TemporaryFolder folder;
//   write_tiny_model(folder.path(), {.quantize_bits = 4});
//   auto model = load_model(folder.path().string());
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_map>

#include <mlx/array.h>
#include <nlohmann/json.hpp>

namespace mlxlm {

struct TinyModel {
  int num_layers = 2;
  int hidden_size = 64;
  int intermediate_size = 128;
  int num_heads = 4;
  int num_kv_heads = 2;
  int vocabulary_size = 260;  // 256 bytes and four special tokens
  int context_tokens = 512;
  bool tied_head = true;
  std::uint64_t seed = 0;
  int quantize_bits = 0;  // 0: float32 weights
  int group_size = 32;
  std::string mode = "affine";
  bool tokenizer = true;  // write tokenizer.json and tokenizer_config.json
  int num_shards = 1;     // more: with an index
  nlohmann::json config_changes = nlohmann::json::object();  // merged in
};

// The special tokens of the tokenizer; ids below 256 are bytes.
inline constexpr int kTinyEndOfText = 256;  // <|endoftext|>
inline constexpr int kTinyStart = 257;      // <|im_start|>
inline constexpr int kTinyEnd = 258;        // <|im_end|>, end of sequence
inline constexpr int kTinyPad = 259;        // <|pad|>

// config.json of a llama.
nlohmann::json tiny_config(const TinyModel& model = {});

// Its tensors; the same for the same options.
std::unordered_map<std::string, mlx::core::array> tiny_weights(
    const TinyModel& model = {});

// A byte-level BPE without merges, so that a token is a byte.
nlohmann::json tiny_tokenizer();

// tokenizer_config.json with a ChatML template.
nlohmann::json tiny_tokenizer_config();

// All of it, into a folder that exists.
void write_tiny_model(const std::filesystem::path& folder,
                      const TinyModel& model = {});

void write_text(const std::filesystem::path& path, const std::string& text);

}  // namespace mlxlm
