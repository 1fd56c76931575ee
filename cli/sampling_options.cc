#include "cli/sampling_options.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "cli/arguments.h"
#include "cli/command.h"

namespace mlxlm::cli {
namespace {

template <typename T>
void add(CLI::App& command,
         const std::string& name,
         T& value,
         const std::string& help) {
  command.add_option(name, value, help)
      ->capture_default_str()
      ->type_name("N")
      ->group("Sampling");
}

// "ID:VALUE,ID:VALUE".
void append_biases(const std::string& text,
                   std::vector<std::pair<int, double>>& biases) {
  std::size_t at = 0;
  while (at <= text.size()) {
    std::size_t end = std::min(text.find(',', at), text.size());
    std::string item = text.substr(at, end - at);
    std::size_t colon = item.find(':');
    std::string number =
        colon == std::string::npos ? "" : item.substr(colon + 1);
    char* rest = nullptr;
    double value = std::strtod(number.c_str(), &rest);
    if (number.empty() || *rest != '\0') {
      throw UsageError("--logit-bias takes ID:VALUE[,ID:VALUE...], not \"" +
                       item + "\"");
    }
    for (int id : parse_token_ids(item.substr(0, colon), "--logit-bias")) {
      biases.emplace_back(id, value);
    }
    at = end + 1;
  }
}

}  // namespace

void SamplingOptions::add_to(CLI::App& command) {
  sampler_.top_p = 1.0;
  add(command,
      "--temp",
      sampler_.temperature,
      "Temperature; 0 takes the most probable token");
  add(command,
      "--top-p",
      sampler_.top_p,
      "Keep the most probable tokens up to this mass");
  add(command,
      "--min-p",
      sampler_.min_p,
      "Drop tokens below this share of the best one");
  add(command,
      "--min-tokens-to-keep",
      sampler_.min_tokens_to_keep,
      "Tokens that --min-p leaves in any case");
  add(command, "--top-k", sampler_.top_k, "Keep the K most probable; 0: off");
  add(command,
      "--xtc-probability",
      sampler_.xtc_probability,
      "How often XTC drops the likely tokens");
  add(command,
      "--xtc-threshold",
      sampler_.xtc_threshold,
      "Probability from which XTC counts a token as likely");
  add(command, "--seed", seed_, "Seed of the random numbers");
  add(command,
      "--repetition-penalty",
      penalties_.repetition_penalty,
      "Divide repeated tokens' logits by this; 0: off");
  add(command,
      "--repetition-context-size",
      penalties_.repetition_context_size,
      "Latest tokens it looks at; 0: all");
  add(command,
      "--presence-penalty",
      penalties_.presence_penalty,
      "Subtract this from tokens that were seen");
  add(command,
      "--presence-context-size",
      penalties_.presence_context_size,
      "Latest tokens it looks at; 0: all");
  add(command,
      "--frequency-penalty",
      penalties_.frequency_penalty,
      "Subtract this for each time a token was seen");
  add(command,
      "--frequency-context-size",
      penalties_.frequency_context_size,
      "Latest tokens it looks at; 0: all");
  add_list(command,
           "--logit-bias",
           biases_,
           "ID:VALUE[,ID:VALUE...]: add to tokens' logits")
      ->type_name("BIAS")
      ->group("Sampling");
}

void SamplingOptions::apply_seed() const {
  if (seed_.empty()) {
    return;
  }
  std::uint64_t value = 0;
  const char* end = seed_.data() + seed_.size();
  auto [rest, fault] = std::from_chars(seed_.data(), end, value);
  if (fault != std::errc() || rest != end) {
    throw UsageError("--seed takes a whole number of at least 0, not \"" +
                     seed_ + "\"");
  }
  seed(value);
}

SamplerOptions SamplingOptions::sampler_options(
    const Tokenizer* tokenizer) const {
  SamplerOptions options = sampler_;
  if (tokenizer != nullptr) {
    options.xtc_special_tokens = tokenizer->encode("\n");
    const std::vector<int>& ends = tokenizer->eos_token_ids();
    options.xtc_special_tokens.insert(
        options.xtc_special_tokens.end(), ends.begin(), ends.end());
  }
  return options;
}

Sampler SamplingOptions::sampler(const Tokenizer* tokenizer) const {
  return make_sampler(sampler_options(tokenizer));
}

PenaltyOptions SamplingOptions::penalty_options() const {
  PenaltyOptions options = penalties_;
  for (const std::string& text : biases_) {
    append_biases(text, options.logit_bias);
  }
  return options;
}

std::vector<LogitsProcessor> SamplingOptions::processors() const {
  return make_logits_processors(penalty_options());
}

}  // namespace mlxlm::cli
