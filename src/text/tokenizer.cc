// Method: the reference's TokenizerWrapper.
#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include <nlohmann/json.hpp>

#include <mlxlm/tokenizer.h>

#include "core/json.h"
#include "load/resolve.h"
#include "text/chat_template.h"
#include "text/detokenizers.h"
#include "text/markers.h"
#include "text/tokenizer_files.h"

namespace mlxlm {
namespace {

using nlohmann::json;

// Undoes the spaces that WordPiece puts between words and punctuation.
std::string clean_up_spaces(std::string text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 10>
      kReplacements = {{{" .", "."},
                        {" ?", "?"},
                        {" !", "!"},
                        {" ,", ","},
                        {" ' ", "'"},
                        {" n't", "n't"},
                        {" 'm", "'m"},
                        {" 's", "'s"},
                        {" 've", "'ve"},
                        {" 're", "'re"}}};
  for (auto [from, to] : kReplacements) {
    for (std::size_t at = text.find(from); at != std::string::npos;
         at = text.find(from, at + to.size())) {
      text.replace(at, from.size(), to);
    }
  }
  return text;
}

class FileTokenizer : public Tokenizer {
 public:
  FileTokenizer(TokenizerParts parts, const TokenizerOptions& options)
      : backend_(std::move(parts.backend)),
        special_tokens_(std::move(parts.special_tokens)),
        tool_parser_(std::move(parts.tool_parser)),
        clean_up_spaces_(parts.clean_up_spaces) {
    auto ids = options.eos_token_ids.empty() ? parts.eos_token_ids
                                             : options.eos_token_ids;
    if (auto own = special_token_id("eos_token")) {
      ids.push_back(*own);
    }
    set_eos_token_ids(std::move(ids));
    set_templates(std::move(parts.chat_templates));
    if (!options.chat_template.empty()) {
      set_chat_template(options.chat_template);
    }
    std::string probe = decode(encode("a ,b", false), false);
    naive_cleans_spaces_ = probe.find(" ,") == std::string::npos;
  }

  std::vector<int> encode(std::string_view text,
                          bool add_special_tokens) const override {
    return backend_->encode(text, add_special_tokens);
  }

  std::string decode(std::span<const int> tokens,
                     bool skip_special_tokens) const override {
    std::string text = backend_->decode(tokens, skip_special_tokens);
    return clean_up_spaces_ ? clean_up_spaces(std::move(text)) : text;
  }

  std::unique_ptr<StreamingDetokenizer> detokenizer() const override {
    switch (backend_->decoder_kind()) {
      case DecoderKind::spm:
        return std::make_unique<SpmDetokenizer>(backend_, true);
      case DecoderKind::spm_no_space:
        return std::make_unique<SpmDetokenizer>(backend_, false);
      case DecoderKind::byte_level:
        return std::make_unique<ByteLevelDetokenizer>(backend_);
      case DecoderKind::other:
        break;
    }
    auto decode = [backend = backend_, clean_up = clean_up_spaces_](
                      const std::vector<int>& tokens) {
      std::string text = backend->decode(tokens, false);
      return clean_up ? clean_up_spaces(std::move(text)) : text;
    };
    return std::make_unique<NaiveDetokenizer>(decode, naive_cleans_spaces_);
  }

  int vocabulary_size() const override { return backend_->size(); }
  std::optional<int> token_to_id(std::string_view token) const override {
    return backend_->token_to_id(token);
  }
  std::optional<std::string> id_to_token(int id) const override {
    return backend_->id_to_token(id);
  }

  std::optional<int> bos_token_id() const override {
    return special_token_id("bos_token");
  }
  std::string bos_token() const override {
    auto found = special_tokens_.find("bos_token");
    return found == special_tokens_.end() ? "" : found->second;
  }

  const std::vector<int>& eos_token_ids() const override { return eos_ids_; }
  void set_eos_token_ids(std::vector<int> ids) override {
    eos_ids_.clear();
    for (int id : ids) {
      add_eos_id(id);
    }
  }
  void add_eos_token(std::string_view token) override {
    int id = 0;
    const char* end = token.data() + token.size();
    auto [parsed_to, error] = std::from_chars(token.data(), end, id);
    if (error == std::errc() && parsed_to == end) {
      add_eos_id(id);
    } else if (auto known = token_to_id(token)) {
      add_eos_id(*known);
    } else {
      throw Error(ErrorKind::argument,
                  "'" + std::string(token) +
                      "' is neither a token of this tokenizer nor an id");
    }
  }

  bool has_chat_template() const override { return !templates_->empty(); }
  const std::string& chat_template() const override {
    return templates_->source();
  }
  void set_chat_template(std::string source) override {
    set_templates({{"default", std::move(source)}});
  }

  std::string apply_chat_template(
      std::string_view messages_json,
      const ChatTemplateOptions& options) const override {
    json variables(special_tokens_);
    variables["enable_thinking"] = has_thinking();
    return templates_->render(
        messages_json, options, dumped(variables), local_time_now());
  }

  bool has_thinking() const override { return !markers_.think_start.empty(); }
  std::string think_start() const override { return markers_.think_start; }
  std::string think_end() const override { return markers_.think_end; }
  bool has_tool_calling() const override { return markers_.tool_calling; }
  std::string tool_call_start() const override {
    return markers_.tool_call_start;
  }
  std::string tool_call_end() const override { return markers_.tool_call_end; }

 private:
  std::optional<int> special_token_id(const std::string& name) const {
    auto found = special_tokens_.find(name);
    return found == special_tokens_.end() ? std::nullopt
                                          : token_to_id(found->second);
  }

  void add_eos_id(int id) {
    if (std::ranges::find(eos_ids_, id) == eos_ids_.end()) {
      eos_ids_.push_back(id);
    }
  }

  void set_templates(std::map<std::string, std::string> sources) {
    templates_ = std::make_unique<ChatTemplates>(std::move(sources));
    markers_ = infer_markers(
        templates_->only_source(), tool_parser_, [&](std::string_view token) {
          return token_to_id(token).has_value();
        });
  }

  Backend backend_;
  std::map<std::string, std::string> special_tokens_;
  std::string tool_parser_;
  bool clean_up_spaces_;
  bool naive_cleans_spaces_ = false;
  std::vector<int> eos_ids_;
  std::unique_ptr<ChatTemplates> templates_;
  Markers markers_;
};

}  // namespace

TokenizerParts read_tokenizer(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored)
             ? read_tokenizer_folder(path)
             : read_tokenizer_gguf(path);
}

TokenizerPtr make_tokenizer(TokenizerParts parts,
                            const TokenizerOptions& options) {
  return std::make_shared<FileTokenizer>(std::move(parts), options);
}

TokenizerPtr load_tokenizer(const std::string& name,
                            const TokenizerOptions& options) {
  return make_tokenizer(read_tokenizer(resolve_model(name, options.revision)),
                        options);
}

}  // namespace mlxlm
