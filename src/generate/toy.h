// A tiny model and tokenizer without files, for the tests of generation.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "cache/arrays_cache.h"
#include "cache/batch_cache.h"
#include "cache/chunked_cache.h"
#include "cache/kv_cache.h"
#include "cache/mask.h"
#include "cache/rotating_cache.h"

namespace mlxlm {

struct ToyOptions {
  std::uint64_t seed = 0;
  int num_layers = 2;
  int window_tokens = 0;   // of every second layer; 0: none
  int chunk_tokens = 0;    // of every second layer; 0: not chunked
  bool recurrent = false;  // every second layer
  int context_tokens = 512;
  float noise = 0;  // added to the weights: a draft model that often agrees
  std::optional<float> head_noise;  // a draft head that often agrees
};

// Two layers of attention over 260 tokens: bytes and four special ones.
class ToyModel : public Model {
 public:
  static constexpr int kVocabulary = 260;
  static constexpr int kEnd = 258;
  static constexpr int kWidth = 64;
  static constexpr int kHeads = 2;

  explicit ToyModel(ToyOptions options = {});

  mx::array forward(const mx::array& tokens,
                    const PromptCache& cache,
                    const std::optional<mx::array>& embeddings) override {
    ++num_forwards;
    if (on_forward) {
      on_forward();
    }
    return logits_of(run(embeddings ? *embeddings : embed(tokens), cache));
  }

  ModelPass forward_with_states(
      const mx::array& tokens,
      const PromptCache& cache,
      const std::vector<int>& positions,
      const std::optional<mx::array>& embeddings) override {
    ++num_forwards;
    if (on_forward) {
      on_forward();
    }
    auto x = run(embeddings ? *embeddings : embed(tokens), cache);
    return {logits_of(positions.empty() ? x : take_positions(x, positions)), x};
  }
  DraftHead* draft_head() override { return head_.get(); }

  mx::array run(mx::array x, const PromptCache& cache) const {
    for (int layer = 0; layer < options_.num_layers; ++layer) {
      auto* held = cache.empty() ? nullptr : cache[layer].get();
      x = mx::add(x,
                  is_recurrent(layer) ? recurrence(x, layer, held)
                                      : attention(x, layer, held));
    }
    return x;
  }
  mx::array logits_of(const mx::array& x) const {
    return mx::matmul(mx::fast::rms_norm(x, std::nullopt, 1e-5f),
                      mx::transpose(embedding_));
  }

  mx::array embed(const mx::array& tokens) override {
    return mx::take(embedding_, tokens, 0);
  }

  PromptCache make_cache(int max_kv_size) const override {
    PromptCache cache;
    for (int layer = 0; layer < options_.num_layers; ++layer) {
      if (window_of(layer) > 0) {
        cache.push_back(make_rotating_cache(window_of(layer)));
      } else if (is_recurrent(layer)) {
        cache.push_back(make_arrays_cache(1));
      } else if (kind_of(layer) == Kind::chunked) {
        cache.push_back(make_chunked_cache(options_.chunk_tokens));
      } else if (max_kv_size > 0) {
        cache.push_back(make_rotating_cache(max_kv_size, 4));
      } else {
        cache.push_back(make_kv_cache());
      }
    }
    return cache;
  }

  const nlohmann::json& config() const override { return config_; }
  std::string model_type() const override { return "toy"; }
  int num_layers() const override { return options_.num_layers; }
  int vocabulary_size() const override { return kVocabulary; }
  int context_tokens() const override { return options_.context_tokens; }
  std::vector<Parameter> parameters() const override {
    std::vector<Parameter> all{{"embedding", embedding_}};
    for (std::size_t i = 0; i < projections_.size(); ++i) {
      all.push_back({"projections." + std::to_string(i), projections_[i]});
    }
    return all;
  }
  std::vector<int> eos_token_ids() const override { return {kEnd}; }

  int num_forwards = 0;
  std::function<void()> on_forward;

 private:
  // A model of its own, which needs no states.
  class Head;

  enum class Kind { plain, window, chunked, recurrent };

  // Every second layer is special; several kinds take turns.
  Kind kind_of(int layer) const {
    std::vector<Kind> kinds;
    if (options_.window_tokens > 0) kinds.push_back(Kind::window);
    if (options_.recurrent) kinds.push_back(Kind::recurrent);
    if (options_.chunk_tokens > 0) kinds.push_back(Kind::chunked);
    if (layer % 2 != 0 || kinds.empty()) return Kind::plain;
    return kinds[static_cast<std::size_t>(layer / 2) % kinds.size()];
  }

  int window_of(int layer) const {
    return kind_of(layer) == Kind::window ? options_.window_tokens : 0;
  }

  bool is_recurrent(int layer) const {
    return kind_of(layer) == Kind::recurrent;
  }

  // state = 0.8 state + x W after each token: [1, L, D].
  mx::array recurrence(const mx::array& x, int layer, Cache* cache) const {
    return each_row(x, cache, [&](const mx::array& row, Cache* own) {
      return recurrence_of_one(row, layer, own);
    });
  }

  mx::array recurrence_of_one(const mx::array& x,
                              int layer,
                              Cache* cache) const {
    auto* held = dynamic_cast<ArraysCache*>(cache);
    auto added = mx::matmul(mx::fast::rms_norm(x, std::nullopt, 1e-5f),
                            projections_[layer * 4]);
    auto state =
        held != nullptr && (*held)[0] ? *(*held)[0] : mx::zeros({1, 1, kWidth});
    std::vector<mx::array> states;
    for (int i = 0; i < x.shape(1); ++i) {
      auto one = mx::slice(added, {0, i, 0}, {1, i + 1, kWidth});
      state = mx::add(mx::multiply(state, mx::array(0.8f)), one);
      states.push_back(state);
    }
    if (held != nullptr) {
      held->set(0, state);
    }
    return mx::concatenate(states, 1);
  }

  mx::array weight(int rows, int columns, float scale, int index) const {
    auto draw = [&](std::uint64_t seed) {
      auto key = mx::random::key(seed * 1000 + static_cast<unsigned>(index));
      return mx::random::normal({rows, columns}, mx::float32, key);
    };
    auto w = draw(options_.seed);
    if (options_.noise > 0) {
      w = mx::add(w, mx::multiply(mx::array(options_.noise), draw(99)));
    }
    w = mx::multiply(w, mx::array(scale));
    w.eval();
    return w;
  }

  mx::array attention(const mx::array& x, int layer, Cache* cache) const {
    return each_row(x, cache, [&](const mx::array& row, Cache* own) {
      return attention_of_one(row, layer, own);
    });
  }

  mx::array attention_of_one(const mx::array& x,
                             int layer,
                             Cache* cache) const {
    int length = x.shape(1);
    int offset = cache != nullptr ? cache->offset() : 0;
    auto normed = mx::fast::rms_norm(x, std::nullopt, 1e-5f);
    auto heads = [&](int part) {
      auto y = mx::matmul(normed, projections_[layer * 4 + part]);
      return mx::swapaxes(
          mx::reshape(y, {1, length, kHeads, kWidth / kHeads}), 1, 2);
    };
    auto rope = [&](const mx::array& y) {
      return mx::fast::rope(y, kWidth / kHeads, false, 10000.0f, 1.0f, offset);
    };
    AttendSpec spec{.scale = 0.2f, .window_tokens = window_of(layer)};
    auto q = rope(heads(0));
    auto k = rope(heads(1));
    auto v = heads(2);
    auto y = cache != nullptr ? cache->attend(q, k, v, spec)
                              : attend_without_cache(q, k, v, spec);
    y = mx::reshape(mx::swapaxes(y, 1, 2), {1, length, kWidth});
    return mx::matmul(y, projections_[layer * 4 + 3]);
  }

  ToyOptions options_;
  mx::array embedding_ = mx::array(0.0f);  // [V, D]
  std::vector<mx::array> projections_;     // q, k, v, o of each layer
  nlohmann::json config_ = nlohmann::json::object();
  std::unique_ptr<DraftHead> head_;
};

class ToyModel::Head : public DraftHead {
 public:
  explicit Head(const ToyOptions& options) : model_(options) {}

  mx::array forward(const mx::array& tokens,
                    const mx::array& states,
                    const PromptCache& cache) override {
    EXPECT_EQ(states.shape(), (mx::Shape{1, tokens.shape(1), kWidth}));
    return model_.run(model_.embed(tokens), cache);
  }
  mx::array logits(const mx::array& states) override {
    return model_.logits_of(states);
  }
  PromptCache make_cache(int max_kv_size) const override {
    return model_.make_cache(max_kv_size);
  }
  std::size_t nbytes() const override {
    std::size_t sum = 0;
    for (const auto& each : model_.parameters()) sum += each.value.nbytes();
    return sum;
  }

 private:
  ToyModel model_;
};

inline ToyModel::ToyModel(ToyOptions options) : options_(options) {
  embedding_ = weight(kVocabulary, kWidth, 1.0f, 0);
  for (int layer = 0; layer < options.num_layers; ++layer) {
    for (int part = 0; part < 4; ++part) {
      projections_.push_back(
          weight(kWidth, kWidth, 0.25f, 1 + layer * 4 + part));
    }
  }
  if (options.head_noise) {
    options.noise = *options.head_noise;
    options.head_noise.reset();
    head_ = std::make_unique<Head>(options);
  }
}

// Shows the bytes of its tokens once they form characters.
class ToyDetokenizer : public StreamingDetokenizer {
 public:
  void reset() override { *this = {}; }
  void add_token(int token) override {
    if (token < 256) {
      bytes_ += static_cast<char>(token);
    }
    std::size_t end = complete();
    text_ += bytes_.substr(0, end);
    bytes_.erase(0, end);
  }
  void finalize() override {
    text_ += bytes_.empty() ? "" : "\xEF\xBF\xBD";
    bytes_.clear();
  }
  const std::string& text() const override { return text_; }
  std::string last_segment() override {
    return text_.substr(std::exchange(shown_, text_.size()));
  }

 private:
  // The number of bytes before an unfinished character at the end.
  std::size_t complete() const {
    for (std::size_t back = 1; back <= 3 && back <= bytes_.size(); ++back) {
      auto byte = static_cast<unsigned char>(bytes_[bytes_.size() - back]);
      if (byte >= 0xc0) {
        std::size_t needed = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
        return back < needed ? bytes_.size() - back : bytes_.size();
      }
      if (byte < 0x80) {
        break;
      }
    }
    return bytes_.size();
  }

  std::string bytes_;
  std::string text_;
  std::size_t shown_ = 0;
};

class ToyTokenizer : public Tokenizer {
 public:
  std::vector<int> encode(std::string_view text,
                          bool add_special_tokens) const override {
    std::vector<int> tokens;
    if (add_special_tokens) {
      tokens.push_back(257);
    }
    for (unsigned char byte : text) {
      tokens.push_back(byte);
    }
    return tokens;
  }
  std::string decode(std::span<const int> tokens, bool) const override {
    std::string text;
    for (int token : tokens) {
      text += static_cast<char>(token);
    }
    return text;
  }
  std::unique_ptr<StreamingDetokenizer> detokenizer() const override {
    return std::make_unique<ToyDetokenizer>();
  }
  int vocabulary_size() const override { return 260; }
  std::optional<int> token_to_id(std::string_view) const override {
    return std::nullopt;
  }
  std::optional<std::string> id_to_token(int) const override {
    return std::nullopt;
  }
  std::optional<int> bos_token_id() const override { return 257; }
  std::string bos_token() const override { return "<s>"; }
  const std::vector<int>& eos_token_ids() const override { return eos_; }
  void set_eos_token_ids(std::vector<int> ids) override {
    eos_ = std::move(ids);
  }
  void add_eos_token(std::string_view) override {}
  bool has_chat_template() const override { return false; }
  const std::string& chat_template() const override { return none_; }
  void set_chat_template(std::string) override {}
  std::string apply_chat_template(std::string_view,
                                  const ChatTemplateOptions&) const override {
    return "";
  }
  bool has_thinking() const override { return false; }
  std::string think_start() const override { return ""; }
  std::string think_end() const override { return ""; }
  bool has_tool_calling() const override { return false; }
  std::string tool_call_start() const override { return ""; }
  std::string tool_call_end() const override { return ""; }

 private:
  std::vector<int> eos_{ToyModel::kEnd};
  std::string none_;
};

// A sampler that answers with these tokens, one after the other.
inline Sampler scripted(std::vector<int> tokens) {
  auto at = std::make_shared<std::size_t>(0);
  return [tokens = std::move(tokens), at](const mx::array& logprobs) {
    std::vector<int> drawn;
    for (int row = 0; row < logprobs.shape(0); ++row) {
      std::size_t i = std::min((*at)++, tokens.size() - 1);
      drawn.push_back(tokens[i]);
    }
    return mx::array(drawn.data(), {static_cast<int>(drawn.size())}, mx::int32);
  };
}

inline std::vector<int> bytes_of(std::string_view text) {
  return ToyTokenizer().encode(text, false);
}

}  // namespace mlxlm
