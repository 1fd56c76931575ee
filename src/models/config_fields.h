// Fields that most families have, with each family's defaults.
#pragma once

#include "load/config.h"
#include "models/arch_spec.h"

namespace mlxlm {

// 0 as a default: the field is required.
struct FieldDefaults {
  int hidden_size = 0;
  int num_layers = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int vocabulary_size = 0;
  const char* eps_name = "rms_norm_eps";
  double eps = 0;
  int num_kv_heads = 0;
  int head_size = 0;
};

// What num_key_value_heads is where it is left out and has no default.
enum class KvHeads { required, as_heads };
// Whether head_dim is read: not, if given (else the default, or what the heads
// make of hidden_size), or always.
enum class HeadSize { from_width, optional, required };

// Sizes, norm epsilon, scale 1 / sqrt(head size), and as many plain layers as
// there are.
ArchSpec read_sizes(const ConfigReader& config,
                    KvHeads kv_heads,
                    HeadSize head_size,
                    const FieldDefaults& defaults = {});

// The rope of `dimensions` of each head from rope_theta, rope_traditional and
// rope_scaling. transformers 5 nests them under rope_parameters; that counts
// where the plain fields are missing. `theta` 0: required.
nn::Rope read_rope(const ConfigReader& config,
                   int dimensions,
                   double theta,
                   bool traditional = false,
                   std::optional<int> max_positions = std::nullopt);

// rope_theta alone, for families without scaling.
double read_rope_theta(const ConfigReader& config, double theta);

// rope_scaling, else rope_parameters; none if neither is given.
std::optional<ConfigReader> find_rope_scaling(const ConfigReader& config);

// How many of a head's dimensions turn, of which partial_rotary_factor is the
// share.
int rotated_dimensions(const ConfigReader& config,
                       int head_size,
                       double partial_rotary_factor);

// Every layer of layer_types that is "sliding_attention" gets the window;
// other types than that and "full_attention" are refused.
void read_layer_types(const ConfigReader& config, ArchSpec& spec);

// Every `pattern`-th layer sees everything, the others sliding_window tokens,
// held in rotating caches.
void set_window_pattern(ArchSpec& spec, int window_tokens, int pattern);

}  // namespace mlxlm
