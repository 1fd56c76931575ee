// Rotary positions: every kind of scaling of the reference's initialize_rope.
// Method: mlx_lm/models/rope_utils.py.
#pragma once

#include <optional>
#include <vector>

#include "kernels/seam.h"
#include "load/config.h"

namespace mlxlm::nn {

namespace mx = mlx::core;

struct RopeOptions {
  int dimensions = 0;
  double base = 10000;
  bool traditional = false;
  std::optional<int> max_positions;  // max_position_embeddings
};

// What longrope ("su") is made from.
struct LongRopeOptions {
  int dimensions = 0;
  double base = 10000;
  int max_positions = 131072;
  int original_max_positions = 4096;
  // One per pair of dimensions, or one for all. The reference uses them for
  // short inputs too.
  std::vector<double> long_factors{1.0};
  std::optional<double> input_scale;  // none: by the lengths
};

class Rope {
 public:
  Rope() = default;
  explicit Rope(kernels::Rope rope) : rope_(std::move(rope)) {}

  // For `num_tokens` tokens of which the first is at position `offset`.
  kernels::Rope at(int num_tokens, int offset) const;

  // Turns the other way: frequencies below zero. Not of one that depends on the
  // length.
  Rope reversed() const;

  // at() gives others for other lengths.
  bool depends_on_length() const { return dynamic_factor_ != 0; }

  // Base changes once the input is longer than `max_positions`.
  static Rope dynamic(const RopeOptions& options, double factor);
  static Rope long_rope(const LongRopeOptions& options);

 private:
  kernels::Rope rope_;
  double dynamic_factor_ = 0;  // 0: base is fixed
  int max_positions_ = 0;
};

// `scaling` is the configuration's rope_scaling or rope_parameters, if it has
// one. Throws Error{config, unsupported}.
Rope make_rope(const RopeOptions& options,
               const std::optional<ConfigReader>& scaling);

// The kind of scaling: `type`, else `rope_type`, else "default".
std::string rope_type(const ConfigReader& scaling);

// longrope's factors: a list, or one number. Throws Error{config} if their
// number isn't that of the dimension pairs.
std::vector<double> read_long_factors(const ConfigReader& scaling,
                                      int dimensions);

}  // namespace mlxlm::nn
