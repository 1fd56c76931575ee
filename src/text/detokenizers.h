// Streaming detokenizers: text token by token, never half a character, in the
// reference's segments.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <mlxlm/tokenizer.h>

#include "text/backend.h"

namespace mlxlm {

using Backend = std::shared_ptr<const TokenizerBackend>;
using Decode = std::function<std::string(const std::vector<int>&)>;

// For tokenizers of any kind: decodes the current line again with each token.
class NaiveDetokenizer : public StreamingDetokenizer {
 public:
  // `clean_spaces`: the tokenizer drops a space before a comma, so one at the
  // end waits for what follows.
  NaiveDetokenizer(Decode decode, bool clean_spaces);

  void reset() override;
  void add_token(int token) override;
  void finalize() override;
  const std::string& text() const override;
  std::string last_segment() override;

 private:
  void refresh() const;

  Decode decode_;
  bool clean_spaces_;
  std::size_t characters_emitted_ = 0;
  // Everything up to the last line break stays; the rest is decoded anew.
  mutable std::string text_;
  mutable std::size_t settled_bytes_ = 0;
  mutable std::vector<int> line_;
  mutable bool stale_ = false;
};

// What the two linear detokenizers share: pieces wait until they are whole
// characters.
class PieceDetokenizer : public StreamingDetokenizer {
 public:
  void reset() override;
  const std::string& text() const override { return text_; }
  std::string last_segment() override;

 protected:
  std::string text_;
  std::string waiting_;  // bytes

 private:
  std::size_t bytes_emitted_ = 0;
};

// SentencePiece: U+2581 stands for a space and <0xNN> for a byte.
class SpmDetokenizer : public PieceDetokenizer {
 public:
  SpmDetokenizer(Backend backend, bool trim_space);

  void add_token(int token) override;
  void finalize() override;

 private:
  void flush(bool force);

  Backend backend_;
  bool trim_space_;
};

// Byte-level BPE: one character stands for each byte.
class ByteLevelDetokenizer : public PieceDetokenizer {
 public:
  explicit ByteLevelDetokenizer(Backend backend);

  void add_token(int token) override;
  void finalize() override;

 private:
  void emit(const std::string& text);

  Backend backend_;
  int vocabulary_size_;
};

}  // namespace mlxlm
