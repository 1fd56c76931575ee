#include "kernels/cuda/step_program.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include <mlx/mlx.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul.h"

namespace mlxlm::kernels::cuda {
namespace {

bool is_rms(const Norm* norm) {
  return norm != nullptr && norm->kind == NormKind::rms && norm->weight;
}

// Of the activations.
mx::Dtype dtype_of(const Linear& linear) {
  return linear.quantized() ? linear.scales->dtype() : linear.weight.dtype();
}

// Of the format that all of a decoder's matrices share.
bool same_format(const Linear& linear, const Linear& first) {
  if (linear.quantized() != first.quantized() || linear.weight.ndim() != 2 ||
      !linear.plain() || dtype_of(linear) != dtype_of(first)) {
    return false;
  }
  const StepFormat format(linear);
  if (format.dense()) return columns_of(linear) % format.group_size == 0;
  return linear.mode == "affine" && linear.zeros && linear.bits == first.bits &&
         linear.group_size == first.group_size &&
         columns_of(linear) % (8 * format.group_size) == 0;
}

std::vector<const Linear*> matrices_of(const StepLayer& layer) {
  return {layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down};
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
  const bool format =
      (!first.quantized() || first.bits == 4 || first.bits == 8) &&
      (dtype_of(first) == mx::bfloat16 || dtype_of(first) == mx::float16) &&
      same_format(first, first) && same_format(*spec.head, first);
  if (!format || spec.layers.empty() || group > 8 || group < 1 ||
      group * spec.num_kv_heads != spec.num_heads ||
      (spec.head_size != 64 && spec.head_size != 128) ||
      spec.rope.dimensions <= 0 || spec.rope.dimensions > spec.head_size ||
      spec.rope.dimensions % 2 != 0 || spec.rope.input_scale != 1.0f ||
      !is_rms(spec.norm) || spec.head->bias) {
    return false;
  }
  return std::ranges::all_of(spec.layers, [&](const StepLayer& layer) {
    const auto fits = [&](const Linear* each) {
      return same_format(*each, first);
    };
    const auto is_head_norm = [&](const Norm* norm) {
      return norm == nullptr || (is_rms(norm) &&
                                 norm->weight->size() ==
                                     static_cast<std::size_t>(spec.head_size) &&
                                 norm->eps == layer.attention_norm->eps);
    };
    return std::ranges::all_of(matrices_of(layer), fits) &&
           is_rms(layer.attention_norm) && is_rms(layer.mlp_norm) &&
           layer.gate->bias.has_value() == layer.up->bias.has_value() &&
           is_head_norm(layer.q_norm) && is_head_norm(layer.k_norm);
  });
}

StepProgram::StepProgram(const StepSpec& spec, int num_blocks)
    : spec_(spec), num_blocks_(num_blocks), dtype_(dtype_of(*spec.embedding)) {
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
  record.num_rows = linear.weight.shape(0);
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
          dtype_);
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
  record.num_matrices = static_cast<int>(matrices.size());
  largest_size_ = std::max(largest_size_, record.size);
  if (norm != nullptr) record.eps = norm->eps;
  operations_.push_back(record);
  int at = 0;
  int tiles = 0;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    add_matrix(index, static_cast<int>(i), *matrices[i], at);
    at += matrices[i]->weight.shape(0);
    tiles += (matrices[i]->weight.shape(0) + 15) / 16;
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
  add({.kind = kGated, .input = kInputState, .output = kOutputHidden},
      layer.mlp_norm,
      {layer.gate, layer.up});
  add({.kind = kLinear,
       .input = kInputHidden,
       .output = kOutputState,
       .scale = spec_.residual_scale},
      nullptr,
      {layer.down});
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

}  // namespace mlxlm::kernels::cuda
