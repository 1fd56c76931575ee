#include "cli/generation_output.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <utility>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include "cli/console.h"
#include "core/json.h"

namespace mlxlm::cli {
namespace {

using nlohmann::json;

constexpr char kFrame[] = "==========\n";

std::string format(const char* pattern, int count, double value) {
  std::array<char, 128> text;
  std::snprintf(text.data(), text.size(), pattern, count, value);
  return text.data();
}

// "Speculation: 120 of 200 drafted tokens accepted in 60 rounds (by place: 80%
// 60%), 1.42 times plain speed (101.3 tokens-per-sec)".
std::string speculation_text(const SpeculationStatistics& statistics) {
  constexpr std::size_t kMostPlaces = 8;
  const auto& s = statistics;
  std::string text = "Speculation: " + std::to_string(s.accepted_tokens) +
                     " of " + std::to_string(s.drafted_tokens) +
                     " drafted tokens accepted in " + std::to_string(s.rounds) +
                     " rounds";
  for (std::size_t i = 0; i < std::min(s.drafted_at.size(), kMostPlaces); ++i) {
    text += (i == 0 ? " (by place: " : " ") +
            std::to_string(100 * s.accepted_at[i] / s.drafted_at[i]) + "%";
  }
  text += s.drafted_at.empty() ? "" : ")";
  if (s.speedup > 0) {
    std::array<char, 128> speed;
    std::snprintf(speed.data(),
                  speed.size(),
                  ", %.2f times plain speed (%.3f tokens-per-sec)",
                  s.speedup,
                  s.plain_tps);
    text += speed.data();
  }
  return text + "\n";
}

const char* name_of(DraftKind draft) {
  switch (draft) {
    case DraftKind::model:
      return "model";
    case DraftKind::ngram:
      return "ngram";
    case DraftKind::mtp:
      return "mtp";
    case DraftKind::none:
      break;
  }
  return "none";
}

}  // namespace

json to_json(const SpeculationStatistics& statistics) {
  const auto& s = statistics;
  auto known = [](double value) {
    return value > 0 ? json(value) : json(nullptr);
  };
  return {{"draft", name_of(s.draft)},
          {"rounds", s.rounds},
          {"drafted_tokens", s.drafted_tokens},
          {"accepted_tokens", s.accepted_tokens},
          {"drafted_at", s.drafted_at},
          {"accepted_at", s.accepted_at},
          {"plain_tps", known(s.plain_tps)},
          {"speedup", known(s.speedup)}};
}

namespace {

std::string statistics_text(const GenerationResponse& last) {
  std::array<char, 64> memory;
  std::snprintf(memory.data(),
                memory.size(),
                "Peak memory: %.3f GB\n",
                last.peak_memory_gb);
  return format("Prompt: %d tokens, %.3f tokens-per-sec\n",
                last.prompt_tokens,
                last.prompt_tps) +
         format("Generation: %d tokens, %.3f tokens-per-sec\n",
                last.generation_tokens,
                last.generation_tps) +
         memory.data() +
         (last.speculation ? speculation_text(*last.speculation) : "");
}

// The text, as it comes or at the end.
class TextOutput : public GenerationOutput {
 public:
  explicit TextOutput(const OutputOptions& options) : options_(options) {}

  void begin() override {
    if (options_.verbose) {
      print(kFrame);
    }
  }

  void add(const GenerationResponse& part) override {
    if (options_.stream) {
      print(part.text);
      any_text_ = any_text_ || !part.text.empty();
    } else {
      text_ += part.text;
    }
    last_ = part;
    last_->logprobs.reset();
  }

  void end() override {
    any_text_ = any_text_ || !text_.empty();
    print(text_ + "\n");
    if (!options_.verbose) {
      return;
    }
    print(kFrame);
    if (!any_text_ || !last_) {
      print("No text generated for this prompt\n");
    } else {
      print(statistics_text(*last_));
    }
  }

 private:
  OutputOptions options_;
  std::string text_;
  bool any_text_ = false;
  std::optional<GenerationResponse> last_;
};

// NaN and infinities have no place in JSON.
json number(float value) {
  return std::isfinite(value) ? json(value) : json(nullptr);
}

class JsonOutput : public GenerationOutput {
 public:
  JsonOutput(const OutputOptions& options, TokenizerPtr tokenizer)
      : options_(options), tokenizer_(std::move(tokenizer)) {}

  void begin() override {}

  void add(const GenerationResponse& part) override {
    text_ += part.text;
    // The token that ends the text isn't part of it; a deadline has none.
    if (part.finish_reason != "stop" && part.token >= 0) {
      tokens_.push_back(part.token);
      if (options_.top_logprobs >= 0 && part.logprobs) {
        logprobs_.push_back(logprobs_of(part.token, *part.logprobs));
      }
    }
    last_ = part;
    last_->logprobs.reset();
  }

  void end() override {
    GenerationResponse last = last_.value_or(GenerationResponse{});
    json result = {{"text", text_},
                   {"tokens", tokens_},
                   {"finish_reason", last.finish_reason},
                   {"stats",
                    {{"prompt_tokens", last.prompt_tokens},
                     {"prompt_tps", last.prompt_tps},
                     {"generation_tokens", last.generation_tokens},
                     {"generation_tps", last.generation_tps},
                     {"peak_memory", last.peak_memory_gb}}}};
    if (last.speculation) {
      result["stats"]["speculation"] = to_json(*last.speculation);
    }
    if (options_.top_logprobs >= 0) {
      result["logprobs"] = logprobs_;
    }
    print(json_line(result));
  }

 private:
  json entry(int token, float logprob) const {
    json result = {{"token", token}, {"logprob", number(logprob)}};
    if (tokenizer_ != nullptr) {
      result["text"] = tokenizer_->decode(std::vector<int>{token});
    }
    return result;
  }

  json logprobs_of(int token, const mx::array& logprobs) const {
    mx::array values =
        mx::contiguous(mx::flatten(mx::astype(logprobs, mx::float32)));
    values.eval();
    const float* data = values.data<float>();
    int size = static_cast<int>(values.size());
    json result = entry(token, data[token]);
    std::vector<int> order(size);
    for (int i = 0; i < size; ++i) {
      order[i] = i;
    }
    int count = std::min(options_.top_logprobs, size);
    auto better = [data](int a, int b) {
      // NaN last, ties by id: a strict order whatever the model computed.
      bool nan_a = std::isnan(data[a]);
      bool nan_b = std::isnan(data[b]);
      if (nan_a != nan_b) {
        return nan_b;
      }
      return nan_a || data[a] == data[b] ? a < b : data[a] > data[b];
    };
    std::partial_sort(
        order.begin(), order.begin() + count, order.end(), better);
    json top = json::array();
    for (int i = 0; i < count; ++i) {
      top.push_back(entry(order[i], data[order[i]]));
    }
    result["top"] = std::move(top);
    return result;
  }

  OutputOptions options_;
  TokenizerPtr tokenizer_;
  std::string text_;
  std::vector<int> tokens_;
  json logprobs_ = json::array();
  std::optional<GenerationResponse> last_;
};

}  // namespace

std::string json_line(const json& value) { return dumped(value) + "\n"; }

std::unique_ptr<GenerationOutput> make_generation_output(
    const OutputOptions& options, TokenizerPtr tokenizer) {
  if (options.json) {
    return std::make_unique<JsonOutput>(options, std::move(tokenizer));
  }
  return std::make_unique<TextOutput>(options);
}

}  // namespace mlxlm::cli
