// What gives a GenerationStream its parts.
#pragma once

#include <optional>

#include <mlxlm/generate.h>

namespace mlxlm {

class GenerationStream::Impl {
 public:
  virtual ~Impl() = default;
  virtual std::optional<GenerationResponse> next() = 0;
};

}  // namespace mlxlm
