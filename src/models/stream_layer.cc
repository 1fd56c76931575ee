#include "models/stream_layer.h"

#include <mlx/mlx.h>

namespace mlxlm {

nn::PerLayerGate make_per_layer_gate(const ArchSpec& spec,
                                     WeightBinder& weights,
                                     const std::string& path) {
  const int size = spec.per_layer_input->size;
  const int width = spec.hidden_size;
  return {weights.linear(path + "per_layer_input_gate", size, width),
          weights.linear(path + "per_layer_projection", width, size),
          weights.norm(path + "post_per_layer_input_norm", width, spec.norm)};
}

void add_altup(Layer& layer,
               const ArchSpec& spec,
               WeightBinder& weights,
               const std::string& path) {
  const auto& altup = *spec.altup;
  const int n = altup.num_streams;
  const int width = spec.hidden_size;
  const int rank = altup.laurel_rank;
  auto linear = [&](const std::string& name, int outputs, int inputs) {
    return weights.linear(path + name, outputs, inputs);
  };
  auto clipped = [&](const std::string& name, int outputs) {
    auto made = linear(name, outputs, n);
    if (altup.max_coefficient > 0 && !made.quantized()) {
      const mx::array most(altup.max_coefficient, made.weight.dtype());
      made.weight = mx::clip(made.weight, mx::negative(most), most);
    }
    return made;
  };
  auto norm = [&](const char* name) {
    return weights.norm(path + name, width, spec.norm);
  };
  layer.altup =
      nn::AltUp{.router = linear("altup.modality_router", n, width),
                .prediction = clipped("altup.prediction_coefs", n * n),
                .correction = clipped("altup.correction_coefs", n),
                .router_norm = norm("altup.router_norm"),
                .active = altup.active};
  auto scale = weights.tensor(path + "altup.correct_output_scale", {width});
  if (altup.scale_output) layer.altup_output_scale = scale;
  layer.laurel = nn::Laurel{linear("laurel.linear_left", rank, width),
                            linear("laurel.linear_right", width, rank),
                            norm("laurel.post_laurel_norm")};
}

kernels::Norm depth_mix(const ArchSpec& spec,
                        WeightBinder& weights,
                        const std::string& path) {
  auto norm = weights.norm(path + "_norm", spec.hidden_size, spec.norm);
  const auto row = weights.flat_tensor(path + "_proj.weight", spec.hidden_size);
  norm.weight = weights.derive(mx::multiply(*norm.weight, row));
  return norm;
}

Layer::Depth make_depth(const ArchSpec& spec,
                        WeightBinder& weights,
                        const std::string& path,
                        int index) {
  return {.begins_block = index % spec.block_layers == 0,
          .attention = depth_mix(spec, weights, path + "self_attention_res"),
          .mlp = depth_mix(spec, weights, path + "mlp_res")};
}

}  // namespace mlxlm
