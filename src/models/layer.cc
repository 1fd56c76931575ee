#include "models/layer.h"

#include "nn/linear.h"

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
        names_(spec.names),
        layer_(spec.layers[index]),
        weights_(weights),
        path_(spec.layer_path(index)) {}

  Layer make() {
    return {.attention_norm = norm(names_.attention_norm, spec_.norm),
            .attention_output_norm =
                norm(names_.attention_output_norm,
                     spec_.attention_output_norm_spec.value_or(spec_.norm)),
            .mlp_norm = norm(names_.mlp_norm, spec_.norm),
            .mlp_output_norm =
                norm(names_.mlp_output_norm,
                     spec_.mlp_output_norm_spec.value_or(spec_.norm)),
            .attention = make_attention(below(path_, names_.attention)),
            .mlp = make_second_part()};
  }

 private:
  std::optional<kernels::Norm> norm(const std::string& name,
                                    const NormSpec& spec) {
    if (name.empty()) return std::nullopt;
    return weights_.norm(path_ + name, spec_.hidden_size, spec);
  }

  std::variant<nn::Mlp, nn::Experts> make_second_part() {
    const auto path = below(path_, names_.mlp);
    if (layer_.experts) return make_experts(path);
    return make_mlp(path,
                    or_else(layer_.intermediate_size, spec_.intermediate_size));
  }

  std::vector<kernels::Linear> make_qkv(const std::string& path,
                                        int num_heads,
                                        int num_kv_heads) {
    const int q_size = num_heads * spec_.head_size;
    const int kv_size = num_kv_heads * spec_.head_size;
    auto projection = [&](const std::string& name, int size) {
      return weights_.linear(
          path + name, size, spec_.hidden_size, spec_.qkv_bias);
    };
    if (names_.qkv.empty()) {
      return {projection(names_.q, q_size),
              projection(names_.k, kv_size),
              projection(names_.v, kv_size)};
    }
    auto all = projection(names_.qkv, q_size + 2 * kv_size);
    if (spec_.qkv_layout == QkvLayout::blocks) {
      const int sizes[] = {q_size, kv_size, kv_size};
      return nn::split_rows(all, sizes);
    }
    const int sizes[] = {
        q_size / num_kv_heads, spec_.head_size, spec_.head_size};
    return nn::split_row_groups(all, num_kv_heads, sizes);
  }

  void add_qk_norms(nn::Attention& attention, const std::string& path) {
    // Never with a bias, whatever the layer's own norms have.
    NormSpec norm = spec_.qk_norm_spec.value_or(spec_.norm);
    norm.bias = false;
    auto make = [&](const std::string& name, int num_heads) {
      switch (spec_.qk_norm) {
        case QkNorm::over_heads:
          return weights_.norm(path + name, num_heads * spec_.head_size, norm);
        case QkNorm::each_head:
          return weights_.head_norm(
              path + name, num_heads, spec_.head_size, norm);
        default:
          return weights_.norm(path + name, spec_.head_size, norm);
      }
    };
    attention.q_norm = make(names_.q_norm, attention.num_heads);
    attention.k_norm = make(names_.k_norm, attention.num_kv_heads);
    attention.norm_after_rope = spec_.qk_norm_after_rope;
  }

  nn::Attention make_attention(const std::string& path) {
    const int num_heads = or_else(layer_.num_heads, spec_.num_heads);
    const int num_kv_heads = or_else(layer_.num_kv_heads, spec_.num_kv_heads);
    const int width = num_heads * spec_.head_size;
    auto qkv = make_qkv(path, num_heads, num_kv_heads);
    nn::Attention attention{
        .q = qkv[0],
        .k = qkv[1],
        .v = qkv[2],
        .o = weights_.linear(
            path + names_.o, spec_.hidden_size, width, spec_.o_bias),
        .rope = layer_.rope < 0 ? nullptr : &spec_.ropes[layer_.rope],
        .num_heads = num_heads,
        .num_kv_heads = num_kv_heads,
        .alternating_heads = spec_.alternating_heads,
        .query_scale = spec_.query_scale,
        .spec = {.scale = spec_.attention_scale,
                 .window_tokens = layer_.window_tokens,
                 .softcap = spec_.attention_softcap}};
    if (spec_.value_norm) attention.v_norm = {.eps = spec_.norm.eps};
    if (spec_.qk_norm != QkNorm::none) add_qk_norms(attention, path);
    if (spec_.output_gate != OutputGate::none) {
      const bool full = spec_.output_gate == OutputGate::full;
      attention.gate = weights_.linear(path + names_.output_gate,
                                       full ? width : num_heads,
                                       spec_.hidden_size,
                                       spec_.qkv_bias);
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
      auto parts = nn::split_rows(projection(both, 2 * hidden_size), sizes);
      gate = parts[gate_first ? 0 : 1];
      return parts[gate_first ? 1 : 0];
    }();
    nn::Mlp mlp{
        .gate = gate,
        .up = up,
        .down = weights_.linear(
            path + names_.down, spec_.hidden_size, hidden_size, spec_.mlp_bias),
        .activation = spec_.activation};
    if (!names_.hidden_norm.empty()) {
      mlp.hidden_norm =
          weights_.norm(path + names_.hidden_norm, hidden_size, spec_.norm);
    }
    return mlp;
  }

  nn::Experts make_experts(const std::string& path) {
    const auto& experts = *spec_.experts;
    auto stack = [&](const std::string& name, int outputs, int inputs) {
      return weights_.expert_stack(
          path + "switch_mlp." + name, experts.num_experts, outputs, inputs);
    };
    nn::Experts made{
        .router = weights_.linear(
            path + "gate", experts.num_experts, spec_.hidden_size),
        .kind = experts.router,
        .num_chosen = experts.num_chosen,
        .normalize = experts.normalize,
        .gate = stack(names_.gate, experts.hidden_size, spec_.hidden_size),
        .up = stack(names_.up, experts.hidden_size, spec_.hidden_size),
        .down = stack(names_.down, spec_.hidden_size, experts.hidden_size),
        .activation = spec_.activation};
    if (experts.shared_hidden_size > 0) {
      made.shared =
          make_mlp(path + "shared_expert.", experts.shared_hidden_size);
      made.shared_gate =
          weights_.linear(path + "shared_expert_gate", 1, spec_.hidden_size);
    }
    return made;
  }

  const ArchSpec& spec_;
  const LayerNames& names_;
  const LayerSpec& layer_;
  WeightBinder& weights_;
  std::string path_;
};

}  // namespace

Layer make_layer(const ArchSpec& spec, WeightBinder& weights, int index) {
  return LayerMaker(spec, weights, index).make();
}

void for_each_linear(Layer& layer,
                     const std::function<void(kernels::Linear&)>& visit) {
  auto visit_if = [&](std::optional<kernels::Linear>& linear) {
    if (linear) visit(*linear);
  };
  auto visit_mlp = [&](nn::Mlp& mlp) {
    visit_if(mlp.gate);
    visit(mlp.up);
    visit(mlp.down);
  };
  auto& attention = layer.attention;
  for (auto* each : {&attention.q, &attention.k, &attention.v, &attention.o}) {
    visit(*each);
  }
  visit_if(attention.gate);
  if (auto* mlp = std::get_if<nn::Mlp>(&layer.mlp)) {
    visit_mlp(*mlp);
    return;
  }
  auto& experts = std::get<nn::Experts>(layer.mlp);
  for (auto* each :
       {&experts.router, &experts.gate, &experts.up, &experts.down}) {
    visit(*each);
  }
  if (experts.shared) visit_mlp(*experts.shared);
  visit_if(experts.shared_gate);
}

}  // namespace mlxlm
