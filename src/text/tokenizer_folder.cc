// Method: transformers' tokenization_utils_base.py and
// tokenization_utils_tokenizers.py, and the reference's load().
#include <algorithm>
#include <array>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/json.h"
#include "load/config.h"
#include "text/tokenizer_files.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::uint64_t kMaxTemplateBytes = std::uint64_t{1} << 20;

constexpr std::array kSpecialTokenNames = {"bos_token",
                                           "eos_token",
                                           "unk_token",
                                           "sep_token",
                                           "pad_token",
                                           "cls_token",
                                           "mask_token"};

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

json read_object(const fs::path& path) {
  if (!is_file(path)) {
    return json::object();
  }
  json value = read_json_file(
      path, {.max_bytes = std::uint64_t{256} << 20}, ErrorKind::tokenizer);
  if (!value.is_object()) {
    throw Error(ErrorKind::tokenizer,
                path.string() + " must hold a JSON object, not " +
                    describe_json(value));
  }
  return value;
}

// A token is written as text or as an object with its content.
std::string token_text(const json& value) {
  if (value.is_object()) {
    auto content = value.find("content");
    return content != value.end() && content->is_string()
               ? content->get<std::string>()
               : "";
  }
  return value.is_string() ? value.get<std::string>() : "";
}

// A value that isn't null, else null.
const json* find(const json& object, std::string_view key) {
  auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

// Older folders keep the special tokens in a file of their own.
void merge_special_tokens_map(json& config, const fs::path& folder) {
  if (config.contains("added_tokens_decoder")) {
    return;
  }
  config.update(read_object(folder / "special_tokens_map.json"));
}

// Tokens of tokenizer_config.json that tokenizer.json lacks or flags otherwise,
// then special tokens it doesn't have at all.
json tokens_to_add(const json& config,
                   const std::map<std::string, std::string>& special_tokens) {
  std::map<int, json> by_id;
  if (const json* decoder = find(config, "added_tokens_decoder");
      decoder != nullptr && decoder->is_object()) {
    for (const auto& [key, token] : decoder->items()) {
      if (token.is_object()) {
        by_id.emplace(std::atoi(key.c_str()), token);
      }
    }
  }
  json tokens = json::array();
  for (auto& [id, token] : by_id) {
    tokens.push_back(std::move(token));
  }
  auto add_if_missing = [&](const std::string& content) {
    if (!content.empty()) {
      tokens.push_back(
          {{"content", content}, {"special", true}, {"only_new", true}});
    }
  };
  for (const auto& [name, content] : special_tokens) {
    add_if_missing(content);
  }
  for (const char* key :
       {"additional_special_tokens", "extra_special_tokens"}) {
    if (const json* list = find(config, key);
        list != nullptr && list->is_array()) {
      for (const json& token : *list) {
        add_if_missing(token_text(token));
      }
    }
  }
  return tokens;
}

std::string read_template(const fs::path& path) {
  return read_file(path, kMaxTemplateBytes);
}

// Template files replace the templates of tokenizer_config.json.
std::map<std::string, std::string> read_chat_templates(const json& config,
                                                       const fs::path& folder) {
  std::map<std::string, std::string> templates;
  if (is_file(folder / "chat_template.jinja")) {
    templates["default"] = read_template(folder / "chat_template.jinja");
  }
  std::error_code ignored;
  for (const auto& entry :
       fs::directory_iterator(folder / "additional_chat_templates", ignored)) {
    if (entry.path().extension() == ".jinja" && is_file(entry.path())) {
      templates[entry.path().stem().string()] = read_template(entry.path());
    }
  }
  if (!templates.empty()) {
    return templates;
  }
  const json* source = find(config, "chat_template");
  json legacy;
  if (source == nullptr) {
    legacy = read_object(folder / "chat_template.json");
    source = find(legacy, "chat_template");
  }
  if (source != nullptr && source->is_string()) {
    templates["default"] = source->get<std::string>();
  } else if (source != nullptr && source->is_array()) {
    for (const json& named : *source) {
      if (named.is_object()) {
        templates[named.value("name", "")] = named.value("template", "");
      }
    }
  }
  return templates;
}

std::vector<int> read_eos_token_ids(const fs::path& folder) {
  if (!is_file(folder / "config.json")) {
    return {};
  }
  json config = load_config(folder).config;
  ConfigReader reader(config, (folder / "config.json").string());
  return reader.find_ints("eos_token_id").value_or(std::vector<int>());
}

}  // namespace

TokenizerParts read_tokenizer_folder(const fs::path& folder) {
  fs::path file = folder / "tokenizer.json";
  if (!is_file(file)) {
    bool other = is_file(folder / "tokenizer.model") ||
                 is_file(folder / "tokenizer.tiktoken");
    throw Error(ErrorKind::tokenizer,
                folder.string() + " has no tokenizer.json" +
                    (other ? ", only a tokenizer in another format: convert it "
                             "with transformers"
                           : ""));
  }
  TokenizerParts parts;
  parts.backend =
      std::make_shared<TokenizerBackend>(read_file(file), file.string());
  json config = read_object(folder / "tokenizer_config.json");
  merge_special_tokens_map(config, folder);
  for (const char* name : kSpecialTokenNames) {
    if (const json* value = find(config, name)) {
      if (std::string text = token_text(*value); !text.empty()) {
        parts.special_tokens[name] = text;
      }
    }
  }
  parts.backend->add_tokens(tokens_to_add(config, parts.special_tokens));
  parts.eos_token_ids = read_eos_token_ids(folder);
  parts.chat_templates = read_chat_templates(config, folder);
  if (const json* parser = find(config, "tool_parser_type");
      parser != nullptr && parser->is_string()) {
    parts.tool_parser = parser->get<std::string>();
  }
  auto flag = [&](const char* key) {
    const json* value = find(config, key);
    return value != nullptr && value->is_boolean() && value->get<bool>();
  };
  // Made for WordPiece; it would spoil the text of a byte-pair encoding.
  parts.clean_up_spaces =
      flag("clean_up_tokenization_spaces") &&
      (!parts.backend->is_bpe() ||
       flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_"
            "output"));
  return parts;
}

}  // namespace mlxlm
