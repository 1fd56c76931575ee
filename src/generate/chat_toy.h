// A tiny chat template, and a recurrent model, for the tests of sessions.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include "cache/arrays_cache.h"
#include "generate/toy.h"

namespace mlxlm {

// "[user]Hello|[assistant]": a token for each byte, but "|", which ends a
// message and a generation.
class ChatToyTokenizer : public ToyTokenizer {
 public:
  bool strips_thinking = false;  // of all answers: what stands in <...>
  bool trims = false;            // white space around answers
  bool merges = false;           // "ab" is one token
  bool refuses_lone_system = false;
  std::string after_header;  // of the answer to come

  static constexpr int kMerged = 259;

  std::vector<int> encode(std::string_view text, bool) const override {
    std::vector<int> tokens;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (merges && text.substr(i).starts_with("ab")) {
        tokens.push_back(kMerged);
        ++i;
      } else {
        tokens.push_back(text[i] == '|' ? ToyModel::kEnd
                                        : static_cast<unsigned char>(text[i]));
      }
    }
    return tokens;
  }
  std::optional<std::string> id_to_token(int id) const override {
    return id == ToyModel::kEnd ? std::optional<std::string>("|")
                                : std::nullopt;
  }
  bool has_chat_template() const override { return true; }
  std::string apply_chat_template(
      std::string_view messages_json,
      const ChatTemplateOptions& options) const override {
    auto messages = nlohmann::json::parse(messages_json);
    if (refuses_lone_system && messages.back()["role"] == "system") {
      throw Error(ErrorKind::chat_template, "a system message alone");
    }
    std::string text = options.tools_json;
    for (const auto& message : messages) {
      text += "[" + message["role"].get<std::string>() + "]" +
              content_of(message) + "|";
    }
    return text +
           (options.add_generation_prompt ? "[assistant]" + after_header : "");
  }

 private:
  std::string content_of(const nlohmann::json& message) const {
    auto text = message["content"].get<std::string>();
    if (message["role"] != "assistant") {
      return text;
    }
    if (strips_thinking && text.find('>') != std::string::npos) {
      text = text.substr(text.find('>') + 1);
    }
    if (trims) {
      text.erase(0, std::min(text.find_first_not_of(" \n"), text.size()));
      text.erase(text.find_last_not_of(" \n") + 1);
    }
    return text;
  }
};

// h = 0.9 h + e(token), before the layers of a toy model if it is hybrid.
class RecurrentToy : public ToyModel {
 public:
  explicit RecurrentToy(bool hybrid, ToyOptions options = {})
      : ToyModel(options), hybrid_(hybrid) {}

  mx::array forward(const mx::array& tokens,
                    const PromptCache& cache,
                    const std::optional<mx::array>&) override {
    auto e = embed(tokens);
    auto* memory =
        cache.empty() ? nullptr : &dynamic_cast<ArraysCache&>(*cache.front());
    auto h = memory != nullptr && (*memory)[0] ? *(*memory)[0]
                                               : mx::zeros({1, 1, kWidth});
    std::vector<mx::array> states;
    for (int t = 0; t < tokens.shape(1); ++t) {
      auto token = mx::slice(e, {0, t, 0}, {1, t + 1, kWidth});
      h = mx::add(mx::multiply(h, mx::array(0.9f)), token);
      states.push_back(h);
    }
    if (memory != nullptr) {
      memory->set(0, h);
    }
    auto x = mx::concatenate(states, 1);
    PromptCache rest(cache.empty() ? cache.begin() : cache.begin() + 1,
                     cache.end());
    return hybrid_ ? ToyModel::forward(tokens, rest, x)
                   : mx::matmul(mx::fast::rms_norm(x, std::nullopt, 1e-5f),
                                mx::transpose(embed(mx::arange(kVocabulary))));
  }

  PromptCache make_cache(int max_kv_size) const override {
    PromptCache cache{make_arrays_cache(1)};
    if (hybrid_) {
      auto rest = ToyModel::make_cache(max_kv_size);
      cache.insert(cache.end(), rest.begin(), rest.end());
    }
    return cache;
  }

 private:
  bool hybrid_;
};

// Counts the tokens that another model reads.
class CountingModel : public Model {
 public:
  explicit CountingModel(ModelPtr model) : model_(std::move(model)) {}

  mx::array forward(const mx::array& tokens,
                    const PromptCache& cache,
                    const std::optional<mx::array>& embeddings) override {
    num_tokens += tokens.shape(1);
    return model_->forward(tokens, cache, embeddings);
  }
  mx::array embed(const mx::array& tokens) override {
    return model_->embed(tokens);
  }
  PromptCache make_cache(int max_kv_size) const override {
    return model_->make_cache(max_kv_size);
  }
  const nlohmann::json& config() const override { return model_->config(); }
  std::string model_type() const override { return model_->model_type(); }
  int num_layers() const override { return model_->num_layers(); }
  int vocabulary_size() const override { return model_->vocabulary_size(); }
  int context_tokens() const override { return model_->context_tokens(); }
  std::vector<Parameter> parameters() const override {
    return model_->parameters();
  }
  std::vector<int> eos_token_ids() const override {
    return model_->eos_token_ids();
  }

  int num_tokens = 0;

 private:
  ModelPtr model_;
};

// The best of the small letters.
inline Sampler letters() {
  return [](const mx::array& logprobs) {
    int rows = logprobs.shape(0);
    auto some = mx::slice(logprobs, {0, 'a'}, {rows, 'z' + 1});
    return mx::add(mx::astype(mx::argmax(some, -1), mx::int32),
                   mx::array(static_cast<int>('a')));
  };
}

inline std::string said(GenerationStream stream) {
  std::string text;
  while (auto part = stream.next()) {
    text += part->text;
  }
  return text;
}

}  // namespace mlxlm
