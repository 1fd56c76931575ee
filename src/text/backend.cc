#include "text/backend.h"

#include <utility>

#include "core/json.h"
#include "text/utf8.h"

namespace mlxlm {

TokenizerBackend::TokenizerBackend(std::string_view tokenizer_json,
                                   std::string source)
    : source_(std::move(source)) {
  mlxlm_rust_tokenizer* handle = nullptr;
  check_rust(mlxlm_rust_tokenizer_from_json(rust_view(tokenizer_json), &handle),
             ErrorKind::tokenizer,
             source_ + " is not a usable tokenizer");
  handle_.reset(handle);
}

TokenizerBackend::TokenizerBackend(const mlxlm_rust_vocabulary& vocabulary,
                                   std::string source)
    : source_(std::move(source)) {
  mlxlm_rust_tokenizer* handle = nullptr;
  check_rust(mlxlm_rust_tokenizer_from_vocabulary(&vocabulary, &handle),
             ErrorKind::tokenizer,
             source_ + " has no usable tokenizer");
  handle_.reset(handle);
}

void TokenizerBackend::add_tokens(const nlohmann::json& tokens) {
  std::string text = dumped(tokens);
  check_rust(mlxlm_rust_tokenizer_add_tokens(handle_.get(), rust_view(text)),
             ErrorKind::tokenizer,
             source_ + ": tokens to add");
}

std::vector<int> TokenizerBackend::encode(std::string_view text,
                                          bool add_special_tokens) const {
  std::string valid = replace_invalid_utf8(text);
  mlxlm_rust_ids ids{};
  check_rust(mlxlm_rust_tokenizer_encode(
                 handle_.get(), rust_view(valid), add_special_tokens, &ids),
             ErrorKind::tokenizer,
             source_ + " can't encode the text");
  std::vector<int> tokens(ids.data, ids.data + ids.size);
  mlxlm_rust_free_ids(ids);
  return tokens;
}

std::string TokenizerBackend::decode(std::span<const int> tokens,
                                     bool skip_special_tokens) const {
  // Negative ids become large ones, which no token has.
  std::vector<std::uint32_t> ids(tokens.begin(), tokens.end());
  mlxlm_rust_string text{};
  check_rust(
      mlxlm_rust_tokenizer_decode(
          handle_.get(), ids.data(), ids.size(), skip_special_tokens, &text),
      ErrorKind::tokenizer,
      source_ + " can't decode the tokens");
  return take_text(text);
}

int TokenizerBackend::size() const {
  return static_cast<int>(mlxlm_rust_tokenizer_size(handle_.get()));
}

std::optional<int> TokenizerBackend::token_to_id(std::string_view token) const {
  std::int64_t id =
      mlxlm_rust_tokenizer_token_to_id(handle_.get(), rust_view(token));
  return std::in_range<int>(id) && id >= 0
             ? std::optional<int>(static_cast<int>(id))
             : std::nullopt;
}

std::optional<std::string> TokenizerBackend::id_to_token(int id) const {
  mlxlm_rust_string token = mlxlm_rust_tokenizer_id_to_token(
      handle_.get(), static_cast<std::uint32_t>(id));
  return token.data == nullptr ? std::nullopt
                               : std::optional<std::string>(take_text(token));
}

DecoderKind TokenizerBackend::decoder_kind() const {
  switch (mlxlm_rust_tokenizer_decoder(handle_.get())) {
    case MLXLM_RUST_DECODER_SPM:
      return DecoderKind::spm;
    case MLXLM_RUST_DECODER_SPM_NO_SPACE:
      return DecoderKind::spm_no_space;
    case MLXLM_RUST_DECODER_BYTE_LEVEL:
      return DecoderKind::byte_level;
    default:
      return DecoderKind::other;
  }
}

bool TokenizerBackend::is_bpe() const {
  return mlxlm_rust_tokenizer_is_bpe(handle_.get()) != 0;
}

}  // namespace mlxlm
