// Mixture of experts: the chosen rows gathered by expert, so that each expert's
// weights are read once.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/project.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

struct GatheredTag {};
struct HiddenTag {};
struct UpTag {};
struct AnswerTag {};

using Weights = std::shared_ptr<const PackedLinear>;

// The choices (token * num_chosen + slot) of each expert, expert by expert.
std::vector<std::vector<int>> choices_by_expert(const std::uint32_t* indices,
                                                std::size_t count,
                                                int num_experts) {
  std::vector<std::vector<int>> result(num_experts);
  for (std::size_t i = 0; i < count; ++i) {
    // Routers choose among the experts there are; a stray index must not
    // become a stray read.
    if (indices[i] < static_cast<std::uint32_t>(num_experts)) {
      result[indices[i]].push_back(static_cast<int>(i));
    }
  }
  return result;
}

float bent(float x, float bend) { return bend * std::tanh(x / bend); }

void clamp_rows(const GateClamp& clamp,
                float* gate,
                float* up,
                std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    gate[i] = std::min(gate[i], clamp.gate_max);
    up[i] = std::clamp(up[i], -clamp.up_limit, clamp.up_limit);
    up[i] += clamp.up_offset;
    if (clamp.up_bend > 0.0f) up[i] = bent(up[i], clamp.up_bend);
    // What silu will be multiplied by makes up for its unbent x.
    if (clamp.gate_bend > 0.0f && gate[i] != 0.0f) {
      up[i] *= bent(gate[i], clamp.gate_bend) / gate[i];
    }
  }
}

struct Layer {
  Weights gate;  // null: no gate
  Weights up;
  Weights down;
  GateFunction function;
  GateClamp clamp;

  // x [num_rows, D] -> answer [num_rows, D], for one expert.
  void run(int expert, const float* x, int num_rows, float* answer) const {
    const PanelMatrix& matrix = up->matrix(expert);
    const int size = matrix.num_columns;
    const int width = matrix.num_rows;
    const std::size_t floats = static_cast<std::size_t>(num_rows) * width;
    float* hidden = scratch<HiddenTag>(floats);
    float* other = gate ? scratch<UpTag>(floats) : nullptr;
    const Weights& first = gate ? gate : up;
    Product products[2] = {
        {&first->matrix(expert), first->bias(expert), hidden},
        {&matrix, up->bias(expert), other}};
    project(x, num_rows, size, {products, gate ? 2u : 1u});
    if (clamp.active()) clamp_rows(clamp, hidden, other, floats);
    isa_kernels().gate(hidden, other, static_cast<int>(floats), function);
    const Product product{&down->matrix(expert), down->bias(expert), answer};
    project(hidden, num_rows, width, {&product, 1});
  }
};

void run_layer(const Layer& layer,
               const mx::array& x,
               const mx::array& indices,
               const mx::array& scores,
               float* y) {
  Rows rows(x);
  Rows weights(scores);
  const int size = x.shape(-1);
  const int num_chosen = indices.shape(-1);
  const auto* chosen = indices.data<std::uint32_t>();
  std::fill(y, y + x.size(), 0.0f);
  auto choices =
      choices_by_expert(chosen, indices.size(), layer.up->num_experts());
  for (std::size_t expert = 0; expert < choices.size(); ++expert) {
    const auto& mine = choices[expert];
    if (mine.empty()) continue;
    const std::size_t floats = mine.size() * size;
    float* gathered = scratch<GatheredTag>(floats);
    float* answer = scratch<AnswerTag>(floats);
    for (std::size_t i = 0; i < mine.size(); ++i) {
      const float* row =
          rows.data() + static_cast<std::size_t>(mine[i] / num_chosen) * size;
      std::copy(row, row + size, gathered + i * size);
    }
    layer.run(static_cast<int>(expert),
              gathered,
              static_cast<int>(mine.size()),
              answer);
    for (std::size_t i = 0; i < mine.size(); ++i) {
      isa_kernels().add_scaled(
          answer + i * size,
          size,
          weights.data()[mine[i]],
          y + static_cast<std::size_t>(mine[i] / num_chosen) * size);
    }
  }
}

bool suits(const Linear* linear) {
  return linear == nullptr || !linear->low_rank;
}

}  // namespace

mx::array expert_mlp(const mx::array& x,
                     const Experts& experts,
                     const mx::array& indices,
                     const mx::array& scores) {
  if (x.dtype() != mx::float32 || !suits(experts.gate) || !suits(experts.up) ||
      !suits(experts.down)) {
    return reference_table().expert_mlp(x, experts, indices, scores);
  }
  Layer layer{experts.gate != nullptr ? packed(*experts.gate) : nullptr,
              packed(*experts.up),
              packed(*experts.down),
              gate_function(experts.activation),
              experts.clamp};
  return host_op(
      "cpu_expert_mlp",
      {{x.shape(), mx::float32}},
      {x,
       mx::contiguous(mx::astype(indices, mx::uint32)),
       mx::astype(scores, mx::float32)},
      [layer = std::move(layer)](auto in, auto out) {
        run_layer(layer, in[0], in[1], in[2], out[0].template data<float>());
      })[0];
}

}  // namespace mlxlm::kernels::cpu
