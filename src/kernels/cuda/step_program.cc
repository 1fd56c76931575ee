#include "kernels/cuda/step_program.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>

#include <mlx/mlx.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul.h"

namespace mlxlm::kernels::cuda {
namespace {

// As in step_experts.cuh and step_input.cuh.
constexpr int kMostExperts = 256;
constexpr int kMostChosen = 32;

bool is_rms(const Norm* norm) {
  return norm != nullptr && norm->kind == NormKind::rms && norm->weight;
}

// Of scales or dense weights.
mx::Dtype dtype_of(const Linear& linear) {
  return linear.quantized() ? linear.scales->dtype() : linear.weight.dtype();
}

// Of the activations.
mx::Dtype dtype_of(const StepSpec& spec) {
  return StepFormat(*spec.embedding).floats ? spec.norm->weight->dtype()
                                            : dtype_of(*spec.embedding);
}

// Of the format that all of a decoder's matrices share. `columns`: of a
// product.
bool same_format(const Linear& linear,
                 const Linear& first,
                 int columns,
                 std::size_t dimensions = 2) {
  const StepFormat format(linear);
  if (format != StepFormat(first) || !linear.plain() || linear.global_scale ||
      linear.weight.ndim() != dimensions ||
      dtype_of(linear) != dtype_of(first)) {
    return false;
  }
  // Scales are copied 16 bytes at a time.
  const int unit = format.dense() ? 1 : 16 / format.scale_bytes();
  return (format.dense() || format.floats || linear.zeros) &&
         columns % (unit * format.group_size) == 0;
}

bool suits_router(const Linear& router, int width) {
  return router.weight.shape(0) <= kMostExperts && router.plain() &&
         !router.bias && columns_of(router) == width &&
         (!router.quantized() || router.mode != "affine" || router.zeros);
}

// heads_size: floats that attention reads, where logits have room.
bool suits_experts(const StepLayer& layer,
                   const Linear& first,
                   int heads_size) {
  const StepExperts& experts = *layer.experts;
  const int width = columns_of(*layer.gate);
  const int expert_size = columns_of(*layer.down);
  const int num_experts = experts.router->weight.shape(0);
  // Scales are copied 8 bytes at a time.
  const StepFormat format(first);
  const int unit =
      (format.dense() ? 1 : 8 / format.scale_bytes()) * format.group_size;
  return suits_router(*experts.router, width) && num_experts <= heads_size &&
         experts.num_chosen <= std::min(num_experts, kMostChosen) &&
         same_format(*layer.gate, first, width, 3) &&
         same_format(*layer.up, first, width, 3) &&
         same_format(*layer.down, first, experts.num_chosen * expert_size, 3) &&
         !layer.gate->bias && !layer.up->bias && !layer.down->bias &&
         width % 16 == 0 && expert_size % unit == 0;
}

// How many outputs a matrix has in an operation: gated products of experts have
// those of all chosen ones.
int rows_of(const OperationRecord& record, const Linear& linear) {
  if (record.num_chosen == 0) return linear.weight.shape(0);
  const int rows = linear.weight.shape(1);
  return record.kind == kGated ? record.num_chosen * rows : rows;
}

// Where arrays lie on the GPU, as a kernel sees it. They are evaluated first.
std::vector<std::uint64_t> addresses(const std::vector<mx::array>& arrays) {
  constexpr std::size_t kAtATime = 64;
  std::vector<std::uint64_t> result;
  mx::eval(arrays);
  for (std::size_t begin = 0; begin < arrays.size(); begin += kAtATime) {
    Launch call{.name = "addresses",
                .header = "",
                .output_names = {"y"},
                .output_shapes = {{static_cast<int>(kAtATime)}},
                .output_dtypes = {mx::uint64},
                .copy_strided_inputs = false};
    for (std::size_t i = 0; i < kAtATime; ++i) {
      // Of one type and always as many, so that one kernel does for all.
      const auto& array = arrays[std::min(begin + i, arrays.size() - 1)];
      call.inputs.emplace_back("a" + std::to_string(i),
                               mx::view(array, mx::uint16));
    }
    call.body = [] {
      std::string text;
      for (std::size_t i = 0; i < kAtATime; ++i) {
        const auto n = std::to_string(i);
        text += "  y[" + n + "] = reinterpret_cast<unsigned long long>(a" + n +
                ");\n";
      }
      return text;
    };
    auto made = launch(call)[0];
    made.eval();
    const auto* data = made.data<std::uint64_t>();
    const std::size_t count = std::min(kAtATime, arrays.size() - begin);
    result.insert(result.end(), data, data + count);
  }
  return result;
}

}  // namespace

bool suits_step(const StepSpec& spec) {
  const Linear& first = *spec.embedding;
  const int group = spec.num_heads / spec.num_kv_heads;
  const auto fits = [&](const Linear* each) {
    return same_format(*each, first, columns_of(*each));
  };
  if (!is_rms(spec.norm)) return false;
  const auto dtype = dtype_of(spec);
  const bool format = (!first.quantized() || first.bits == 4 ||
                       (first.bits == 8 && first.mode == "affine")) &&
                      (dtype == mx::bfloat16 || dtype == mx::float16) &&
                      fits(spec.embedding) && fits(spec.head);
  if (!format || spec.layers.empty() || group > 8 || group < 1 ||
      group * spec.num_kv_heads != spec.num_heads ||
      (spec.head_size != 64 && spec.head_size != 128) ||
      spec.rope.dimensions <= 0 || spec.rope.dimensions > spec.head_size ||
      spec.rope.dimensions % 2 != 0 || spec.rope.input_scale != 1.0f ||
      spec.head->bias) {
    return false;
  }
  return std::ranges::all_of(spec.layers, [&](const StepLayer& layer) {
    const auto is_head_norm = [&](const Norm* norm) {
      return norm == nullptr || (is_rms(norm) &&
                                 norm->weight->size() ==
                                     static_cast<std::size_t>(spec.head_size) &&
                                 norm->eps == layer.attention_norm->eps);
    };
    const int heads_size =
        (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_size;
    const bool mlp_fits =
        layer.experts
            ? suits_experts(layer, first, heads_size)
            : fits(layer.gate) && fits(layer.up) && fits(layer.down) &&
                  layer.gate->bias.has_value() == layer.up->bias.has_value();
    return mlp_fits && fits(layer.q) && fits(layer.k) && fits(layer.v) &&
           fits(layer.o) && is_rms(layer.attention_norm) &&
           is_rms(layer.mlp_norm) && is_head_norm(layer.q_norm) &&
           is_head_norm(layer.k_norm);
  });
}

StepProgram::StepProgram(const StepSpec& spec, int num_blocks)
    : spec_(spec), num_blocks_(num_blocks), dtype_(dtype_of(spec)) {
  add({.kind = kEmbed, .scale = spec_.embedding_scale},
      nullptr,
      {spec_.embedding});
  for (std::size_t i = 0; i < spec_.layers.size(); ++i) {
    add_layer(spec_.layers[i], static_cast<int>(i));
  }
  add({.kind = kLinear, .input = kInputState, .output = kOutputLogits},
      spec_.norm,
      {spec_.head});
  place_pointers();
}

void StepProgram::point(std::size_t operation,
                        std::size_t offset,
                        const mx::array& array,
                        mx::Dtype dtype) {
  arrays_.push_back(array.dtype() == dtype ? array : mx::astype(array, dtype));
  places_.push_back({operation, offset});
}

void StepProgram::add_matrix(std::size_t operation,
                             int i,
                             const Linear& linear,
                             int at) {
  auto& record = operations_[operation].matrices[i];
  record.num_rows = rows_of(operations_[operation], linear);
  record.first_output = at;
  const std::size_t base = offsetof(OperationRecord, matrices) +
                           static_cast<std::size_t>(i) * sizeof(MatrixRecord);
  point(operation,
        base + offsetof(MatrixRecord, words),
        linear.weight,
        linear.weight.dtype());
  if (linear.quantized()) {
    point(operation,
          base + offsetof(MatrixRecord, scales),
          *linear.scales,
          linear.scales->dtype());
  }
  if (linear.zeros) {
    point(
        operation, base + offsetof(MatrixRecord, zeros), *linear.zeros, dtype_);
  }
  if (linear.bias) {
    point(operation, base + offsetof(MatrixRecord, bias), *linear.bias, dtype_);
  }
}

std::size_t StepProgram::add(OperationRecord record,
                             const Norm* norm,
                             const std::vector<const Linear*>& matrices) {
  const std::size_t index = operations_.size();
  record.size = columns_of(*matrices[0]);
  if (record.input == kInputHidden && record.num_chosen > 0) {
    record.size *= record.num_chosen;
  }
  record.num_matrices = static_cast<int>(matrices.size());
  largest_size_ = std::max(largest_size_, record.size);
  if (norm != nullptr) record.eps = norm->eps;
  operations_.push_back(record);
  int at = 0;
  int tiles = 0;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    add_matrix(index, static_cast<int>(i), *matrices[i], at);
    const int rows = rows_of(record, *matrices[i]);
    at += rows;
    tiles += (rows + 15) / 16;
    if (record.output == kOutputHidden) {
      hidden_size_ = std::max(hidden_size_, rows);
    }
  }
  if (record.kind == kGated) tiles /= 2;
  operations_[index].num_tiles = tiles;
  operations_[index].first_block = num_tiles_ % num_blocks_;
  if (record.kind != kEmbed) num_tiles_ += tiles;
  if (norm != nullptr) {
    point(index, offsetof(OperationRecord, norm), *norm->weight, dtype_);
  }
  return index;
}

void StepProgram::add_attention(const StepLayer& layer, int index) {
  const std::size_t at = operations_.size();
  operations_.push_back({.kind = kAttention,
                         .layer = index,
                         .eps = layer.attention_norm->eps,
                         .scale = layer.attention_scale,
                         .softcap = layer.softcap,
                         .window = layer.window_tokens});
  if (layer.q_norm != nullptr) {
    point(at, offsetof(OperationRecord, q_norm), *layer.q_norm->weight, dtype_);
  }
  if (layer.k_norm != nullptr) {
    point(at, offsetof(OperationRecord, k_norm), *layer.k_norm->weight, dtype_);
  }
}

void StepProgram::add_layer(const StepLayer& layer, int index) {
  add({.kind = kLinear, .input = kInputState, .output = kOutputHeads},
      layer.attention_norm,
      {layer.q, layer.k, layer.v});
  add_attention(layer, index);
  const auto out = add({.kind = kLinear,
                        .input = kInputAttention,
                        .output = kOutputState,
                        .scale = spec_.residual_scale,
                        .window = layer.window_tokens},
                       nullptr,
                       {layer.o});
  if (layer.sinks != nullptr) {
    point(out, offsetof(OperationRecord, sinks), *layer.sinks, mx::float32);
  }
  OperationRecord mlp;
  if (layer.experts) mlp = add_router(layer);
  mlp.kind = kGated;
  mlp.input = layer.experts ? kInputKept : kInputState;
  mlp.output = kOutputHidden;
  add(mlp, layer.mlp_norm, {layer.gate, layer.up});
  mlp.kind = kLinear;
  mlp.input = kInputHidden;
  mlp.output = kOutputState;
  mlp.scale = spec_.residual_scale;
  add(mlp, nullptr, {layer.down});
}

// What the experts' own operations begin with.
OperationRecord StepProgram::add_router(const StepLayer& layer) {
  has_experts_ = true;
  const StepExperts& experts = *layer.experts;
  const OperationRecord chosen{.num_experts = experts.router->weight.shape(0),
                               .num_chosen = experts.num_chosen,
                               .expert_size = columns_of(*layer.down)};
  OperationRecord route = chosen;
  route.kind = kRoute;
  route.input = kInputState;
  route.size = columns_of(*experts.router);
  route.eps = layer.mlp_norm->eps;
  route.scale = experts.scale;
  route.normalizes = experts.normalize ? 1 : 0;
  const std::size_t at = operations_.size();
  operations_.push_back(route);
  point(at, offsetof(OperationRecord, norm), *layer.mlp_norm->weight, dtype_);
  point(at,
        offsetof(OperationRecord, matrices) + offsetof(MatrixRecord, words),
        dequantized_weight(*experts.router),
        mx::float32);
  return chosen;
}

void StepProgram::place_pointers() {
  const auto found = addresses(arrays_);
  for (std::size_t i = 0; i < found.size(); ++i) {
    // Copies are of 16 bytes.
    usable_ =
        usable_ && found[i] % 16 == 0 && arrays_[i].flags().row_contiguous;
    std::memcpy(reinterpret_cast<char*>(&operations_[places_[i].operation]) +
                    places_[i].offset,
                &found[i],
                sizeof found[i]);
  }
}

mx::array frequencies_of(const Rope& rope) {
  std::vector<float> values(rope.dimensions / 2);
  if (rope.freqs) {
    auto freqs = mx::astype(*rope.freqs, mx::float32);
    mx::eval(freqs);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = rope.scale / freqs.data<float>()[i];
    }
  } else {
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(
          rope.scale *
          std::pow(static_cast<double>(rope.base),
                   -2.0 * static_cast<double>(i) / rope.dimensions));
    }
  }
  return mx::array(values.data(), {static_cast<int>(values.size())});
}

mx::array on_device(const mx::array& x) {
  auto copy = mx::add(x, mx::array(0, x.dtype()));
  mx::eval(copy);
  return copy;
}

mx::array array_of(const std::vector<OperationRecord>& operations) {
  constexpr int kWords = sizeof(OperationRecord) / sizeof(std::uint32_t);
  return on_device(
      mx::array(reinterpret_cast<const std::uint32_t*>(operations.data()),
                {static_cast<int>(operations.size()) * kWords},
                mx::uint32));
}

}  // namespace mlxlm::kernels::cuda
