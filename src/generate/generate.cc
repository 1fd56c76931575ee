// generate: the whole text in one call; the end of every generation.
#include <mlx/mlx.h>

#include <mlxlm/generate.h>

namespace mlxlm {

// A step that still ran when the program ends would write to memory that MLX's
// allocator has released.
TokenGenerator::~TokenGenerator() {
  try {
    mx::synchronize();
  } catch (...) {
    // Nobody is left to use that step or to tell of its fault.
  }
}

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
