// Fields that most families have, with each family's defaults.
#pragma once

#include <initializer_list>
#include <string_view>

#include "load/config.h"
#include "models/arch_spec.h"

namespace mlxlm {

// What a family calls its sizes. Null: it has no such field; the family sets
// the size, of which 1 (for num_key_value_heads as many as heads) stands until
// then.
struct FieldNames {
  const char* hidden_size = "hidden_size";
  const char* num_layers = "num_hidden_layers";
  const char* intermediate_size = "intermediate_size";
  const char* num_heads = "num_attention_heads";
  const char* num_kv_heads = "num_key_value_heads";
  const char* vocabulary_size = "vocab_size";
  const char* context_tokens = "max_position_embeddings";
};

// 0 as a default: the field is required.
struct FieldDefaults {
  int hidden_size = 0;
  int num_layers = 0;
  int intermediate_size = 0;
  int num_heads = 0;
  int vocabulary_size = 0;
  const char* eps_name = "rms_norm_eps";  // null: eps is what it is
  double eps = 0;
  int num_kv_heads = 0;
  int head_size = 0;
  FieldNames names = {};
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

// Rope without scaling, from rope_theta (`theta` 0: required).
nn::Rope read_plain_rope(const ConfigReader& config,
                         int dimensions,
                         double theta,
                         bool traditional = false);

// The same where rope_parameters, if given, have the last word on rope_theta.
nn::Rope read_nested_rope(const ConfigReader& config,
                          int dimensions,
                          double theta);

// The same with rope_scaling; max_positions as the model was made for.
nn::Rope read_scaled_rope(const ConfigReader& config,
                          int dimensions,
                          double theta,
                          bool traditional = false,
                          std::optional<int> max_positions = std::nullopt);

// The rope of `dimensions` of each head from rope_theta, rope_traditional and
// rope_scaling. transformers 5 nests them under rope_parameters; that counts
// where the plain fields are missing. `theta` 0: required.
nn::Rope read_rope(const ConfigReader& config,
                   int dimensions,
                   double theta,
                   bool traditional = false,
                   std::optional<int> max_positions = std::nullopt);

// Throws Error{config} if the field is there and none of these.
void accept_only(const ConfigReader& config,
                 const char* key,
                 std::initializer_list<std::string_view> values);

// rope_theta alone, for families without scaling.
double read_rope_theta(const ConfigReader& config, double theta);

// rope_scaling, else rope_parameters; none if neither is given.
std::optional<ConfigReader> find_rope_scaling(const ConfigReader& config);

// attention_bias and mlp_bias, false where they are missing.
void read_biases(const ConfigReader& config, ArchSpec& spec);

// Granite's multipliers, all required.
void read_granite_factors(const ConfigReader& config, ArchSpec& spec);

// The rank of Mamba's steps: a number, or "auto" (the default), which is a
// sixteenth of the width.
int read_step_rank(const ConfigReader& config,
                   const char* key,
                   int hidden_size);

// Mamba-2's smallest and largest step, if given.
void read_step_limit(const ConfigReader& config,
                     const char* key,
                     Mamba2Spec& mixer);

// How many of a head's dimensions turn, of which partial_rotary_factor is the
// share.
int rotated_dimensions(const ConfigReader& config,
                       int head_size,
                       double partial_rotary_factor);

// Every layer of layer_types that is "sliding_attention" gets the window;
// other types than that and "full_attention" are refused. `window_tokens` 0: of
// the field sliding_window.
void read_layer_types(const ConfigReader& config,
                      ArchSpec& spec,
                      int window_tokens = 0);

// The layers of layer_types, or where it is missing all but every `pattern`-th,
// see sliding_window tokens, held in rotating caches that the architecture
// chooses itself.
void read_windows(const ConfigReader& config, ArchSpec& spec, int pattern);

// Layers with a window hold no more: the architecture chooses its caches
// itself.
void hold_windows(ArchSpec& spec);

// Every `pattern`-th layer sees everything, the others sliding_window tokens,
// which is all they hold.
void set_window_pattern(ArchSpec& spec, int window_tokens, int pattern);

// Throws Error{unsupported} if the field holds something else than this value,
// the only one that is implemented.
void require_false(const ConfigReader& config, const char* key);
void require_true(const ConfigReader& config, const char* key);
void require_text(const ConfigReader& config,
                  const char* key,
                  std::string_view value);

// Norms of what attention and MLP add, besides those before them or alone.
void add_output_norms(ArchSpec& spec);
void use_output_norms_only(ArchSpec& spec);

// What GPT-2 calls the parts of a model.
void use_gpt_names(ArchSpec& spec);

// LayerNorm with biases everywhere.
void use_layer_norm(ArchSpec& spec);

}  // namespace mlxlm
