// A line of `batch`'s input as a request.
#pragma once

#include <nlohmann/json.hpp>

#include <mlxlm/batch.h>

namespace mlxlm::cli {

class RequestReader {
 public:
  // What a line doesn't say is as here.
  RequestReader(TokenizerPtr tokenizer,
                GenerateOptions defaults,
                SamplerOptions sampler,
                PenaltyOptions penalties)
      : tokenizer_(std::move(tokenizer)),
        defaults_(std::move(defaults)),
        sampler_(std::move(sampler)),
        penalties_(std::move(penalties)) {}

  // The line's id, a text or a whole number; `line_number` if it has none.
  // Throws Error{argument}.
  static nlohmann::json id_of(const nlohmann::json& fields,
                              std::uint64_t line_number);

  // Throws Error{argument} for a field that isn't known or has a value it can't
  // have, Error{chat_template}.
  BatchRequest read(const nlohmann::json& fields) const;

 private:
  std::vector<int> prompt_of(const nlohmann::json& fields) const;

  TokenizerPtr tokenizer_;
  GenerateOptions defaults_;
  SamplerOptions sampler_;
  PenaltyOptions penalties_;
};

}  // namespace mlxlm::cli
