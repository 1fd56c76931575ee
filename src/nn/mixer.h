// What mixes the tokens of a layer where that isn't plain attention: a
// recurrence, a convolution, latent attention, several of them side by side.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include <mlxlm/cache.h>

#include "kernels/seam.h"
#include "nn/attention.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

// What layers of compressed attention leave for later ones in a pass, of one
// row of a batch. K rows stand for groups of tokens.
struct CompressedShare {
  std::optional<mx::array> rows;                // [B, K, D]
  std::optional<mx::array> index_keys;          // [B, K, D]
  std::optional<mx::array> chosen, candidates;  // bool [B, L, K]
};

// What a layer's mixer works on.
struct MixerInput {
  const mx::array& x;         // [B, L, D]
  const kernels::Norm* norm;  // of x, first; may be null
  // As make_cache() gives, or a BatchCache of such; null: x is all there is.
  Cache* cache;
  std::span<const kernels::TokenRun> runs;  // where x's tokens stand
  // What the first layer leaves for the others in a pass over these tokens;
  // null where no mixer needs it.
  std::optional<mx::array>* shared = nullptr;
  std::vector<CompressedShare>* compressed = nullptr;  // one for each row
};

// Part `index` of the caches of a layer of `count` parts, of every row where it
// is a batch's; null stays null. Throws Error{argument} if it is something
// else.
CachePtr cache_part(Cache* cache, std::size_t index, std::size_t count);

class Mixer {
 public:
  virtual ~Mixer() = default;

  // -> [B, L, D].
  virtual mx::array operator()(const MixerInput& input,
                               const Residual& residual) const = 0;

  virtual CachePtr make_cache() const = 0;

  virtual std::vector<kernels::Linear*> linears() = 0;

 protected:
  // All of `linears` of the input.
  static std::vector<mx::array> project(
      const MixerInput& input,
      std::span<const kernels::Linear* const> linears) {
    return kernels::table().norm_linear(input.x, input.norm, linears);
  }
  static mx::array project(const MixerInput& input,
                           const kernels::Linear& linear) {
    const kernels::Linear* const one[] = {&linear};
    return project(input, one)[0];
  }
  // x [B, L, K] -> [B, L, N].
  static mx::array project(const mx::array& x, const kernels::Linear& linear) {
    return kernels::table().linear_residual(x, linear, nullptr, nullptr, 1.0f);
  }
  // out(y) where `residual` wants it. y [B, L, K] -> [B, L, D].
  static mx::array finish(const mx::array& y,
                          const kernels::Linear& out,
                          const Residual& residual) {
    return kernels::table().linear_residual(
        y, out, residual.post_norm, residual.stream, residual.scale);
  }
};

}  // namespace mlxlm::nn
