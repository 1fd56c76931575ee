// Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <string>

#include "core/checked.h"
#include "load/gguf_file.h"
#include "text/tokenizer_files.h"

namespace mlxlm {
namespace {

constexpr std::string_view kTemplateKey = "tokenizer.chat_template";
constexpr int kControl = 3;  // of tokenizer.ggml.token_type

// Tokens that end a turn, in files that don't name one.
constexpr std::array kEndOfTurnTokens = {"<|eot_id|>",
                                         "<|eom_id|>",
                                         "<|im_end|>",
                                         "<|end|>",
                                         "<end_of_turn>",
                                         "<turn|>",
                                         "<|return|>"};

std::string key_of(std::string_view name) {
  return "tokenizer.ggml." + std::string(name);
}

// The arrays of a vocabulary, as the crate takes them.
class Vocabulary {
 public:
  explicit Vocabulary(const GgufFile& file)
      : file_(file), metadata_(file.metadata()) {
    tokens_ = metadata_.required_strings(key_of("tokens"));
    scores_ = metadata_.floats(key_of("scores"));
    if (auto types = metadata_.integers(key_of("token_type"))) {
      types_.emplace(types->begin(), types->end());
    }
    merges_ = metadata_.strings(key_of("merges"))
                  .value_or(std::vector<std::string_view>());
    read_charsmap();
    check_count("scores", scores_ ? scores_->size() : tokens_.size());
    check_count("token_type", types_ ? types_->size() : tokens_.size());
    token_views_ = views(tokens_);
    merge_views_ = views(merges_);
  }

  mlxlm_rust_vocabulary as_rust() const {
    mlxlm_rust_vocabulary rust{};
    rust.model = rust_view(metadata_.required_string(key_of("model")));
    rust.pre = rust_view(metadata_.string(key_of("pre")).value_or(""));
    rust.architecture =
        rust_view(metadata_.string("general.architecture").value_or(""));
    rust.tokens = token_views_.data();
    rust.token_count = token_views_.size();
    rust.scores = scores_ ? scores_->data() : nullptr;
    rust.types = types_ ? types_->data() : nullptr;
    rust.merges = merge_views_.data();
    rust.merge_count = merge_views_.size();
    rust.charsmap = charsmap_.data();
    rust.charsmap_size = charsmap_.size();
    rust.bos_id = id("bos_token_id").value_or(-1);
    rust.eos_id = id("eos_token_id").value_or(-1);
    rust.unk_id = id("unknown_token_id").value_or(-1);
    rust.add_bos = flag("add_bos_token");
    rust.add_eos = flag("add_eos_token");
    rust.add_space_prefix = flag("add_space_prefix");
    return rust;
  }

  // A named token's id; one that is no token counts as absent, since files
  // with such ids are about.
  std::optional<int> id(std::string_view name) const {
    auto value = metadata_.integer(key_of(name));
    return value && *value >= 0 && std::in_range<int>(*value) &&
                   static_cast<std::size_t>(*value) < tokens_.size()
               ? std::optional<int>(static_cast<int>(*value))
               : std::nullopt;
  }

  std::string token(int id) const { return std::string(tokens_[id]); }

  std::vector<int> eos_token_ids() const {
    std::vector<int> ids;
    auto add = [&](std::optional<int> id) {
      if (id && std::ranges::find(ids, *id) == ids.end()) {
        ids.push_back(*id);
      }
    };
    add(id("eos_token_id"));
    add(id("eot_token_id"));
    add(id("eom_token_id"));
    for (std::size_t i = 0; types_ && i < tokens_.size(); ++i) {
      if ((*types_)[i] == kControl &&
          std::ranges::find(kEndOfTurnTokens, tokens_[i]) !=
              kEndOfTurnTokens.end()) {
        add(static_cast<int>(i));
      }
    }
    return ids;
  }

 private:
  static std::vector<mlxlm_rust_view> views(
      const std::vector<std::string_view>& texts) {
    std::vector<mlxlm_rust_view> result(texts.size());
    std::ranges::transform(texts, result.begin(), rust_view);
    return result;
  }

  int flag(std::string_view name) const {
    auto value = metadata_.boolean(key_of(name));
    return value ? *value : -1;
  }

  void read_charsmap() {
    if (auto bytes = metadata_.integers(key_of("precompiled_charsmap"))) {
      charsmap_.assign(bytes->begin(), bytes->end());
    }
  }

  void check_count(const char* name, std::size_t count) const {
    if (count != tokens_.size()) {
      throw file_.error(key_of(name) + " has " + std::to_string(count) +
                        " entries for " + std::to_string(tokens_.size()) +
                        " tokens");
    }
  }

  const GgufFile& file_;
  const GgufMetadata& metadata_;
  std::vector<std::string_view> tokens_;
  std::optional<std::vector<float>> scores_;
  std::optional<std::vector<std::int32_t>> types_;
  std::vector<std::string_view> merges_;
  std::vector<std::uint8_t> charsmap_;
  std::vector<mlxlm_rust_view> token_views_;
  std::vector<mlxlm_rust_view> merge_views_;
};

// "tokenizer.chat_template", and "tokenizer.chat_template.NAME" besides.
std::map<std::string, std::string> read_chat_templates(
    const GgufMetadata& metadata) {
  std::map<std::string, std::string> templates;
  for (std::string_view key : metadata.keys()) {
    if (!key.starts_with(kTemplateKey)) {
      continue;
    }
    std::string_view rest = key.substr(kTemplateKey.size());
    if (rest.empty()) {
      templates["default"] = *metadata.string(key);
    } else if (rest.starts_with('.')) {
      templates[std::string(rest.substr(1))] = *metadata.string(key);
    }
  }
  return templates;
}

}  // namespace

TokenizerParts read_tokenizer_gguf(const std::filesystem::path& path) {
  GgufFile file(path);
  if (!file.metadata().has(key_of("model"))) {
    throw Error(
        ErrorKind::tokenizer,
        path.string() + " has no tokenizer (no key " + key_of("model") + ")");
  }
  Vocabulary vocabulary(file);
  TokenizerParts parts;
  parts.backend =
      std::make_shared<TokenizerBackend>(vocabulary.as_rust(), path.string());
  for (auto [name, key] : {std::pair{"bos_token", "bos_token_id"},
                           {"eos_token", "eos_token_id"},
                           {"unk_token", "unknown_token_id"},
                           {"sep_token", "seperator_token_id"},
                           {"pad_token", "padding_token_id"},
                           {"mask_token", "mask_token_id"}}) {
    if (auto id = vocabulary.id(key)) {
      parts.special_tokens[name] = vocabulary.token(*id);
    }
  }
  parts.eos_token_ids = vocabulary.eos_token_ids();
  parts.chat_templates = read_chat_templates(file.metadata());
  return parts;
}

}  // namespace mlxlm
