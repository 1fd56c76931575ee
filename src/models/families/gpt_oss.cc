// gpt_oss: attention sinks, every other layer sees a window, experts with
// biases and a clamped gate.
#include <mlx/mlx.h>

#include "models/config_fields.h"
#include "models/expert_fields.h"
#include "models/family.h"

namespace mlxlm {
namespace {

// Every other row of one tensor from `begin` on, [E, 2F, ...] -> [E, F, ...].
mx::array every_other(const mx::array& rows, int begin) {
  auto start = mx::Shape(rows.ndim(), 0);
  auto strides = mx::Shape(rows.ndim(), 1);
  start[1] = begin;
  strides[1] = 2;
  return mx::contiguous(mx::slice(rows, start, rows.shape(), strides));
}

// "<experts>.gate_up_proj", whose rows are gate and up in turns, as two, and
// the biases where the others are.
void split_gate_up(Checkpoint& checkpoint, const std::string& experts) {
  const auto joined = experts + "gate_up_proj";
  const std::pair<std::string, std::string> names[] = {{"", ".weight"},
                                                       {".weight", ".weight"},
                                                       {".scales", ".scales"},
                                                       {"_bias", ".bias"}};
  for (const auto& [from, to] : names) {
    if (auto rows = take_weight(checkpoint, experts + "down_proj" + from)) {
      checkpoint.weights.insert_or_assign(experts + "down_proj" + to, *rows);
    }
    auto rows = take_weight(checkpoint, joined + from);
    if (!rows || rows->ndim() < 2) continue;
    checkpoint.weights.insert_or_assign(experts + "gate_proj" + to,
                                        every_other(*rows, 0));
    checkpoint.weights.insert_or_assign(experts + "up_proj" + to,
                                        every_other(*rows, 1));
  }
  auto quantized = checkpoint.quantized.extract(joined);
  if (quantized.empty()) return;
  for (const char* part : {"gate_proj", "up_proj"}) {
    checkpoint.quantized.insert_or_assign(experts + part, quantized.mapped());
  }
}

}  // namespace

ArchSpec gpt_oss_spec(const ConfigReader& config, Checkpoint& checkpoint) {
  auto spec = read_sizes(config,
                         KvHeads::as_heads,
                         HeadSize::optional,
                         {.hidden_size = 2880,
                          .num_layers = 36,
                          .intermediate_size = 2880,
                          .num_heads = 64,
                          .vocabulary_size = 201088,
                          .eps = 1e-5,
                          .num_kv_heads = 8,
                          .head_size = 64});
  spec.qkv_bias = spec.o_bias = true;
  spec.activation = kernels::Activation::gelu_fast;
  spec.ropes = {read_scaled_rope(config, spec.head_size, 150000)};
  const int window = config.get_int("sliding_window", 128, 1);
  if (config.has("layer_types")) {
    read_layer_types(config, spec, window);
  } else {
    for (std::size_t i = 0; i < spec.layers.size(); i += 2) {
      spec.layers[i].window_tokens = window;
    }
  }
  ExpertsSpec experts;
  experts.num_experts = config.get_int("num_local_experts", 128, 1, 1 << 14);
  experts.hidden_size = spec.intermediate_size;
  experts.bias = experts.router_bias = true;
  experts.router.score = nn::RouterScore::chosen_softmax;
  experts.router.num_chosen =
      config.get_int("num_experts_per_tok", 4, 1, experts.num_experts);
  experts.clamp = {.gate_max = 7, .up_limit = 7, .up_offset = 1};
  experts.names.router = "router";
  experts.names.stack = "experts";
  use_experts(spec, experts);
  for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
    auto& layer = spec.layers[i];
    layer.sinks = "sinks";
    split_gate_up(checkpoint, spec.layer_path(i) + "mlp.experts.");
  }
  hold_windows(spec);
  return spec;
}

}  // namespace mlxlm
