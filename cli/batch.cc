// mlx-lm batch: answers a file of requests, many at a time.
#include <algorithm>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <mlxlm/batch.h>
#include <mlxlm/error.h>

#include "cli/answers_file.h"
#include "cli/arguments.h"
#include "cli/batch_request.h"
#include "cli/cache_options.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/generation_output.h"
#include "cli/interrupt.h"
#include "cli/model_options.h"
#include "cli/sampling_options.h"
#include "cli/speculation_options.h"
#include "core/json.h"
#include "load/memory.h"

namespace mlxlm::cli {
namespace {

using nlohmann::json;

constexpr char kExamples[] = R"(A line of the input is an object:
  {"id": "a1", "prompt": "Why is the sky blue?", "max_tokens": 200}
  {"id": "a2", "messages": [{"role": "user", "content": "Hi"}], "temp": 0.7,
   "seed": 1, "stop": ["\n\n"]}
  {"id": "a3", "tokens": [1, 2, 3]}
"prompt" is put into the chat template as a user's message. Other fields:
max_tokens, temp, top_p, min_p, top_k, xtc_probability, xtc_threshold,
repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed, stop,
ignore_eos, priority, tenant, draft (none, ngram, or what --draft or
--draft-model brought), num_draft_tokens. What a line doesn't say, the options
say.

A line of the output: {"id", "text", "tokens", "finish_reason",
"prompt_tokens", "reused_tokens"}, the last of the prompt and not read but kept
of another request of the tenant, with drafts "speculation", or {"id", "error"}
for a request that can't be answered. Answers are written as they end. Started
again with the same output, batch answers only what isn't there yet.

Exit codes: 0 done, 1 a request or the whole failed, 2 wrong usage, 130 Ctrl-C.)";

// What is known of a request until its answer is written.
struct Open {
  json id;
  std::string text;
  std::vector<int> tokens;
};

std::uint64_t bytes_of(const std::string& option, const std::string& size) {
  auto bytes = parse_bytes(size);
  if (!bytes) {
    throw UsageError(option + " takes a size such as 6G or 512MiB, not \"" +
                     size + "\"");
  }
  return *bytes;
}

class Batch {
 public:
  void add_to(CLI::App& command);
  void run();

 private:
  void check() const;
  void fill(BatchGenerator& batch, std::istream& input, AnswersFile& answers);
  void insert(BatchGenerator& batch, const std::string& line, AnswersFile& out);
  void take(const BatchPart& part, AnswersFile& answers);
  void fail(const json& id, const std::string& error, AnswersFile& answers);
  void report();

  ModelOptions model_;
  SamplingOptions sampling_;
  CacheOptions cache_;
  SpeculationOptions speculation_;
  std::string input_ = "-";
  std::string output_ = "-";
  int max_tokens_ = 100;
  BatchOptions batch_;
  std::string memory_;
  std::string prefix_memory_ = "512M";

  std::optional<RequestReader> reader_;
  CancelToken cancel_;
  std::map<RowId, Open> open_;
  std::set<std::string> seen_;  // ids, as JSON
  std::uint64_t num_lines_ = 0;
  std::uint64_t num_answered_ = 0;
  std::uint64_t num_failed_ = 0;
  std::uint64_t num_skipped_ = 0;
};

void Batch::add_to(CLI::App& command) {
  model_.add_to(command);
  constexpr char kFiles[] = "Files";
  command.add_option("-i,--input", input_, "Requests; - reads standard input")
      ->capture_default_str()
      ->type_name("FILE.jsonl")
      ->group(kFiles);
  command.add_option("-o,--output", output_, "Answers; - is standard output")
      ->capture_default_str()
      ->type_name("FILE.jsonl")
      ->group(kFiles);
  command
      .add_option("-m,--max-tokens",
                  max_tokens_,
                  "Tokens at most, where a request doesn't say;\n-1: no limit")
      ->capture_default_str()
      ->type_name("N");
  constexpr char kBatch[] = "Batch";
  auto number = [&](const char* name, int& value, const char* help) {
    command.add_option(name, value, help)
        ->capture_default_str()
        ->type_name("N")
        ->group(kBatch);
  };
  number("--max-rows", batch_.max_rows, "Requests answered at the same time");
  number("--interleaved-tokens",
         batch_.interleaved_tokens,
         "Prompt tokens read at a time while others are\nanswered");
  command
      .add_option("--memory",
                  memory_,
                  "Memory for weights, caches, kept prompts and what\n"
                  "is computed, e.g. 2G; default: the weights and 90 %\n"
                  "of what is free")
      ->type_name("SIZE")
      ->group(kBatch);
  command
      .add_option("--prefix-memory",
                  prefix_memory_,
                  "Memory to keep prompts in, of which requests\n"
                  "that begin alike are not read again; 0: none")
      ->capture_default_str()
      ->type_name("SIZE")
      ->group(kBatch);
  sampling_.add_to(command);
  cache_.add_to(command);
  speculation_.add_to(command);
  command.footer(kExamples);
}

void Batch::check() const {
  check_max_tokens(max_tokens_);
  if (input_ != "-" && input_ == output_) {
    throw UsageError("--input and --output are the same file");
  }
  speculation_.check();
  GenerateOptions ignored;
  cache_.apply_to(ignored);
}

void Batch::fail(const json& id,
                 const std::string& error,
                 AnswersFile& answers) {
  ++num_failed_;
  answers.write({{"id", id}, {"error", error}});
}

void Batch::insert(BatchGenerator& batch,
                   const std::string& line,
                   AnswersFile& answers) {
  json id = num_lines_;
  try {
    json fields = parse_json(
        line, "line " + std::to_string(num_lines_), {}, ErrorKind::argument);
    id = RequestReader::id_of(fields, num_lines_);
    if (answers.has(id)) {
      ++num_skipped_;
      return;
    }
    if (!seen_.insert(id.dump()).second) {
      throw Error(ErrorKind::argument,
                  "the id " + id.dump() + " was there before");
    }
    BatchRequest request = reader_->read(fields);
    request.options.cancel = cancel_;
    open_[batch.insert(std::move(request))] = {id, "", {}};
  } catch (const Error& error) {
    fail(id, error.what(), answers);
  }
}

// Keeps enough requests waiting, and no more.
void Batch::fill(BatchGenerator& batch,
                 std::istream& input,
                 AnswersFile& answers) {
  const std::size_t enough = static_cast<std::size_t>(batch_.max_rows) * 2;
  std::string line;
  while (batch.num_rows() < enough && std::getline(input, line)) {
    ++num_lines_;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    insert(batch, line, answers);
  }
  if (input.bad()) {
    throw Error(ErrorKind::file, "can't read " + input_);
  }
}

void Batch::take(const BatchPart& part, AnswersFile& answers) {
  Open& open = open_.at(part.row);
  open.text += part.part.text;
  if (part.part.token >= 0) open.tokens.push_back(part.part.token);
  const std::string& reason = part.part.finish_reason;
  if (reason.empty()) return;
  if (reason == "error") {
    fail(open.id, part.error, answers);
  } else if (reason != "cancelled") {
    json answer = {{"id", open.id},
                   {"text", open.text},
                   {"tokens", open.tokens},
                   {"finish_reason", reason},
                   {"prompt_tokens", part.part.prompt_tokens},
                   {"reused_tokens", part.part.reused_tokens}};
    if (part.part.speculation) {
      answer["speculation"] = to_json(*part.part.speculation);
    }
    answers.write(answer);
    ++num_answered_;
  }
  open_.erase(part.row);
  report();
}

void Batch::report() {
  show_progress({.what = "answered", .done = num_answered_, .total = 0});
}

void Batch::run() {
  check();
  sampling_.apply_seed();
  if (!memory_.empty()) {
    batch_.memory_budget_bytes = bytes_of("--memory", memory_);
  }
  const std::uint64_t prefix_bytes =
      bytes_of("--prefix-memory", prefix_memory_);
  std::ifstream file;
  if (input_ != "-") {
    file.open(input_);
    if (!file) throw Error(ErrorKind::file, "can't open " + input_);
  }
  std::istream& input = input_ == "-" ? std::cin : file;
  AnswersFile answers(output_);
  model_.draft_head = speculation_.needs_draft_head();
  LoadedModel loaded = model_.load();
  GenerateOptions defaults;
  defaults.max_tokens = max_tokens_;
  cache_.apply_to(defaults);
  speculation_.apply_to(defaults, loaded);
  if (prefix_bytes > 0) {
    defaults.prefix_store = std::make_shared<PrefixStore>(
        PrefixStoreOptions{.max_bytes = prefix_bytes});
  }
  reader_.emplace(loaded.tokenizer,
                  defaults,
                  sampling_.sampler_options(loaded.tokenizer.get()),
                  sampling_.penalty_options());
  CancelOnInterrupt on_interrupt(cancel_);
  BatchGenerator batch(loaded.model, loaded.tokenizer, batch_);
  fill(batch, input, answers);
  while (!batch.empty() && !interrupted()) {
    for (const auto& part : batch.next()) take(part, answers);
    fill(batch, input, answers);
  }
  clear_progress();
  if (interrupted()) throw Interrupted();
  if (num_skipped_ > 0) {
    print_note(std::to_string(num_skipped_) + " requests were answered before");
  }
  if (num_failed_ > 0) {
    throw Error(ErrorKind::argument,
                std::to_string(num_failed_) + " of " +
                    std::to_string(num_failed_ + num_answered_) +
                    " requests failed; their lines in the output say why");
  }
}

}  // namespace

Command add_batch(CLI::App& command) { return command_of<Batch>(command); }

}  // namespace mlxlm::cli
