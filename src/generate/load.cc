// load: model and tokenizer in one call.
#include <future>

#include <mlxlm/generate.h>

#include "load/resolve.h"
#include "text/tokenizer_files.h"

namespace mlxlm {

// The tokenizer is read beside the weights: it takes as long as those of a
// small model.
LoadedModel load(const std::string& name, const LoadOptions& options) {
  const std::filesystem::path path =
      resolve_model(name, options.revision, options.progress);
  auto parts = std::async(std::launch::async | std::launch::deferred,
                          [&] { return read_tokenizer(path); });
  ModelPtr model = load_model(path.string(), options);
  TokenizerOptions tokenizer_options;
  tokenizer_options.eos_token_ids = model->eos_token_ids();
  return {std::move(model), make_tokenizer(parts.get(), tokenizer_options)};
}

}  // namespace mlxlm
