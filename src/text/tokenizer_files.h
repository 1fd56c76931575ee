// What a tokenizer is made from, whatever file it came in.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <mlxlm/tokenizer.h>

#include "text/backend.h"

namespace mlxlm {

struct TokenizerParts {
  std::shared_ptr<TokenizerBackend> backend;
  // "bos_token", "eos_token", "unk_token", ...: those that are set.
  std::map<std::string, std::string> special_tokens;
  // What the model's configuration says, without the tokenizer's own.
  std::vector<int> eos_token_ids;
  std::map<std::string, std::string> chat_templates;  // by name
  std::string tool_parser;       // named by the files, or empty
  bool clean_up_spaces = false;  // of decoded text
};

// tokenizer.json and what stands beside it. Throws Error{file, config,
// tokenizer, chat_template}.
TokenizerParts read_tokenizer_folder(const std::filesystem::path& folder);

// The metadata of a GGUF file. Throws Error{file, format, tokenizer}.
TokenizerParts read_tokenizer_gguf(const std::filesystem::path& path);

// Of a folder or a GGUF file.
TokenizerParts read_tokenizer(const std::filesystem::path& path);

TokenizerPtr make_tokenizer(TokenizerParts parts,
                            const TokenizerOptions& options);

}  // namespace mlxlm
