#include "cli/model_options.h"

#include <mlxlm/error.h>
#include <mlxlm/model.h>
#include <mlxlm/tokenizer.h>

#include "cli/command.h"
#include "cli/console.h"
#include "kernels/seam.h"

namespace mlxlm::cli {

void ModelOptions::add_to(CLI::App& command) {
  constexpr char kGroup[] = "Model";
  command
      .add_option("--model",
                  model,
                  "Folder, .gguf file, hub id (org/name[@revision])\n"
                  "or known name; smollm2-135m-instruct if none")
      ->type_name("MODEL")
      ->group(kGroup);
  command
      .add_option(
          "--adapter-path", adapter_path, "Folder of a LoRA or DoRA adapter")
      ->type_name("FOLDER")
      ->group(kGroup);
  add_list(command,
           "--extra-eos-token",
           extra_eos_tokens,
           "Tokens that end the text besides the model's own")
      ->group(kGroup);
  command
      .add_option("--cpu-mode",
                  cpu_mode,
                  "exact, or where weights are quantized, activations\n"
                  "rounded to 16 bits (fast, default) or 8 (fastest)")
      ->type_name("MODE")
      ->group(kGroup);
  command
      .add_flag("--trust-remote-code",
                trust_remote_code,
                "Without effect: no code of a model is ever run")
      ->group(kGroup);
  command
      .add_flag("--quantize-activations",
                quantize_activations,
                "(-qa) Not implemented yet")
      ->group(kGroup);
}

LoadOptions ModelOptions::load_options() const {
  LoadOptions options;
  options.adapter_path = adapter_path;
  options.progress = progress_on_terminal();
  options.draft_head = draft_head;
  return options;
}

void ModelOptions::check() const {
  if (auto mode = kernels::cpu_mode_named(cpu_mode)) {
    kernels::set_cpu_mode(*mode);
  } else if (!cpu_mode.empty()) {
    throw Error(
        ErrorKind::argument,
        "--cpu-mode is \"" + cpu_mode + "\"; it can be exact, fast or fastest");
  }
  if (trust_remote_code) {
    print_warning(
        "--trust-remote-code has no effect: there is no Python here, and no "
        "code that comes with a model is run");
  }
  if (quantize_activations) {
    throw Error(ErrorKind::unsupported,
                "--quantize-activations isn't implemented yet");
  }
}

LoadedModel ModelOptions::load() const {
  check();
  LoadedModel loaded = mlxlm::load(name(), load_options());
  clear_progress();
  add_eos_tokens(*loaded.tokenizer);
  return loaded;
}

LoadedModel ModelOptions::load_tokenizer_optional() const {
  check();
  return load_with(load_options());
}

LoadedModel ModelOptions::load_lazily() const {
  LoadOptions options = load_options();
  options.lazy = true;
  return load_with(options);
}

LoadedModel ModelOptions::load_with(const LoadOptions& options) const {
  LoadedModel loaded;
  loaded.model = load_model(name(), options);
  clear_progress();
  try {
    loaded.tokenizer = load_tokenizer(
        name(), {.eos_token_ids = loaded.model->eos_token_ids()});
    add_eos_tokens(*loaded.tokenizer);
  } catch (const Error& fault) {
    if (fault.kind() != ErrorKind::file &&
        fault.kind() != ErrorKind::tokenizer) {
      throw;
    }
    loaded.tokenizer = nullptr;
    print_note(std::string("the model has no usable tokenizer: ") +
               fault.what());
  }
  return loaded;
}

void ModelOptions::add_eos_tokens(Tokenizer& tokenizer) const {
  for (const std::string& token : extra_eos_tokens) {
    tokenizer.add_eos_token(token);
  }
}

ProgressHandler progress_on_terminal() { return show_progress; }

}  // namespace mlxlm::cli
