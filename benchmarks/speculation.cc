// What speculative decoding costs and gains; everything interleaved.
//
//   speculation rows MODEL [DEPTH [PASSES]]
//     The time of one pass over n tokens, against one token's.
//   speculation text MODEL PROMPT-FILE TOKENS ROUNDS [ANSWER-FILE]
//     Greedy, --draft ngram against plain; the prompt is chat of one turn where
//     the model has a template. With an answer, that is what the model says:
//     its logits are changed after they are computed.
//   speculation model TARGET DRAFT TOKENS ROUNDS RATE...
//     A draft model against plain, where the models are made to agree at each
//     rate. TARGET "random-1b": a llama with the shape of Llama 3.2 1B, 4 bits.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "tests/support/temporary_folder.h"

namespace {

namespace mx = mlx::core;
using mlxlm::GenerateOptions;
using mlxlm::ModelPtr;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_of(const std::function<void()>& work) {
  auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

std::string file_text(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

mx::array row_of(const std::vector<int>& tokens) {
  return mx::array(
      tokens.data(), {1, static_cast<int>(tokens.size())}, mx::int32);
}

void pass(mlxlm::Model& model, mlxlm::PromptCache& cache, int num_tokens) {
  std::vector<int> tokens(num_tokens, 7);
  auto best = mx::argmax(model.forward(row_of(tokens), cache), -1);
  best.eval();
}

void rows(const std::string& name, int depth, int num_passes) {
  auto model = mlxlm::load_model(name);
  auto cache = model->make_cache();
  pass(*model, cache, depth);
  const std::vector<int> counts = {1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 17};
  std::vector<std::vector<double>> seconds(counts.size());
  for (int i = 0; i < num_passes; ++i) {
    for (std::size_t c = 0; c < counts.size(); ++c) {
      auto before = mlxlm::checkpoint_prompt_cache(cache);
      seconds[c].push_back(seconds_of([&] { pass(*model, cache, counts[c]); }));
      mlxlm::rollback_prompt_cache(cache, before);
    }
  }
  const double one = median(seconds[0]);
  for (std::size_t c = 0; c < counts.size(); ++c) {
    const double time = median(seconds[c]);
    std::printf(
        "%2d tokens  %7.2f ms  %.2f\n", counts[c], time * 1e3, time / one);
  }
}

// A model whose logits are overruled: the token after `position` tokens is
// told, whatever the model computes.
class ToldModel : public mlxlm::Model {
 public:
  ToldModel(ModelPtr model, int first, std::function<int(int)> told)
      : model_(std::move(model)), first_(first), told_(std::move(told)) {}

  mx::array forward(const mx::array& tokens,
                    const mlxlm::PromptCache& cache,
                    const std::optional<mx::array>& embeddings) override {
    const int offset = mlxlm::prompt_cache_offset(cache);
    auto logits = model_->forward(tokens, cache, embeddings);
    const int count = tokens.shape(1);
    std::vector<int> answers;
    for (int i = 0; i < count; ++i) {
      answers.push_back(told_(offset + i + 1 - first_));
    }
    auto large = mx::full({1, count, 1}, 1e9f);
    return mx::put_along_axis(
        logits, mx::reshape(row_of(answers), {1, count, 1}), large, -1);
  }

  mx::array embed(const mx::array& t) override { return model_->embed(t); }
  mlxlm::PromptCache make_cache(int size) const override {
    return model_->make_cache(size);
  }
  const json& config() const override { return model_->config(); }
  std::string model_type() const override { return model_->model_type(); }
  int num_layers() const override { return model_->num_layers(); }
  int vocabulary_size() const override { return model_->vocabulary_size(); }
  int context_tokens() const override { return 0; }
  std::vector<mlxlm::Parameter> parameters() const override { return {}; }
  std::vector<int> eos_token_ids() const override { return {}; }

 private:
  ModelPtr model_;
  int first_;  // tokens of the prompt
  std::function<int(int)> told_;
};

struct Timing {
  std::vector<int> tokens;
  double seconds = 0;  // without the prompt's
  std::optional<mlxlm::SpeculationStatistics> speculation;
};

Timing generate(const ModelPtr& model,
                const std::vector<int>& prompt,
                GenerateOptions options) {
  options.ignore_eos = true;
  Timing timing;
  auto start = Clock::now();
  for (const auto& part :
       mlxlm::stream_generate(model, nullptr, prompt, options)) {
    if (timing.tokens.empty()) start = Clock::now();
    timing.tokens.push_back(part.token);
    timing.speculation = part.speculation;
  }
  timing.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return timing;
}

// Plain and with speculation in turn; the medians' ratio.
double compare(const ModelPtr& model,
               const std::vector<int>& prompt,
               const GenerateOptions& options,
               int num_rounds) {
  GenerateOptions plain_options{.max_tokens = options.max_tokens};
  std::vector<double> plain;
  std::vector<double> fast;
  std::vector<double> ratios;
  bool equal = true;
  Timing last;
  for (int i = 0; i < num_rounds; ++i) {
    auto one = generate(model, prompt, plain_options);
    last = generate(model, prompt, options);
    equal = equal && one.tokens == last.tokens;
    const auto count = static_cast<double>(one.tokens.size());
    plain.push_back(count / one.seconds);
    fast.push_back(count / last.seconds);
    ratios.push_back(fast.back() / plain.back());
  }
  const auto& s = *last.speculation;
  std::printf(
      "plain %.1f tokens/s, drafts %.1f, ratio %.2f (%.2f to %.2f); %d of %d "
      "accepted in %d rounds; said of itself %.2f; %s\n",
      median(plain),
      median(fast),
      median(ratios),
      *std::ranges::min_element(ratios),
      *std::ranges::max_element(ratios),
      s.accepted_tokens,
      s.drafted_tokens,
      s.rounds,
      s.speedup,
      equal ? "tokens equal" : "TOKENS DIFFER");
  return median(ratios);
}

void text(const std::string& name,
          const std::string& prompt_path,
          int num_tokens,
          int num_rounds,
          const std::string& answer_path) {
  auto [model, tokenizer] = mlxlm::load(name);
  std::string prompt = file_text(prompt_path);
  if (tokenizer->has_chat_template()) {
    json messages = {{{"role", "user"}, {"content", prompt}}};
    prompt = tokenizer->apply_chat_template(messages.dump());
  }
  auto tokens = tokenizer->encode(prompt);
  if (!answer_path.empty()) {
    auto answer = tokenizer->encode(file_text(answer_path), false);
    num_tokens = static_cast<int>(answer.size());
    model = std::make_shared<ToldModel>(
        model, static_cast<int>(tokens.size()), [answer](int i) {
          return i >= 0 && i < static_cast<int>(answer.size()) ? answer[i] : 1;
        });
  }
  GenerateOptions options{.max_tokens = num_tokens};
  options.draft = mlxlm::DraftKind::ngram;
  compare(model, tokens, options, num_rounds);
}

// Weights that mean nothing, of the right sizes.
void write_random_1b(const std::filesystem::path& folder, int vocabulary_size) {
  constexpr int kWidth = 2048;
  constexpr int kMlp = 8192;
  constexpr int kGroup = 64;
  json config = {{"model_type", "llama"},
                 {"hidden_size", kWidth},
                 {"intermediate_size", kMlp},
                 {"num_hidden_layers", 16},
                 {"num_attention_heads", 32},
                 {"num_key_value_heads", 8},
                 {"head_dim", 64},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 500000.0},
                 {"vocab_size", vocabulary_size},
                 {"max_position_embeddings", 8192},
                 {"tie_word_embeddings", true},
                 {"quantization", {{"group_size", kGroup}, {"bits", 4}}}};
  std::ofstream(folder / "config.json") << config.dump();
  std::unordered_map<std::string, mx::array> tensors;
  auto matrix = [&](const std::string& module, int rows, int columns) {
    mx::Shape groups{rows, columns / kGroup};
    const float step = 0.2f / std::sqrt(static_cast<float>(columns));
    tensors.emplace(module + ".weight", mx::random::bits({rows, columns / 8}));
    tensors.emplace(module + ".scales", mx::full(groups, step));
    tensors.emplace(module + ".biases", mx::full(groups, -7.5f * step));
  };
  auto norm = [&](const std::string& module) {
    tensors.emplace(module + ".weight", mx::ones({kWidth}));
  };
  matrix("model.embed_tokens", vocabulary_size, kWidth);
  norm("model.norm");
  for (int i = 0; i < 16; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    norm(layer + "input_layernorm");
    norm(layer + "post_attention_layernorm");
    matrix(layer + "self_attn.q_proj", kWidth, kWidth);
    matrix(layer + "self_attn.k_proj", 512, kWidth);
    matrix(layer + "self_attn.v_proj", 512, kWidth);
    matrix(layer + "self_attn.o_proj", kWidth, kWidth);
    matrix(layer + "mlp.gate_proj", kMlp, kWidth);
    matrix(layer + "mlp.up_proj", kMlp, kWidth);
    matrix(layer + "mlp.down_proj", kWidth, kMlp);
  }
  mx::save_safetensors((folder / "model.safetensors").string(), tensors);
}

// Median seconds of a pass over `num_tokens` after a short prompt.
double pass_seconds(mlxlm::Model& model, int num_tokens) {
  auto cache = model.make_cache();
  pass(model, cache, 32);
  std::vector<double> seconds;
  for (int i = 0; i < 15; ++i) {
    seconds.push_back(seconds_of([&] { pass(model, cache, num_tokens); }));
    mlxlm::trim_prompt_cache(cache, num_tokens);
  }
  return median(seconds);
}

double expected_tokens(double rate, int num_drafts) {
  double tokens = 1;
  for (int i = 1; i <= num_drafts; ++i) tokens += std::pow(rate, i);
  return tokens;
}

void draft_model(const std::string& target_name,
                 const std::string& draft_name,
                 int num_tokens,
                 int num_rounds,
                 const std::vector<double>& rates) {
  auto draft = mlxlm::load_model(draft_name);
  mlxlm::TemporaryFolder folder;
  std::string target_path = target_name;
  if (target_name == "random-1b") {
    write_random_1b(folder.path(), draft->vocabulary_size());
    target_path = folder.path().string();
  }
  auto target = mlxlm::load_model(target_path);
  const std::vector<int> prompt(32, 7);
  const double one = pass_seconds(*target, 1);
  const double draft_share = pass_seconds(*draft, 1) / one;
  std::printf(
      "target %.1f ms a token, draft %.3f of that\n", one * 1e3, draft_share);
  auto hash = [](int i) {
    return static_cast<std::uint32_t>(i + 1) * 2654435761u;
  };
  auto drafted = [hash](int i) {
    return static_cast<int>(hash(i) >> 8) % 4096;
  };
  for (double rate : rates) {
    auto said = [=](int i) {
      const double uniform = (hash(hash(i) >> 3) >> 4) / 268435456.0;
      return drafted(i) + (uniform < rate ? 0 : 5000);
    };
    auto told_target = std::make_shared<ToldModel>(target, 32, said);
    GenerateOptions options{.max_tokens = num_tokens};
    options.draft_model = std::make_shared<ToldModel>(draft, 32, drafted);
    for (std::optional<int> drafts : {std::optional<int>(2), {4}, {}}) {
      options.num_draft_tokens = drafts;
      std::printf("rate %.1f, %s: ",
                  rate,
                  drafts ? std::to_string(*drafts).c_str() : "chosen");
      const double ratio = compare(told_target, prompt, options, num_rounds);
      if (!drafts) continue;
      const double checked = pass_seconds(*target, *drafts + 1) / one;
      const double tokens = expected_tokens(rate, *drafts);
      const double formula = tokens / (checked + *drafts * draft_share);
      std::printf(
          "    formula %.2f (check %.2f), off by %+.1f %%; a check for "
          "nothing: %.2f\n",
          formula,
          checked,
          100 * (ratio / formula - 1),
          tokens / (1 + *drafts * draft_share));
    }
  }
}

int usage() {
  std::fputs("usage: see the top of benchmarks/speculation.cc\n", stderr);
  return 2;
}

int run(const std::vector<std::string>& words) {
  auto number = [&](std::size_t i, int otherwise) {
    return i < words.size() ? std::atoi(words[i].c_str()) : otherwise;
  };
  if (words.size() >= 2 && words[0] == "rows") {
    rows(words[1], number(2, 256), number(3, 15));
  } else if (words.size() >= 5 && words[0] == "text") {
    text(words[1],
         words[2],
         number(3, 200),
         number(4, 3),
         words.size() > 5 ? words[5] : "");
  } else if (words.size() >= 6 && words[0] == "model") {
    std::vector<double> rates;
    for (std::size_t i = 5; i < words.size(); ++i) {
      rates.push_back(std::atof(words[i].c_str()));
    }
    draft_model(words[1], words[2], number(3, 200), number(4, 3), rates);
  } else {
    return usage();
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& fault) {
    std::fprintf(stderr, "speculation: %s\n", fault.what());
    return 1;
  }
}
