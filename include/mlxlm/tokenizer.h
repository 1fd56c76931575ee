// Tokenizers, streaming detokenizers and chat templates.
//
//   auto tokenizer = mlxlm::load_tokenizer("path/to/model");
//   auto prompt = tokenizer->apply_chat_template(
//       R"([{"role": "user", "content": "Hello"}])");
//   std::vector<int> tokens = tokenizer->encode(prompt, false);
//
// Method: transformers' tokenizers and mlx_lm/tokenizer_utils.py. A tokenizer
// may be used from several threads; a detokenizer belongs to one.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mlxlm {

// Turns tokens into text piece by piece; never emits half a character.
class StreamingDetokenizer {
 public:
  virtual ~StreamingDetokenizer() = default;
  virtual void reset() = 0;
  virtual void add_token(int token) = 0;
  virtual void finalize() = 0;
  // All text so far.
  virtual const std::string& text() const = 0;
  // The text since the last call; empty while a character is incomplete.
  virtual std::string last_segment() = 0;
};

struct ChatTemplateOptions {
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  std::string tools_json;   // JSON array of tool definitions; "": none
  std::string kwargs_json;  // JSON object of further template variables
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Invalid UTF-8 is read as U+FFFD, as Python's errors="replace" would.
  virtual std::vector<int> encode(std::string_view text,
                                  bool add_special_tokens = true) const = 0;
  virtual std::string decode(std::span<const int> tokens,
                             bool skip_special_tokens = false) const = 0;

  virtual std::unique_ptr<StreamingDetokenizer> detokenizer() const = 0;

  virtual int vocabulary_size() const = 0;
  virtual std::optional<int> token_to_id(std::string_view token) const = 0;
  virtual std::optional<std::string> id_to_token(int id) const = 0;

  virtual std::optional<int> bos_token_id() const = 0;
  virtual std::string bos_token() const = 0;
  // The ids that end generation; add_eos_token() takes a token or a number.
  virtual const std::vector<int>& eos_token_ids() const = 0;
  virtual void set_eos_token_ids(std::vector<int> ids) = 0;
  virtual void add_eos_token(std::string_view token) = 0;

  virtual bool has_chat_template() const = 0;
  virtual const std::string& chat_template() const = 0;
  virtual void set_chat_template(std::string source) = 0;
  // `messages_json`: JSON array of {"role", "content", ...}. Throws
  // Error{chat_template}.
  virtual std::string apply_chat_template(
      std::string_view messages_json,
      const ChatTemplateOptions& options = {}) const = 0;

  // Markers the reference's TokenizerWrapper infers; empty where none.
  virtual bool has_thinking() const = 0;
  virtual std::string think_start() const = 0;
  virtual std::string think_end() const = 0;
  virtual bool has_tool_calling() const = 0;
  virtual std::string tool_call_start() const = 0;
  virtual std::string tool_call_end() const = 0;
};

using TokenizerPtr = std::shared_ptr<Tokenizer>;

struct TokenizerOptions {
  std::string revision;            // of a hub model; "": main
  std::vector<int> eos_token_ids;  // empty: what the files say
  std::string chat_template;       // replaces the model's own; "": keep
};

// From a folder (tokenizer.json, tokenizer_config.json, chat_template.*), a
// .gguf file's metadata, or a hub id. Throws Error{file, tokenizer,
// chat_template, network}.
TokenizerPtr load_tokenizer(const std::string& name,
                            const TokenizerOptions& options = {});

}  // namespace mlxlm
