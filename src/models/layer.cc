#include "models/layer.h"

#include <cmath>
#include <numeric>

#include <mlx/mlx.h>

#include "models/compressed_layer.h"
#include "models/latent_layer.h"
#include "models/make_mixer.h"
#include "models/stream_layer.h"
#include "nn/linear.h"
#include "nn/side_by_side.h"

namespace mlxlm {
namespace {

// "<path><name>.", or the path where there is no name.
std::string below(const std::string& path, const std::string& name) {
  return name.empty() ? path : path + name + ".";
}

int or_else(int own, int general) { return own > 0 ? own : general; }

// Names and sizes of one layer's parts, and its weights by them.
class LayerMaker {
 public:
  LayerMaker(const ArchSpec& spec, WeightBinder& weights, int index)
      : spec_(spec),
        layer_(spec.layer(index)),
        names_(layer_.names ? *layer_.names : spec.names),
        weights_(weights),
        index_(index),
        path_(spec.layer_path(index)) {}

  Layer make() {
    Layer layer;
    if (layer_.mixer != kNoMixer) add_first_part(layer);
    if (layer_.mlp) add_second_part(layer);
    if (!names_.scalar.empty()) {
      layer.scalar = weights_.tensor(path_ + names_.scalar, {1});
    }
    if (layer_.shortcut) {
      layer.shortcut = make_experts(path_ + "mlp.", *layer_.shortcut);
    }
    layer.attention_mix = make_mix(names_.attention_mix);
    layer.mlp_mix = make_mix(names_.mlp_mix);
    if (spec_.hyper) layer.hyper = make_hyper(spec_, weights_, path_);
    if (spec_.block_layers > 0) {
      layer.depth = make_depth(spec_, weights_, path_, index_);
    }
    add_gains(layer);
    if (spec_.per_layer_input) {
      layer.per_layer_gate = make_per_layer_gate(spec_, weights_, path_);
    }
    if (spec_.altup) add_altup(layer, spec_, weights_, path_);
    return layer;
  }

 private:
  std::optional<kernels::Norm> norm(const std::string& name,
                                    const NormSpec& spec) {
    if (name.empty()) return std::nullopt;
    return weights_.norm(path_ + name, spec_.hidden_size, spec);
  }

  void add_first_part(Layer& layer) {
    layer.attention_norm = norm(names_.attention_norm, spec_.norm);
    layer.attention_output_norm =
        norm(names_.attention_output_norm,
             spec_.attention_output_norm_spec.value_or(spec_.norm));
    const auto path = below(path_, names_.attention);
    if (layer_.mixer != kAttention) {
      layer.mixer = make_mixer(layer_.mixer);
    } else if (spec_.latent) {
      layer.mixer = make_latent_attention(spec_, layer_, weights_, path);
    } else {
      layer.mixer = make_attention(path);
    }
  }

  void add_second_part(Layer& layer) {
    layer.mlp_norm = norm(names_.mlp_norm, spec_.norm);
    layer.mlp_output_norm =
        norm(names_.mlp_output_norm,
             spec_.mlp_output_norm_spec.value_or(spec_.norm));
    const auto path = below(path_, names_.mlp);
    if (layer_.experts) {
      layer.mlp = make_experts(path, *layer_.experts);
    } else if (layer_.linear_mlp) {
      layer.mlp = weights_.linear(path + "linear",
                                  spec_.hidden_size,
                                  spec_.hidden_size,
                                  spec_.mlp_bias);
    } else {
      layer.mlp = make_mlp(
          path, or_else(layer_.intermediate_size, spec_.intermediate_size));
    }
  }

  MixerPtr make_mixer(int index) {
    if (index == kAttention) {
      return std::make_shared<nn::AttentionMixer>(
          make_attention(below(path_, names_.attention)));
    }
    const auto& mixer = spec_.mixers[index];
    const auto* several = std::get_if<SideBySideSpec>(&mixer);
    if (several == nullptr) {
      return mlxlm::make_mixer(mixer, spec_, weights_, path_, index_);
    }
    std::vector<MixerPtr> made;
    for (int each : several->mixers) made.push_back(make_mixer(each));
    return std::make_shared<nn::SideBySide>(std::move(made));
  }

  struct Sizes {
    int num_heads, num_kv_heads;
    int head;   // of queries and keys
    int value;  // of values and answers
  };

  Sizes head_sizes() const {
    const int head = or_else(layer_.head_size, spec_.head_size);
    return {or_else(layer_.num_heads, spec_.num_heads),
            or_else(layer_.num_kv_heads, spec_.num_kv_heads),
            head,
            or_else(layer_.value_size, head)};
  }

  // One, two or three of queries, keys and values; and the gate where it is
  // in_queries.
  std::vector<kernels::Linear> make_qkv(const std::string& path,
                                        const Sizes& heads) {
    const int sizes[] = {heads.num_heads * heads.head,
                         heads.num_kv_heads * heads.head,
                         heads.num_kv_heads * heads.value};
    auto projection = [&](const std::string& name, int size) {
      return weights_.linear(
          path + name, size, spec_.hidden_size, spec_.qkv_bias);
    };
    if (layer_.keys_of >= 0 || layer_.projects_no_keys) {
      return {projection(names_.q, sizes[0])};
    }
    if (spec_.output_gate == OutputGate::in_queries) {
      const int each[] = {heads.head, heads.head};
      auto queries = weights_.split_rows(
          projection(names_.q, 2 * sizes[0]), each, heads.num_heads);
      return {queries[0],
              projection(names_.k, sizes[1]),
              projection(names_.v, sizes[2]),
              queries[1]};
    }
    if (layer_.keys_are_values) {
      return {projection(names_.q, sizes[0]), projection(names_.k, sizes[1])};
    }
    if (names_.qkv.empty()) {
      return {projection(names_.q, sizes[0]),
              projection(names_.k, sizes[1]),
              projection(names_.v, sizes[2])};
    }
    if (spec_.output_gate == OutputGate::after_values) {
      const int four[] = {
          sizes[0], sizes[1], sizes[2], heads.num_heads * heads.value};
      return weights_.split_rows(
          projection(names_.qkv, std::accumulate(four, four + 4, 0)), four);
    }
    auto all = projection(names_.qkv, sizes[0] + sizes[1] + sizes[2]);
    if (spec_.qkv_layout == QkvLayout::blocks) {
      return weights_.split_rows(all, sizes);
    }
    const int group[] = {
        sizes[0] / heads.num_kv_heads, heads.head, heads.value};
    return weights_.split_rows(all, group, heads.num_kv_heads);
  }

  void add_qk_norms(nn::Attention& attention,
                    const std::string& path,
                    int head_size) {
    // Never with a bias, whatever the layer's own norms have.
    NormSpec norm = spec_.qk_norm_spec.value_or(spec_.norm);
    norm.bias = false;
    auto make = [&](const std::string& name, int num_heads) {
      switch (spec_.qk_norm) {
        case QkNorm::over_heads:
          return weights_.norm(path + name, num_heads * head_size, norm);
        case QkNorm::each_head:
          return weights_.head_norm(path + name, num_heads, head_size, norm);
        default:
          return weights_.norm(path + name, head_size, norm);
      }
    };
    attention.q_norm = make(names_.q_norm, attention.num_heads);
    if (attention.k || layer_.projects_no_keys) {
      attention.k_norm = make(names_.k_norm, attention.num_kv_heads);
    }
    attention.norm_after_rope = spec_.qk_norm_after_rope;
  }

  static std::optional<kernels::Linear> part(
      const std::vector<kernels::Linear>& parts, std::size_t index) {
    if (index < parts.size()) return parts[index];
    return std::nullopt;
  }

  void add_steps(nn::Attention& attention, const std::string& path) {
    if (names_.key_step.empty()) return;
    attention.key_step = weights_.tensor(path + names_.key_step, {});
    attention.value_step = weights_.tensor(path + names_.value_step, {});
  }

  void add_gains(Layer& layer) {
    auto gain = [&](const std::string& name) {
      return weights_.tensor(path_ + name, {1});
    };
    if (!names_.attention_gain.empty()) {
      auto& o = std::get<nn::Attention>(layer.mixer).o;
      o = nn::times(o, gain(names_.attention_gain));
    }
    if (!names_.mlp_gain.empty()) {
      auto& down = std::get<nn::Mlp>(layer.mlp).down;
      down = nn::times(down, gain(names_.mlp_gain));
    }
    if (!names_.first_state_gain.empty()) {
      layer.first_state_gain = gain(names_.first_state_gain);
    }
  }

  std::optional<Layer::Mix> make_mix(const std::string& name) {
    if (name.empty()) return std::nullopt;
    auto factors = [&](const char* end) {
      return weights_.tensor(path_ + name + end, {spec_.hidden_size});
    };
    return Layer::Mix{factors("_alpha"), factors("_beta")};
  }

  nn::MixGate make_mix_gate(const Sizes& heads) {
    const auto path =
        below(spec_.prefix, names_.mix_gate) + std::to_string(index_) + ".";
    return {weights_.tensor(path + "weight", {heads.num_heads, heads.head}),
            weights_.tensor(path + "bias", {heads.num_heads})};
  }

  nn::Attention make_attention(const std::string& path) {
    const auto sizes = head_sizes();
    const int width = sizes.num_heads * sizes.value;
    auto qkv = make_qkv(path, sizes);
    nn::Attention attention{
        .q = qkv[0],
        .k = part(qkv, 1),
        .v = part(qkv, 2),
        .o = weights_.linear(
            path + names_.o, spec_.hidden_size, width, spec_.o_bias),
        .rope = layer_.rope < 0 ? nullptr : &spec_.ropes[layer_.rope],
        .num_heads = sizes.num_heads,
        .num_kv_heads = sizes.num_kv_heads,
        .alternating_heads = spec_.alternating_heads,
        .gate_function = spec_.gate_function,
        .clip = spec_.qkv_clip,
        .value_factor = spec_.value_factor,
        .chunk_tokens = layer_.chunk_tokens,
        .spec = {.scale = spec_.attention_scale,
                 .window_tokens = layer_.window_tokens,
                 .softcap = spec_.attention_softcap}};
    attention.blocks = layer_.blocks;
    if (attention.k) add_steps(attention, path);
    if (!names_.query_gain.empty()) {
      attention.query_gain = mx::reshape(
          weights_.tensor(path + names_.query_gain, {sizes.num_heads}),
          {-1, 1, 1});
    }
    if (!names_.mix_gate.empty()) attention.mix = make_mix_gate(sizes);
    if (layer_.attention_scale > 0) {
      attention.spec.scale = layer_.attention_scale;
    } else if (layer_.head_size > 0) {
      attention.spec.scale = 1 / std::sqrt(static_cast<float>(sizes.head));
    }
    if (layer_.query_scale) attention.query_scale = spec_.query_scale;
    if (spec_.value_norm) attention.v_norm = {.eps = spec_.norm.eps};
    if (spec_.qk_norm != QkNorm::none && layer_.qk_norm) {
      add_qk_norms(attention, path, sizes.head);
    }
    if (spec_.answer_norm) attention.answer_norm = {.eps = spec_.norm.eps};
    if (qkv.size() == 4) {
      attention.gate = qkv[3];
    } else if (spec_.output_gate != OutputGate::none) {
      const bool full = spec_.output_gate == OutputGate::full;
      attention.gate = weights_.linear(path + names_.output_gate,
                                       full ? width : sizes.num_heads,
                                       spec_.hidden_size,
                                       spec_.qkv_bias && spec_.gate_bias);
    }
    if (layer_.block_index) {
      attention.index =
          make_block_index(spec_, weights_, path, *layer_.block_index);
    }
    if (!layer_.sinks.empty()) {
      attention.spec.sinks =
          weights_.tensor(path + layer_.sinks, {sizes.num_heads});
    }
    if (!names_.heads_norm.empty()) {
      attention.heads_norm =
          weights_.norm(path + names_.heads_norm, width, spec_.norm);
    }
    return attention;
  }

  nn::Mlp make_mlp(const std::string& path, int hidden_size) {
    auto projection = [&](const std::string& name, int size) {
      return weights_.linear(
          path + name, size, spec_.hidden_size, spec_.mlp_bias);
    };
    std::optional<kernels::Linear> gate;
    auto up = [&] {
      const bool gate_first = names_.up_gate.empty();
      const auto& both = gate_first ? names_.gate_up : names_.up_gate;
      if (both.empty()) {
        if (spec_.gated_mlp) gate = projection(names_.gate, hidden_size);
        return projection(names_.up, hidden_size);
      }
      const int sizes[] = {hidden_size, hidden_size};
      const int turns[] = {1, 1};
      const auto all = projection(both, 2 * hidden_size);
      auto parts = spec_.interleaved_gate
                       ? weights_.split_rows(all, turns, hidden_size)
                       : weights_.split_rows(all, sizes);
      gate = parts[gate_first ? 0 : 1];
      return parts[gate_first ? 1 : 0];
    }();
    nn::Mlp mlp{
        .gate = gate,
        .up = up,
        .down = weights_.linear(
            path + names_.down, spec_.hidden_size, hidden_size, spec_.mlp_bias),
        .activation = spec_.activation,
        .clamp = layer_.clamp};
    if (layer_.sparse_share > 0) {
      mlp.own_activation = nn::sparse_gelu(layer_.sparse_share);
    }
    if (!names_.mlp_activation.empty()) {
      const auto names = path + names_.mlp_activation + ".";
      auto scalar = [&](const char* name) {
        return weights_.tensor(names + name, {});
      };
      mlp.own_activation = nn::xielu(
          scalar("alpha_p"), scalar("alpha_n"), scalar("beta"), scalar("eps"));
    }
    if (!names_.hidden_norm.empty()) {
      mlp.hidden_norm =
          weights_.norm(path + names_.hidden_norm, hidden_size, spec_.norm);
    }
    return mlp;
  }

  nn::Router make_router(const std::string& path, const ExpertsSpec& experts) {
    const int num_outcomes = experts.num_experts + experts.num_self_experts;
    nn::Router router{.linear = weights_.linear(path + experts.names.router,
                                                num_outcomes,
                                                spec_.hidden_size,
                                                experts.router_bias),
                      .spec = experts.router};
    const auto& bias = experts.names.selection_bias;
    if (!bias.empty()) {
      router.selection_bias = weights_.tensor(path + bias, {num_outcomes});
    }
    const auto& table = experts.names.router_table;
    if (!table.empty()) {
      router.table =
          weights_.indices(path + table,
                           {spec_.vocabulary_size, experts.router.num_chosen},
                           num_outcomes);
    }
    const auto& scale = experts.names.expert_scale;
    if (!scale.empty()) {
      router.expert_scale = weights_.tensor(path + scale, {num_outcomes});
    }
    return router;
  }

  nn::ExpertNorms make_expert_norms(const std::string& path,
                                    const ExpertsSpec& experts) {
    const auto& names = experts.names;
    nn::ExpertNorms norms{
        .chosen = norm(names.chosen_norm, spec_.norm),
        .chosen_output = norm(names.chosen_output_norm, spec_.norm),
        .shared_output = norm(names.shared_output_norm, spec_.norm)};
    if (!names.router_scale.empty()) {
      const int width = spec_.hidden_size;
      auto scale = weights_.tensor(path + names.router_scale, {width});
      const mx::array root(1 / std::sqrt(static_cast<float>(width)),
                           scale.dtype());
      norms.router = {.weight = mx::multiply(scale, root),
                      .eps = spec_.norm.eps};
    }
    const int seen = or_else(experts.latent_size, spec_.hidden_size);
    if (!names.latent_norm.empty()) {
      norms.latent = weights_.norm(path + names.latent_norm, seen, spec_.norm);
    }
    if (!names.latent_output_norm.empty()) {
      norms.latent_output =
          weights_.norm(path + names.latent_output_norm, seen, spec_.norm);
    }
    if (!names.each_gain.empty()) {
      norms.each = {weights_.tensor(path + names.each_gain, {seen}),
                    {.eps = experts.each_norm.eps}};
    }
    if (!names.output_gain.empty()) {
      norms.output_gain =
          weights_.tensor(path_ + names.output_gain, {spec_.hidden_size});
    }
    return norms;
  }

  nn::Experts make_experts(const std::string& path,
                           const ExpertsSpec& experts) {
    auto stack = [&](const std::string& name, int outputs, int inputs) {
      return weights_.expert_stack(path + experts.names.stack + "." + name,
                                   experts.num_experts,
                                   outputs,
                                   inputs,
                                   experts.bias);
    };
    const int width = spec_.hidden_size;
    const int seen = or_else(experts.latent_size, width);
    nn::Experts made{.router = make_router(path, experts),
                     .norms = make_expert_norms(path, experts),
                     .num_experts = experts.num_experts,
                     .scale_input = experts.scale_input,
                     .up = stack(names_.up, experts.hidden_size, seen),
                     .down = stack(names_.down, seen, experts.hidden_size),
                     .activation = spec_.activation,
                     .clamp = experts.clamp,
                     .shared_kind = experts.shared_gate};
    if (spec_.gated_mlp) {
      made.gate = stack(names_.gate, experts.hidden_size, seen);
    }
    if (experts.latent_size > 0) {
      made.to_latent = weights_.linear(
          path + experts.names.to_latent, seen, width, spec_.mlp_bias);
      made.from_latent = weights_.linear(
          path + experts.names.from_latent, width, seen, spec_.mlp_bias);
    }
    if (experts.shared_hidden_size > 0) {
      made.shared = make_mlp(path + experts.names.shared + ".",
                             experts.shared_hidden_size);
    }
    if (made.shared_kind != nn::SharedGate::none) {
      made.shared_gate =
          weights_.linear(path + experts.names.shared_gate,
                          made.shared_kind == nn::SharedGate::mix ? 2 : 1,
                          width,
                          experts.shared_gate_bias);
    }
    return made;
  }

  const ArchSpec& spec_;
  const LayerSpec& layer_;
  const LayerNames& names_;
  WeightBinder& weights_;
  int index_;
  std::string path_;
};

}  // namespace

mx::array Layer::Mix::operator()(const mx::array& x,
                                 const mx::array& more) const {
  return mx::add(mx::multiply(stream, x), mx::multiply(added, more));
}

Layer make_layer(const ArchSpec& spec, WeightBinder& weights, int index) {
  return LayerMaker(spec, weights, index).make();
}

Layer repeat_layer(const ArchSpec& spec, const Layer& layer, int index) {
  auto repeated = layer;
  std::get<nn::Attention>(repeated.mixer).spec.window_tokens =
      spec.layers[index].window_tokens;
  return repeated;
}

}  // namespace mlxlm
