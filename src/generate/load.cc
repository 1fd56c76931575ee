// load: model and tokenizer in one call.
#include <mlxlm/generate.h>

namespace mlxlm {

LoadedModel load(const std::string& name, const LoadOptions& options) {
  ModelPtr model = load_model(name, options);
  TokenizerOptions tokenizer_options;
  tokenizer_options.revision = options.revision;
  tokenizer_options.eos_token_ids = model->eos_token_ids();
  return {std::move(model), load_tokenizer(name, tokenizer_options)};
}

}  // namespace mlxlm
