// A vocabulary and its rules: text to ids and back. Safe to use from several
// threads, once add_tokens() has been called.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "text/rust.h"

namespace mlxlm {

// Which streaming detokenizer fits.
enum class DecoderKind { other, spm, spm_no_space, byte_level };

class TokenizerBackend {
 public:
  // From the content of tokenizer.json, or from a vocabulary. `source`: for
  // messages. Throws Error{tokenizer}.
  TokenizerBackend(std::string_view tokenizer_json, std::string source);
  TokenizerBackend(const mlxlm_rust_vocabulary& vocabulary, std::string source);

  // `tokens`: array of objects as tokenizer.json's "added_tokens".
  void add_tokens(const nlohmann::json& tokens);

  std::vector<int> encode(std::string_view text, bool add_special_tokens) const;
  std::string decode(std::span<const int> tokens,
                     bool skip_special_tokens) const;

  int size() const;
  std::optional<int> token_to_id(std::string_view token) const;
  std::optional<std::string> id_to_token(int id) const;

  DecoderKind decoder_kind() const;
  bool is_bpe() const;

 private:
  RustPtr<mlxlm_rust_tokenizer> handle_;
  std::string source_;
};

}  // namespace mlxlm
