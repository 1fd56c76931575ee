// The features of a generation for the composition tests: what each changes of
// the result, how it is asked for, and a plain loop that says what must come
// out.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/batch.h>

#include "generate/toy.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm::composition {

constexpr int kTokens = 8;
// With repetitions for n-grams to find.
constexpr char kPrompt[] = "one two one two, one two";

struct Outcome {
  std::vector<int> tokens;
  std::string text;
  std::string reason;
  std::vector<mx::array> logprobs;
};

// A request, and what is to come of it.
struct Case {
  ToyOptions toy{.head_noise = 0.03f};
  std::shared_ptr<ToyModel> model;
  std::vector<int> prompt = bytes_of(kPrompt);
  GenerateOptions options{.max_tokens = kTokens};
  std::vector<int> end_tokens;  // of the tokenizer
  // Cancelled by whoever walks the parts, after so many.
  int cancel_after = -1;
  bool starts_late = false;                    // after its deadline
  std::shared_ptr<std::vector<int>> progress;  // tokens done; the total is last
  std::shared_ptr<PromptCache> cache;
  std::shared_ptr<TemporaryFolder> folder;

  TokenizerPtr tokenizer() const {
    auto tokenizer = std::make_shared<ToyTokenizer>();
    tokenizer->set_eos_token_ids(end_tokens);
    return tokenizer;
  }
};

struct Feature {
  std::string name;
  // Whatever changes the tokens.
  std::function<void(Case&)> means = nullptr;
  // How the answer ends, where it would go on with these tokens.
  std::function<void(Case&, const std::vector<int>&)> ends = nullptr;
  // What must not change them.
  std::function<void(Case&)> how = nullptr;
};

// The model fed by hand: the prompt, then token by token.
inline Outcome plain_loop(const Case& run) {
  const auto& options = run.options;
  auto cache = run.model->make_cache(options.max_kv_size);
  Outcome outcome;
  auto read = [&](const std::vector<int>& tokens) {
    auto logits = run.model->forward(
        mx::array(tokens.data(), {1, static_cast<int>(tokens.size())}),
        cache,
        std::nullopt);
    if (options.kv_bits) {
      quantize_prompt_cache(cache,
                            options.quantized_kv_start,
                            {.key_bits = *options.kv_key_bits,
                             .value_bits = *options.kv_bits,
                             .group_size = options.kv_group_size});
    }
    return logits;
  };
  std::vector<int> history = run.prompt;
  read({history.begin(), history.end() - 1});
  for (int i = 0; i < kTokens; ++i) {
    auto logits = mx::squeeze(read({history.back()}), 0);  // [1, V]
    for (const auto& process : options.logits_processors) {
      logits =
          process(mx::array(history.data(), {static_cast<int>(history.size())}),
                  logits);
    }
    auto logprobs = mx::subtract(logits, mx::logsumexp(logits, true));
    auto drawn =
        options.sampler ? options.sampler(logprobs) : mx::argmax(logprobs, -1);
    const int token = mx::astype(drawn, mx::int32).item<int>();
    outcome.tokens.push_back(token);
    outcome.logprobs.push_back(mx::squeeze(logprobs, 0));
    history.push_back(token);
  }
  return outcome;
}

// Of the tokens, what is given out, by the meaning of the options alone.
inline void cut(const Case& run, Outcome& outcome) {
  const auto& options = run.options;
  ToyDetokenizer detokenizer;
  std::string text;
  auto end = [&](std::size_t count, const std::string& reason) {
    outcome.tokens.resize(count);
    outcome.logprobs.resize(count, mx::array(0.0f));
    outcome.reason = reason;
    outcome.text = text;
  };
  auto& tokens = outcome.tokens;
  if (run.starts_late) return end(0, "deadline");
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (std::ranges::count(run.end_tokens, tokens[i])) {
      detokenizer.finalize();
      text = detokenizer.text();
      return end(i + 1, "stop");
    }
    for (const auto& stop : options.stop_sequences) {
      std::vector<int> until(tokens.begin(), tokens.begin() + i + 1);
      if (until.size() < stop.size() ||
          !std::equal(stop.rbegin(), stop.rend(), until.rbegin())) {
        continue;
      }
      detokenizer.reset();
      for (std::size_t n = 0; n + stop.size() < until.size(); ++n) {
        detokenizer.add_token(until[n]);
      }
      detokenizer.finalize();
      text = detokenizer.text();
      return end(i + 1, "stop");
    }
    detokenizer.add_token(tokens[i]);
    text = detokenizer.text();
    for (const auto& stop : options.stop_texts) {
      const auto at = text.find(stop);
      if (at == std::string::npos) continue;
      text.resize(at);
      return end(i + 1, "stop");
    }
  }
  detokenizer.finalize();
  text = detokenizer.text();
  end(tokens.size(), "length");
}

// The first `count` tokens of the prompt are in a cache that was written to a
// file and read back.
inline void read_ahead(Case& run, int count) {
  GenerateOptions options{.max_tokens = 1,
                          .max_kv_size = run.options.max_kv_size};
  PromptCache cache = run.model->make_cache(options.max_kv_size);
  const std::vector<int> head(run.prompt.begin(), run.prompt.begin() + count);
  run.model->forward(mx::array(head.data(), {1, count}), cache, std::nullopt);
  run.folder = std::make_shared<TemporaryFolder>();
  const std::string path = *run.folder / "cache.safetensors";
  save_prompt_cache(path, cache);
  run.cache = std::make_shared<PromptCache>(load_prompt_cache(path).first);
  run.prompt.erase(run.prompt.begin(), run.prompt.begin() + count);
  run.options.prompt_cache = run.cache.get();
  run.options.earlier_tokens = head;
}

// A generation before left the first `count` tokens of the prompt in a store.
inline void store_ahead(Case& run, int count) {
  run.options.prefix_store = std::make_shared<PrefixStore>();
  GenerateOptions before = run.options;
  before.sampler = nullptr;
  before.max_tokens = 2;
  before.prompt_cache = nullptr;
  before.input_embeddings.reset();
  before.earlier_tokens.clear();
  before.deadline.reset();
  std::vector<int> prompt(run.prompt.begin(), run.prompt.begin() + count);
  for (int token : bytes_of("and so on")) prompt.push_back(token);
  for (const auto& part :
       stream_generate(run.model, run.tokenizer(), prompt, before)) {
    static_cast<void>(part);
  }
}

}  // namespace mlxlm::composition
