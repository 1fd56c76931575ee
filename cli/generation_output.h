// What `generate` prints: the reference's frame and statistics, only the text,
// or one JSON object.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm::cli {

struct OutputOptions {
  bool verbose = true;    // frame and statistics
  bool stream = true;     // print the text as it comes
  bool json = false;      // one object, at the end
  int top_logprobs = -1;  // per token, with json; -1: no log-probabilities
};

class GenerationOutput {
 public:
  virtual ~GenerationOutput() = default;
  virtual void begin() = 0;
  virtual void add(const GenerationResponse& part) = 0;
  // After the last part, if there was any.
  virtual void end() = 0;
};

// `tokenizer` may be null.
std::unique_ptr<GenerationOutput> make_generation_output(
    const OutputOptions& options, TokenizerPtr tokenizer);

nlohmann::json to_json(const SpeculationStatistics& statistics);

// An object's text, on one line; invalid UTF-8 becomes U+FFFD.
std::string json_line(const nlohmann::json& value);

}  // namespace mlxlm::cli
