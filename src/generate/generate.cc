// generate: the whole text in one call.
#include <mlxlm/generate.h>

namespace mlxlm {

std::string generate(ModelPtr model,
                     TokenizerPtr tokenizer,
                     const std::string& prompt,
                     const GenerateOptions& options) {
  std::string text;
  for (const auto& part : stream_generate(
           std::move(model), std::move(tokenizer), prompt, options)) {
    text += part.text;
  }
  return text;
}

}  // namespace mlxlm
