#include "cli/program.h"

#include <algorithm>
#include <new>
#include <sstream>
#include <string>
#include <utility>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cli/arguments.h"
#include "cli/command.h"
#include "cli/console.h"
#include "cli/interrupt.h"
#include "cli/launch.h"
#include "cli/several_ranks.h"

namespace mlxlm::cli {
namespace {

constexpr char kVersion[] =
    "mlx-lm " MLXLM_VERSION " (MLX " MLXLM_MLX_VERSION ")";

constexpr char kExamples[] = R"(Examples:
  mlx-lm generate --prompt "Why is the sky blue?"
  mlx-lm generate --model org/name --prompt - < question.txt
  mlx-lm chat --system-prompt "Answer in one sentence."
  mlx-lm cache-prompt --prompt - --prompt-cache-file notes.safetensors < notes
  mlx-lm score --text "The quick brown fox" --json
  mlx-lm benchmark -p 512 -g 128 -n 5
  mlx-lm info gemma-3-270m

A model is a folder, a .gguf file, a hub id (org/name[@revision]), or one of
the models known by name: smollm2-135m-instruct (the default), gemma-3-270m.
"mlx-lm COMMAND --help" lists a command's options.)";

class Program {
 public:
  Program() : app_("Runs language models on MLX.", "mlx-lm") {
    app_.set_version_flag("--version", kVersion);
    app_.get_formatter()->column_width(34);
    app_.footer(kExamples);
    app_.option_defaults()->take_last();
    add("generate", "Write text from a prompt.", add_generate);
    add("chat", "Talk with a model.", add_chat);
    add("batch", "Answer a file of requests.", add_batch);
    add("cache-prompt",
        "Read a prompt and save what generate continues.",
        add_cache_prompt);
    add("score", "Give the log-probability of each token.", add_score);
    add("benchmark", "Measure a model's speed.", add_benchmark);
    add("info", "Describe a model.", add_info);
    add("models", "List the model types.", add_models);
    add("launch", "Run a command on several GPUs.", add_launch);
  }

  void run(const std::vector<std::string>& arguments) {
    check_verb(arguments, app_);
    std::vector<std::string> words = normalized(arguments);
    // CLI11 reads from the back.
    std::vector<std::string> reversed(words.rbegin(), words.rend() - 1);
    try {
      app_.parse(std::move(reversed));
    } catch (const CLI::Success& request) {
      std::ostringstream text;
      app_.exit(request, text, text);
      print(text.str());
      return;
    } catch (const CLI::ExtrasError&) {
      const CLI::App& verb = selected();
      throw UsageError(describe_leftover(verb.remaining(), verb));
    } catch (const CLI::ParseError& fault) {
      throw UsageError(describe_parse_error(fault));
    }
    for (const auto& [verb, command] : commands_) {
      if (verb->parsed()) {
        check_ranks(verb->get_name());
        command();
      }
    }
  }

  // The command in use, or the program itself.
  const CLI::App& selected() const {
    auto chosen = app_.get_subcommands();
    return chosen.empty() ? app_ : *chosen.front();
  }

 private:
  static void check_ranks(const std::string& verb) {
    constexpr std::string_view kTogether[] = {"generate", "score", "benchmark"};
    if (verb != "models" && verb != "launch") see_one_gpu();
    if (std::ranges::find(kTogether, verb) != std::end(kTogether)) {
      join_ranks();
    } else if (verb != "models" && verb != "launch") {
      require_one_rank(verb, "only generate, score and benchmark do");
    }
  }

  void add(const std::string& name,
           const std::string& what,
           Command (*add_options)(CLI::App&)) {
    CLI::App* verb = app_.add_subcommand(name, what);
    commands_.emplace_back(verb, add_options(*verb));
  }

  CLI::App app_;
  std::vector<std::pair<CLI::App*, Command>> commands_;
};

void print_log(LogLevel level, std::string_view text) {
  if (level == LogLevel::warning) {
    print_warning(text);
  } else {
    print_note(text);
  }
}

// Runs with every fault turned into a message and an exit code.
int guarded(Program& program, const std::vector<std::string>& arguments) {
  try {
    program.run(arguments);
    return kSuccess;
  } catch (const Interrupted&) {
    end_line_on_terminal();
    return kInterrupted;
  } catch (const OutputClosed&) {
    return kOutputClosed;
  } catch (const RanksFailed& failed) {
    return failed.code;
  } catch (const UsageError& fault) {
    print_error(fault.what());
    return kUsage;
  } catch (const Error& fault) {
    if (interrupted()) {
      return kInterrupted;
    }
    print_error(with_option_name(fault.what(), program.selected()));
  } catch (const std::bad_alloc&) {
    print_error("out of memory");
  } catch (const std::exception& fault) {
    end_ranks(fault.what());
    print_error(fault.what());
  } catch (...) {
    print_error("an unknown fault");
  }
  return kFailure;
}

// What a fault left running would write to memory that MLX's allocator has
// released when the program ends.
void finish_work() {
  namespace mx = mlx::core;
  for (auto device : {mx::Device::cpu, mx::Device::gpu}) {
    try {
      if (auto stream = mx::peek_default_stream(device)) {
        mx::synchronize(*stream);
      }
    } catch (...) {
      // The fault has been reported.
    }
  }
}

}  // namespace

int run(std::vector<std::string> arguments) {
  install_signal_handlers();
  set_log_handler(print_log);
  if (arguments.empty()) {
    arguments.emplace_back("mlx-lm");
  }
  try {
    Program program;
    int code = guarded(program, arguments);
    clear_progress();
    finish_work();
    if (code == kSuccess) leave_ranks();
    set_log_handler(nullptr);
    return code;
  } catch (const std::exception& fault) {
    print_error(fault.what());
    return kFailure;
  }
}

}  // namespace mlxlm::cli
