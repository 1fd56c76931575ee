// mlx-lm info: what a model is, without reading its weights.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>
#include <mlxlm/generate.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/generation_output.h"
#include "cli/model_options.h"
#include "cli/model_summary.h"

namespace mlxlm::cli {
namespace {

using nlohmann::json;

constexpr int kDefaultContextTokens = 4096;

constexpr char kExamples[] = R"(Examples:
  mlx-lm info gemma-3-270m
  mlx-lm info path/to/model --context 32768 --json)";

std::string bytes_text(std::uint64_t bytes) {
  char text[48];
  double value = static_cast<double>(bytes);
  std::snprintf(text,
                sizeof(text),
                value >= 1e9 ? "%.2f GB" : "%.2f MB",
                value / (value >= 1e9 ? 1e9 : 1e6));
  return text;
}

std::string count_text(std::int64_t count) {
  char text[48];
  double value = static_cast<double>(count);
  std::snprintf(text,
                sizeof(text),
                value >= 1e9 ? "%.2f billion" : "%.2f million",
                value / (value >= 1e9 ? 1e9 : 1e6));
  return text;
}

// 3 of "bfloat16", 1 of "4-bit" -> "bfloat16, 4-bit", the most common first.
std::string formats_text(const PartSummary& part) {
  std::string text;
  std::vector<std::pair<std::int64_t, std::string>> sorted;
  for (const auto& [format, count] : part.formats) {
    sorted.emplace_back(-count, format);
  }
  std::sort(sorted.begin(), sorted.end());
  for (const auto& [count, format] : sorted) {
    text += (text.empty() ? "" : "; ") + format;
  }
  return text;
}

json to_json(const PartSummary& part) {
  return {{"parameters", part.num_parameters},
          {"bytes", part.num_bytes},
          {"formats", part.formats}};
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) {
    text += (text.empty() ? "" : ", ") + word;
  }
  return text.empty() ? "none" : text;
}

class Info {
 public:
  void add_to(CLI::App& command);
  void run();

 private:
  json describe(Model& model, const Tokenizer* tokenizer) const;
  void print_text(Model& model, const Tokenizer* tokenizer) const;
  int context_tokens(const Model& model) const;

  std::string name_;
  std::string model_option_;
  std::string adapter_path_;
  int context_ = 0;
  bool json_ = false;
  CLI::Option* context_option_ = nullptr;
};

void Info::add_to(CLI::App& command) {
  command
      .add_option("MODEL",
                  name_,
                  "Folder, .gguf file, hub id or known name;\n"
                  "smollm2-135m-instruct if none")
      ->type_name("");
  command.add_option("--model", model_option_, "The same as an option")
      ->type_name("MODEL");
  command
      .add_option(
          "--adapter-path", adapter_path_, "Folder of a LoRA or DoRA adapter")
      ->type_name("FOLDER");
  context_option_ =
      command
          .add_option("--context",
                      context_,
                      "Estimate the memory at this many tokens;\n"
                      "otherwise at 4096, or the model's limit if less")
          ->type_name("N");
  command.add_flag("--json", json_, "Print one object");
  command.footer(kExamples);
}

int Info::context_tokens(const Model& model) const {
  if (context_option_->count() > 0) {
    return context_;
  }
  int limit = model.context_tokens();
  return limit > 0 && limit < kDefaultContextTokens ? limit
                                                    : kDefaultContextTokens;
}

json Info::describe(Model& model, const Tokenizer* tokenizer) const {
  ModelSummary summary = summarize(model, context_tokens(model));
  json parts = json::object();
  for (const auto& [name, part] : summary.parts) {
    parts[name] = to_json(part);
  }
  json memory = {{"context_tokens", summary.memory.context_tokens},
                 {"weight_bytes", summary.memory.weight_bytes},
                 {"cache_bytes", nullptr},
                 {"total_bytes", nullptr}};
  if (summary.memory.cache_bytes) {
    memory["cache_bytes"] = *summary.memory.cache_bytes;
    memory["total_bytes"] =
        summary.memory.weight_bytes + *summary.memory.cache_bytes;
  }
  json result = {{"model_type", model.model_type()},
                 {"layers", model.num_layers()},
                 {"vocabulary_size", model.vocabulary_size()},
                 {"context_tokens", model.context_tokens()},
                 {"parameters", summary.total.num_parameters},
                 {"bytes", summary.total.num_bytes},
                 {"parts", parts},
                 {"caches", summary.cache_kinds},
                 {"eos_token_ids", model.eos_token_ids()},
                 {"memory", memory},
                 {"tokenizer", nullptr}};
  if (tokenizer != nullptr) {
    result["eos_token_ids"] = tokenizer->eos_token_ids();
    result["tokenizer"] = {{"vocabulary_size", tokenizer->vocabulary_size()},
                           {"chat_template", tokenizer->has_chat_template()},
                           {"template_features", template_features(*tokenizer)},
                           {"think_start", tokenizer->think_start()},
                           {"think_end", tokenizer->think_end()},
                           {"tool_call_start", tokenizer->tool_call_start()},
                           {"tool_call_end", tokenizer->tool_call_end()}};
  }
  return result;
}

void Info::print_text(Model& model, const Tokenizer* tokenizer) const {
  ModelSummary summary = summarize(model, context_tokens(model));
  std::string text;
  auto line = [&text](const std::string& name, const std::string& value) {
    char start[32];
    std::snprintf(start, sizeof(start), "%-16s", (name + ":").c_str());
    text += start + value + "\n";
  };
  line("Architecture", model.model_type());
  line("Layers", std::to_string(model.num_layers()));
  line("Parameters", count_text(summary.total.num_parameters));
  line("Weights", bytes_text(summary.total.num_bytes));
  for (const auto& [name, part] : summary.parts) {
    line("  " + name,
         count_text(part.num_parameters) + ", " + bytes_text(part.num_bytes) +
             ", " + formats_text(part));
  }
  line("Vocabulary", std::to_string(model.vocabulary_size()) + " tokens");
  line("Context",
       model.context_tokens() > 0
           ? std::to_string(model.context_tokens()) + " tokens"
           : "not stated");
  std::vector<std::string> caches;
  for (const auto& [kind, layers] : summary.cache_kinds) {
    caches.push_back(std::to_string(layers) + " x " + kind);
  }
  line("Caches", joined(caches));
  if (tokenizer == nullptr) {
    line("Tokenizer", "none");
  } else {
    line("Tokenizer", std::to_string(tokenizer->vocabulary_size()) + " tokens");
    line("Chat template",
         tokenizer->has_chat_template()
             ? "yes; looks at " + joined(template_features(*tokenizer))
             : "none");
  }
  std::string memory = bytes_text(summary.memory.weight_bytes) + " weights";
  if (summary.memory.cache_bytes) {
    memory =
        bytes_text(summary.memory.weight_bytes + *summary.memory.cache_bytes) +
        " = " + memory + " + " + bytes_text(*summary.memory.cache_bytes) +
        " cache";
  }
  line("Memory",
       memory + " at " + std::to_string(summary.memory.context_tokens) +
           " tokens");
  print(text);
}

void Info::run() {
  if (!name_.empty() && !model_option_.empty()) {
    throw UsageError("the model is named twice: as an argument and by --model");
  }
  if (context_option_->count() > 0) check_at_least("--context", context_, 1);
  ModelOptions options;
  options.model = name_.empty() ? model_option_ : name_;
  options.adapter_path = adapter_path_;
  LoadedModel loaded = options.load_lazily();
  if (json_) {
    print(json_line(describe(*loaded.model, loaded.tokenizer.get())));
  } else {
    print_text(*loaded.model, loaded.tokenizer.get());
  }
}

}  // namespace

Command add_info(CLI::App& command) { return command_of<Info>(command); }

}  // namespace mlxlm::cli
