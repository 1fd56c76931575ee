// mlx-lm score: how probable a model finds a text, token by token.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/error.h>
#include <mlxlm/generate.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/generation_output.h"
#include "cli/interrupt.h"
#include "cli/kv_options.h"
#include "cli/logits_file.h"
#include "cli/model_options.h"
#include "core/file.h"
#include "core/json.h"
#include "generate/options.h"

namespace mlxlm::cli {
namespace {

using nlohmann::json;

constexpr char kExamples[] = R"(Examples:
  mlx-lm score --text "The capital of France is Paris."
  mlx-lm score --file chapter.txt --json
  mlx-lm score --tokens 1,2,3 --logits logits.safetensors

The first token has no log-probability: nothing comes before it.)";

// Called with the logits [n, V] of a chunk and the index of its first token.
using OnLogits = std::function<void(const mx::array& logits, int first)>;

// One pass over all tokens, in chunks through a cache, which is quantized as
// the options say. Returns the bytes that the cache had at the end.
std::size_t for_each_chunk(Model& model,
                           const std::vector<int>& tokens,
                           int chunk_tokens,
                           const GenerateOptions& options,
                           const OnLogits& on_logits) {
  PromptCache cache = model.make_cache();
  int count = static_cast<int>(tokens.size());
  for (int first = 0; first < count; first += chunk_tokens) {
    int size = std::min(chunk_tokens, count - first);
    mx::array input(tokens.begin() + first, {1, size}, mx::int32);
    if (auto quantization = kv_quantization(options)) {
      quantize_prompt_cache(cache, options.quantized_kv_start, *quantization);
    }
    mx::array logits = model.forward(input, cache);
    evaluate_prompt_cache(cache);
    on_logits(mx::astype(mx::squeeze(logits, 0), mx::float32), first);
    mx::clear_cache();
    show_progress({.what = "scoring",
                   .done = static_cast<std::uint64_t>(first + size),
                   .total = static_cast<std::uint64_t>(count)});
  }
  return prompt_cache_nbytes(cache);
}

// Log-probabilities of the tokens after each row of logits [n, V].
void append_logprobs(const mx::array& logits,
                     const std::vector<int>& tokens,
                     int first,
                     std::vector<float>& logprobs) {
  int count = static_cast<int>(tokens.size());
  int size = std::min(logits.shape(0), count - 1 - first);
  if (size <= 0) {
    return;
  }
  mx::array rows = mx::slice(logits, {0, 0}, {size, logits.shape(1)});
  mx::array next(tokens.begin() + first + 1, {size, 1}, mx::int32);
  mx::array chosen = mx::subtract(mx::take_along_axis(rows, next, 1),
                                  mx::logsumexp(rows, -1, true));
  chosen = mx::contiguous(mx::flatten(chosen));
  chosen.eval();
  logprobs.insert(
      logprobs.end(), chosen.data<float>(), chosen.data<float>() + size);
}

json number(double value) {
  return std::isfinite(value) ? json(value) : json(nullptr);
}

// Control characters and quotes as JSON writes them.
std::string quoted(const std::string& text) { return dumped(json(text)); }

class Score {
 public:
  void add_to(CLI::App& command);
  void run();

 private:
  void check() const;
  std::vector<int> read_tokens(const Tokenizer* tokenizer) const;
  std::vector<float> logprobs_of(Model& model, const std::vector<int>& tokens);
  void print_result(const std::vector<int>& tokens,
                    const std::vector<float>& logprobs,
                    const Tokenizer* tokenizer) const;

  ModelOptions model_;
  std::string text_;
  std::string file_;
  std::string tokens_;
  std::string logits_path_;
  int chunk_tokens_ = 512;
  KvOptions kv_{0};
  std::size_t cache_bytes_ = 0;
  bool json_ = false;
  CLI::Option* text_option_ = nullptr;
  CLI::Option* file_option_ = nullptr;
  CLI::Option* tokens_option_ = nullptr;
};

void Score::add_to(CLI::App& command) {
  model_.add_to(command);
  constexpr char kInput[] = "Input (one of them)";
  text_option_ = command.add_option("--text", text_, "Text to score")
                     ->type_name("TEXT")
                     ->group(kInput);
  file_option_ =
      command
          .add_option("--file", file_, "File to score; - reads standard input")
          ->type_name("FILE")
          ->group(kInput);
  tokens_option_ =
      command
          .add_option(
              "--tokens", tokens_, "Token ids, \"1,2,3\"; needs no tokenizer")
          ->type_name("IDS")
          ->group(kInput);
  constexpr char kOutput[] = "Output";
  command.add_flag("--json", json_, "Print one object")->group(kOutput);
  command
      .add_option("--logits",
                  logits_path_,
                  "Write the float32 logits [T, V] of the pass")
      ->type_name("FILE.safetensors")
      ->group(kOutput);
  command
      .add_option("--prefill-step-size", chunk_tokens_, "Tokens read at a time")
      ->capture_default_str()
      ->type_name("N");
  kv_.add_to(command, "Cache");
  command.footer(kExamples);
}

void Score::check() const {
  std::size_t inputs = 0;
  for (const CLI::Option* option :
       {text_option_, file_option_, tokens_option_}) {
    inputs += option->count() > 0 ? 1 : 0;
  }
  if (inputs != 1) {
    throw UsageError("score takes one of --text, --file and --tokens");
  }
  GenerateOptions options;
  kv_.apply_to(options);
  kv_quantization(options);  // throws where there is no such format
  check_at_least("--prefill-step-size", chunk_tokens_, 1);
}

std::vector<int> Score::read_tokens(const Tokenizer* tokenizer) const {
  if (tokens_option_->count() > 0) {
    return parse_token_ids(tokens_, "--tokens");
  }
  std::string text = text_;
  if (file_option_->count() > 0) {
    text = file_ == "-" ? read_standard_input() : read_file(file_);
  }
  std::vector<int> tokens = tokenizer->encode(text);
  if (tokens.empty()) {
    throw Error(ErrorKind::argument, "the text is empty: nothing to score");
  }
  return tokens;
}

std::vector<float> Score::logprobs_of(Model& model,
                                      const std::vector<int>& tokens) {
  std::vector<float> logprobs;
  GenerateOptions options;
  kv_.apply_to(options);
  auto pass = [&](LogitsFile* file) {
    auto on_logits = [&](const mx::array& logits, int first) {
      append_logprobs(logits, tokens, first, logprobs);
      if (file != nullptr) {
        file->append(logits);
      }
    };
    cache_bytes_ =
        for_each_chunk(model, tokens, chunk_tokens_, options, on_logits);
  };
  if (logits_path_.empty()) {
    pass(nullptr);
    return logprobs;
  }
  write_file_atomically(
      logits_path_, [&](const std::filesystem::path& temporary) {
        LogitsFile file(temporary,
                        static_cast<std::int64_t>(tokens.size()),
                        model.vocabulary_size());
        pass(&file);
        file.close();
      });
  return logprobs;
}

void Score::print_result(const std::vector<int>& tokens,
                         const std::vector<float>& logprobs,
                         const Tokenizer* tokenizer) const {
  double total = 0;
  for (float logprob : logprobs) {
    total += logprob;
  }
  std::optional<double> perplexity;
  if (!logprobs.empty()) {
    perplexity = std::exp(-total / static_cast<double>(logprobs.size()));
  }
  auto text_of = [&](int token) {
    return tokenizer == nullptr ? std::string()
                                : tokenizer->decode(std::vector<int>{token});
  };
  if (json_) {
    json values = json::array({nullptr});
    for (float logprob : logprobs) {
      values.push_back(number(logprob));
    }
    json result = {{"tokens", tokens},
                   {"logprobs", values},
                   {"total_logprob", number(total)},
                   {"cache_bytes", cache_bytes_},
                   {"perplexity", perplexity ? number(*perplexity) : json()}};
    if (tokenizer != nullptr) {
      json texts = json::array();
      for (int token : tokens) {
        texts.push_back(text_of(token));
      }
      result["texts"] = texts;
    }
    print(json_line(result));
    return;
  }
  std::string lines;
  char line[128];
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i == 0) {
      std::snprintf(line, sizeof(line), "%8d  %10s  ", tokens[i], "-");
    } else {
      std::snprintf(
          line, sizeof(line), "%8d  %10.4f  ", tokens[i], logprobs[i - 1]);
    }
    lines += line;
    lines += tokenizer == nullptr ? "" : quoted(text_of(tokens[i]));
    lines += '\n';
  }
  std::snprintf(line,
                sizeof(line),
                "Tokens: %zu\nCache: %.3f MB\nTotal log-probability: %.4f\n",
                tokens.size(),
                static_cast<double>(cache_bytes_) / 1e6,
                total);
  lines += line;
  if (perplexity) {
    std::snprintf(line, sizeof(line), "Perplexity: %.4f\n", *perplexity);
    lines += line;
  }
  print(lines);
}

void Score::run() {
  check();
  bool by_tokens = tokens_option_->count() > 0;
  LoadedModel loaded =
      by_tokens ? model_.load_tokenizer_optional() : model_.load();
  std::vector<int> tokens = read_tokens(loaded.tokenizer.get());
  int vocabulary = loaded.model->vocabulary_size();
  for (int token : tokens) {
    if (token >= vocabulary) {
      throw Error(ErrorKind::argument,
                  "token " + std::to_string(token) +
                      " is outside the vocabulary, which ends at " +
                      std::to_string(vocabulary - 1));
    }
  }
  std::vector<float> logprobs = logprobs_of(*loaded.model, tokens);
  clear_progress();
  print_result(tokens, logprobs, loaded.tokenizer.get());
}

}  // namespace

Command add_score(CLI::App& command) { return command_of<Score>(command); }

}  // namespace mlxlm::cli
