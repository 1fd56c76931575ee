#include "models/make_mixer.h"

#include <cmath>
#include <numeric>
#include <span>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "models/compressed_layer.h"
#include "nn/conv_attention.h"
#include "nn/delta_net.h"
#include "nn/gated_conv.h"
#include "nn/lightning_attention.h"
#include "nn/linear.h"
#include "nn/linear_mixer.h"
#include "nn/mamba.h"
#include "nn/mamba2.h"
#include "nn/rg_lru.h"
#include "nn/rwkv7.h"
#include "nn/short_conv.h"

namespace mlxlm {

namespace {

// Makes each kind of mixer, for one place in the model.
struct Place {
  const ArchSpec& spec;
  WeightBinder& weights;
  const std::string& layer_path;
  int layer;

  int width() const { return spec.hidden_size; }

  // exp(`path`), which must be a vector.
  mx::array exponential(const std::string& path, int size) const {
    return weights.derive(mx::exp(weights.flat_tensor(path, size)));
  }

  kernels::Norm norm(const std::string& path, int size, float eps) const {
    return weights.norm(path, size, {.eps = eps});
  }

  std::shared_ptr<nn::Mixer> operator()(const ShortConvSpec& s) const {
    const auto path = layer_path + s.name + ".";
    return std::make_shared<nn::ShortConv>(
        weights.linear(path + "in_proj", 3 * width(), width(), s.bias),
        weights.causal_conv(path + "conv", width(), s.num_taps, s.bias),
        weights.linear(path + "out_proj", width(), width(), s.bias));
  }

  std::shared_ptr<nn::Mixer> operator()(const LinearMixerSpec& s) const {
    return std::make_shared<nn::LinearMixer>(
        weights.linear(layer_path + s.name, width(), width(), s.bias));
  }

  std::shared_ptr<nn::Mixer> operator()(const GatedConvSpec& s) const {
    const auto path = layer_path + s.name + ".";
    const int head = spec.head_size;
    const int queries = spec.num_heads * head;
    const int keys = spec.num_kv_heads * head;
    auto norm_of_head = [&](const char* name) {
      return weights.norm(path + name, head, spec.norm);
    };
    auto conv = [&](const char* name) {
      return weights.causal_conv(path + name, keys, s.num_taps, s.bias);
    };
    return std::make_shared<nn::GatedConv>(nn::GatedConvWeights{
        .q = weights.linear(path + "q_proj", queries, width(), s.bias),
        .k = weights.linear(path + "k_proj", keys, width(), s.bias),
        .v = weights.linear(path + "v_proj", keys, width(), s.bias),
        .q_norm = norm_of_head("q_norm"),
        .k_norm = norm_of_head("k_norm"),
        .k_conv = conv("key_conv"),
        .v_conv = conv("value_conv"),
        .o = weights.linear(path + "o_proj", width(), queries, s.bias),
        .num_heads = spec.num_heads,
        .num_kv_heads = spec.num_kv_heads});
  }

  // A layer, or two of rank `rank`, after each other.
  std::vector<kernels::Linear> chain(const std::string& path,
                                     const std::vector<std::string>& names,
                                     int num_outputs,
                                     int rank) const {
    if (names.size() == 1) {
      return {weights.linear(path + names[0], num_outputs, width())};
    }
    return {weights.linear(path + names[0], rank, width()),
            weights.linear(path + names[1], num_outputs, rank)};
  }

  // What DeltaNet makes of its input.
  struct DeltaProjections {
    std::vector<kernels::Linear> qkv, decay, gate;
    kernels::Linear beta;
  };

  static std::vector<int> qkv_sizes(const DeltaNetSpec& s, std::size_t count) {
    const int keys = s.num_key_heads * s.key_size;
    const int values = s.num_heads * s.value_size;
    if (count == 1) return {2 * keys + values};
    return {keys, keys, values};
  }

  static int num_decays(const DeltaNetSpec& s) {
    return s.decay_per_key ? s.num_heads * s.key_size : s.num_heads;
  }

  DeltaProjections separate(const DeltaNetSpec& s,
                            const std::string& path) const {
    const auto sizes = qkv_sizes(s, s.qkv.size());
    std::vector<kernels::Linear> qkv;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      qkv.push_back(weights.linear(path + s.qkv[i], sizes[i], width()));
    }
    return {qkv,
            chain(path, s.decay, num_decays(s), s.value_size),
            chain(path, s.gate, s.num_heads * s.value_size, s.value_size),
            weights.linear(path + s.beta, s.num_heads, width())};
  }

  // Key head by key head.
  DeltaProjections joined(const DeltaNetSpec& s,
                          const std::string& path) const {
    const int heads = s.num_heads / s.num_key_heads;
    const int values = heads * s.value_size;
    const int sizes[] = {s.key_size, s.key_size, values, values};
    const int two[] = {heads, heads};
    auto in_groups = [&](const std::string& name, std::span<const int> rows) {
      const int per_head = std::accumulate(rows.begin(), rows.end(), 0);
      return weights.split_rows(
          weights.linear(path + name, s.num_key_heads * per_head, width()),
          rows,
          s.num_key_heads);
    };
    auto qkvz = in_groups(s.qkvz, sizes);
    auto ba = in_groups(s.ba, two);
    return {{qkvz[0], qkvz[1], qkvz[2]}, {ba[1]}, {qkvz[3]}, ba[0]};
  }

  std::shared_ptr<nn::Mixer> operator()(const DeltaNetSpec& s) const {
    const auto path = layer_path + s.name + ".";
    auto made = s.qkvz.empty() ? separate(s, path) : joined(s, path);
    const auto channels = qkv_sizes(s, s.convs.size());
    std::vector<kernels::CausalConv> convs;
    for (std::size_t i = 0; i < channels.size(); ++i) {
      convs.push_back(
          weights.causal_conv(path + s.convs[i], channels[i], s.num_taps));
      convs.back().silu = true;
    }
    auto rate = exponential(path + "A_log", s.num_heads);
    auto step_bias = weights.flat_tensor(path + "dt_bias", num_decays(s));
    if (s.decay_per_key) {
      rate = weights.derive(mx::expand_dims(rate, 1));
      step_bias =
          weights.derive(mx::reshape(step_bias, {s.num_heads, s.key_size}));
    }
    return std::make_shared<nn::DeltaNet>(nn::DeltaNetParts{
        .num_heads = s.num_heads,
        .num_key_heads = s.num_key_heads,
        .key_size = s.key_size,
        .value_size = s.value_size,
        .qkv = std::move(made.qkv),
        .convs = std::move(convs),
        .decay = std::move(made.decay),
        .gate = std::move(made.gate),
        .beta = std::move(made.beta),
        .beta_scale = s.beta_scale,
        .rate = rate,
        .step_bias = step_bias,
        .lower_bound = s.lower_bound,
        .norm = norm(path + s.norm, s.value_size, s.norm_eps),
        .sigmoid_gate = s.sigmoid_gate,
        .out =
            weights.linear(path + s.out, width(), s.num_heads * s.value_size)});
  }

  std::shared_ptr<nn::Mixer> operator()(const MambaSpec& s) const {
    const auto path = layer_path + s.name + ".";
    auto norm_if = [&](const std::string& name,
                       int size) -> std::optional<kernels::Norm> {
      if (!s.norm_eps) return std::nullopt;
      if (name.empty()) return kernels::Norm{.eps = *s.norm_eps};
      return norm(path + name, size, *s.norm_eps);
    };
    auto conv = weights.causal_conv(
        path + "conv1d", s.inner_size, s.num_taps, s.conv_bias);
    conv.silu = true;
    auto rate = weights.tensor(path + "A_log", {s.inner_size, s.state_size});
    return std::make_shared<nn::Mamba>(nn::MambaParts{
        .inner_size = s.inner_size,
        .state_size = s.state_size,
        .step_rank = s.step_rank,
        .in =
            weights.linear(path + "in_proj", 2 * s.inner_size, width(), s.bias),
        .conv = conv,
        .x = weights.linear(
            path + "x_proj", s.step_rank + 2 * s.state_size, s.inner_size),
        .step = weights.linear(
            path + "dt_proj", s.inner_size, s.step_rank, /*bias=*/true),
        .step_norm = norm_if(s.step_norm, s.step_rank),
        .b_norm = norm_if(s.b_norm, s.state_size),
        .c_norm = norm_if(s.c_norm, s.state_size),
        .a = weights.derive(mx::negative(mx::exp(rate))),
        .skip = weights.tensor(path + "D", {s.inner_size}),
        .out =
            weights.linear(path + "out_proj", width(), s.inner_size, s.bias)});
  }

  std::shared_ptr<nn::Mixer> operator()(const Mamba2Spec& s) const {
    const auto path = layer_path + s.name + ".";
    const int inner = s.num_heads * s.head_size;
    const int keys = s.num_groups * s.state_size;
    const bool selects = s.select_rank > 0;
    const int channels = selects ? inner : inner + 2 * keys;
    auto in =
        weights.linear(path + "in_proj",
                       selects ? 2 * inner : inner + channels + s.num_heads,
                       width(),
                       s.in_bias);
    std::optional<nn::Mamba2Select> select;
    if (selects) {
      const int rows[] = {s.head_size, s.head_size};
      auto parts = weights.split_rows(in, rows, s.num_heads);
      in = parts[0];
      auto weight_of = [&](const std::string& name, int size) {
        return kernels::Norm{.weight = weights.tensor(path + name, {size}),
                             .eps = s.norm_eps};
      };
      select = nn::Mamba2Select{
          .x = parts[1],
          .bc_step = weights.linear(
              path + "bcdt_proj", 2 * s.state_size + s.select_rank, inner),
          .b_norm = weight_of("B_norm_weight", s.state_size),
          .c_norm = weight_of("C_norm_weight", s.state_size),
          .step_norm = weight_of("dt_norm_weight", s.select_rank),
          .step = weights.linear(path + "dt_proj", s.num_heads, s.select_rank)};
    }
    auto conv =
        weights.causal_conv(path + "conv1d", channels, s.num_taps, s.conv_bias);
    conv.silu = true;
    std::optional<kernels::Norm> after;
    if (s.norm) after = norm(path + "norm", inner, s.norm_eps);
    return std::make_shared<nn::Mamba2>(nn::Mamba2Parts{
        .num_heads = s.num_heads,
        .head_size = s.head_size,
        .num_groups = s.num_groups,
        .state_size = s.state_size,
        .in = in,
        .select = select,
        .conv = conv,
        .rate = exponential(path + "A_log", s.num_heads),
        .step_bias = weights.tensor(path + "dt_bias", {s.num_heads}),
        .skip = weights.tensor(path + "D", {s.num_heads}),
        .min_step = s.min_step,
        .max_step = s.max_step,
        .norm = after,
        .norm_groups = s.norm_groups,
        .norm_before_gate = s.norm_before_gate,
        .out = weights.linear(path + "out_proj", width(), inner, s.out_bias)});
  }

  std::shared_ptr<nn::Mixer> operator()(const RgLruSpec& s) const {
    const auto path = layer_path + s.name + ".";
    const int size = width() / spec.num_heads;
    auto gate = [&](const std::string& name) {
      return weights.tensor(path + "rg_lru." + name + "_weight",
                            {spec.num_heads, size, size});
    };
    auto gate_bias = [&](const std::string& name) {
      return weights.tensor(path + "rg_lru." + name + "_bias",
                            {spec.num_heads, size});
    };
    auto parameter = weights.tensor(path + "rg_lru.recurrent_param", {width()});
    auto linear = [&](const std::string& name) {
      return weights.linear(path + name, width(), width(), /*bias=*/true);
    };
    return std::make_shared<nn::RgLru>(nn::RgLruParts{
        .y = linear("linear_y"),
        .x = linear("linear_x"),
        .out = linear("linear_out"),
        .conv = weights.causal_conv(
            path + "conv_1d", width(), s.num_taps, /*bias=*/true),
        .input_gate = gate("input_gate"),
        .input_gate_bias = gate_bias("input_gate"),
        .recurrent_gate = gate("recurrent_gate"),
        .recurrent_gate_bias = gate_bias("recurrent_gate"),
        .rate = weights.derive(mx::multiply(
            mx::array(-8.0f, parameter.dtype()),
            mx::logaddexp(parameter, mx::array(0.0f, parameter.dtype()))))});
  }

  nn::LowRankMlp low_rank(const std::string& path, int rank, bool bias) const {
    return {weights.linear(path + ".lora.0", rank, width()),
            weights.linear(path + ".lora.2", width(), rank, bias)};
  }

  std::shared_ptr<nn::Mixer> operator()(const Rwkv7Spec& s) const {
    const auto path = layer_path + "attn.";
    const int heads = width() / s.head_size;
    auto norm = [&](const std::string& name) {
      return weights.norm(layer_path + name, width(), spec.norm);
    };
    auto share = [&](const std::string& name) {
      return weights.flat_tensor(path + name, width());
    };
    auto per_head = [&](const std::string& name) {
      return weights.derive(mx::reshape(
          weights.flat_tensor(path + name, width()), {heads, s.head_size}));
    };
    auto linear = [&](const std::string& name) {
      return weights.linear(path + name, width(), width());
    };
    std::optional<kernels::Norm> pre_norm;
    std::optional<nn::LowRankMlp> value;
    if (layer == 0) {
      pre_norm = norm("pre_norm");
    } else {
      value = low_rank(path + "v_lora", s.value_rank, true);
    }
    return std::make_shared<nn::Rwkv7>(nn::Rwkv7Parts{
        .num_heads = heads,
        .head_size = s.head_size,
        .pre_norm = pre_norm,
        .time_norm = norm("attn_norm"),
        .channel_norm = norm("ffn_norm"),
        .mix_r = share("x_r"),
        .mix_w = share("x_w"),
        .mix_k = share("x_k"),
        .mix_v = share("x_v"),
        .mix_a = share("x_a"),
        .mix_g = share("x_g"),
        .mix_channel = weights.flat_tensor(layer_path + "ffn.x_k", width()),
        .removal_scale = per_head("k_k"),
        .k_scale = per_head("k_a"),
        .bonus = per_head("r_k"),
        .r = linear("r_proj"),
        .k = linear("k_proj"),
        .v = linear("v_proj"),
        .out = linear("o_proj"),
        .decay = low_rank(path + "w_lora", s.decay_rank, true),
        .rate = low_rank(path + "a_lora", s.rate_rank, true),
        .gate = low_rank(path + "g_lora", s.gate_rank, false),
        .value = value,
        .head_norm_weight = per_head("g_norm.weight"),
        .head_norm_bias = per_head("g_norm.bias"),
        .key = weights.linear(
            layer_path + "ffn.key", spec.intermediate_size, width()),
        .channel_out = weights.linear(
            layer_path + "ffn.value", width(), spec.intermediate_size)});
  }

  std::shared_ptr<nn::Mixer> operator()(const LightningSpec& s) const {
    const auto path = layer_path + s.name + ".";
    const int inner = spec.num_heads * s.head_size;
    const int rows[] = {inner, inner, inner};
    auto qkv = weights.split_rows(
        weights.linear(
            path + "query_key_value", 3 * inner, width(), s.qkv_bias),
        rows);
    auto norm_if = [&](const char* name) -> std::optional<kernels::Norm> {
      if (!s.qk_norm) return std::nullopt;
      return norm(path + name, s.head_size, spec.norm.eps);
    };
    return std::make_shared<nn::LightningAttention>(nn::LightningParts{
        .num_heads = spec.num_heads,
        .head_size = s.head_size,
        .q = qkv[0],
        .k = qkv[1],
        .v = qkv[2],
        .q_norm = norm_if("query_layernorm"),
        .k_norm = norm_if("key_layernorm"),
        .rope = &spec.ropes[s.rope],
        .scale = static_cast<float>(1 / std::sqrt(s.head_size)),
        .decay = nn::lightning_decay(spec.num_heads,
                                     layer - s.first_layer,
                                     static_cast<int>(spec.layers.size())),
        .gate = weights.linear(path + "g_proj", inner, width()),
        .norm_weight = weights.tensor(path + "g_norm.weight", {inner}),
        .norm_groups = s.norm_groups,
        .norm_eps = spec.norm.eps,
        .out = weights.linear(path + "dense", width(), inner, s.out_bias)});
  }

  std::shared_ptr<nn::Mixer> operator()(const ConvAttentionSpec& s) const {
    const auto path = layer_path + s.name + ".";
    const int q_size = s.num_heads * s.head_size;
    const int kv_size = s.num_kv_heads * s.head_size;
    const int rows[] = {q_size, kv_size, kv_size};
    auto qkv = weights.split_rows(
        weights.linear(path + "W_pack", q_size + 2 * kv_size, width()), rows);
    // One pair of taps for all numbers of a head.
    auto conv = [&](const char* name) {
      auto taps =
          mx::reshape(weights.flat_tensor(path + name, 2 * s.num_kv_heads),
                      {s.num_kv_heads, 2});
      return kernels::CausalConv{
          weights.derive(mx::repeat(taps, s.head_size, 0))};
    };
    return std::make_shared<nn::ConvAttention>(nn::ConvAttentionParts{
        .num_heads = s.num_heads,
        .num_kv_heads = s.num_kv_heads,
        .q = qkv[0],
        .k = qkv[1],
        .v = qkv[2],
        .out = weights.linear(path + "o_proj", width(), q_size),
        .k_conv = conv("conv_k"),
        .v_conv = conv("conv_v"),
        .rope = &spec.ropes[s.rope],
        .spec = {.scale = static_cast<float>(1 / std::sqrt(s.head_size)),
                 .window_tokens = s.window_tokens}});
  }

  std::shared_ptr<nn::Mixer> operator()(
      const CompressedAttentionSpec& s) const {
    return make_compressed_attention(
        s, spec, weights, layer_path + s.name + ".");
  }

  std::shared_ptr<nn::Mixer> operator()(const SideBySideSpec&) const {
    throw Error(ErrorKind::internal, "mixers within mixers within mixers");
  }
};

}  // namespace

std::shared_ptr<nn::Mixer> make_mixer(const MixerSpec& mixer,
                                      const ArchSpec& spec,
                                      WeightBinder& weights,
                                      const std::string& layer_path,
                                      int layer) {
  return std::visit(Place{spec, weights, layer_path, layer}, mixer);
}

}  // namespace mlxlm
