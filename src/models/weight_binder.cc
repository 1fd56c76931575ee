#include "models/weight_binder.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "load/quantization.h"
#include "nn/linear.h"

namespace mlxlm {

WeightBinder::WeightBinder(Checkpoint& checkpoint,
                           mx::Dtype activation_dtype,
                           const Adapter* adapter)
    : checkpoint_(checkpoint),
      activation_dtype_(activation_dtype),
      adapter_(adapter) {}

mx::array WeightBinder::take(const std::string& name,
                             const mx::Shape& shape,
                             Content content) {
  const bool floating = content == Content::values;
  const auto stand_in = mx::zeros(shape, floating ? mx::float32 : mx::uint32);
  auto found = checkpoint_.weights.find(name);
  if (found == checkpoint_.weights.end()) {
    faults_.add(name, "is missing; the model needs " + to_text(shape));
    return stand_in;
  }
  const mx::array& value = found->second;
  taken_names_.insert(name);
  const bool right_dtype =
      content == Content::indices  ? mx::issubdtype(value.dtype(), mx::integer)
      : content == Content::packed ? value.dtype() == mx::uint32
      : content == Content::scales
          ? value.dtype() == mx::uint8
          : mx::issubdtype(value.dtype(), mx::floating);
  if (value.shape() != shape || !right_dtype) {
    const char* wanted = content == Content::indices  ? "integers "
                         : content == Content::packed ? "uint32 "
                         : content == Content::scales ? "uint8 "
                                                      : "floating point ";
    faults_.add(name,
                "is " + to_text(value) + ", but the model needs " + wanted +
                    to_text(shape));
    return stand_in;
  }
  taken_.push_back({name, value});
  return value;
}

mx::array WeightBinder::derive(mx::array value) {
  derived_.push_back(value);
  return value;
}

mx::array WeightBinder::tensor(const std::string& name,
                               const mx::Shape& shape) {
  return derive(
      mx::astype(take(name, shape, Content::values), activation_dtype_));
}

mx::array WeightBinder::indices(const std::string& name,
                                const mx::Shape& shape,
                                int end) {
  auto value = mx::astype(take(name, shape, Content::indices), mx::int64);
  auto inside = mx::logical_and(mx::greater_equal(value, mx::array(0)),
                                mx::less(value, mx::array(end)));
  if (!mx::all(inside).item<bool>()) {
    faults_.add(name, "must hold numbers from 0 to " + std::to_string(end - 1));
    return mx::zeros(shape, mx::uint32);
  }
  return derive(mx::astype(value, mx::uint32));
}

mx::array WeightBinder::flat_tensor(const std::string& name, int size) {
  mx::Shape shape{size};
  auto found = checkpoint_.weights.find(name);
  if (found != checkpoint_.weights.end() &&
      found->second.size() == static_cast<std::size_t>(size)) {
    shape = found->second.shape();
  }
  return derive(mx::reshape(tensor(name, shape), {size}));
}

void WeightBinder::quantize(kernels::Linear& linear,
                            const std::string& path,
                            const Quantization& quantization,
                            mx::Shape shape) {
  const auto [group_size, bits, mode] = quantization;
  const int num_inputs = shape.back();
  const std::int64_t packed_bits = std::int64_t{num_inputs} * bits;
  if (group_size <= 0 || bits <= 0 || num_inputs % group_size != 0 ||
      packed_bits % 32 != 0) {
    faults_.add(path,
                "has " + std::to_string(num_inputs) +
                    " inputs, which can't be quantized in groups of " +
                    std::to_string(group_size) + " with " +
                    std::to_string(bits) + " bits");
    return;
  }
  linear.group_size = group_size;
  linear.bits = bits;
  linear.mode = mode;
  shape.back() = static_cast<int>(packed_bits / 32);
  linear.weight = take(path + ".weight", shape, Content::packed);
  shape.back() = num_inputs / group_size;
  if (mode == "affine") {
    linear.scales = take(path + ".scales", shape, Content::values);
    linear.zeros = take(path + ".biases", shape, Content::values);
    return;
  }
  linear.scales = take(path + ".scales", shape, Content::scales);
  const auto global = path + ".global_scale";
  if (shape.size() == 3 && checkpoint_.weights.contains(global)) {
    linear.global_scale = take(global, {shape[0]}, Content::values);
  }
}

kernels::Linear WeightBinder::plain_matrix(const std::string& path,
                                           mx::Shape shape) {
  kernels::Linear linear{.weight = mx::array(0.0f)};
  auto quantization = checkpoint_.quantized.find(path);
  if (quantization == checkpoint_.quantized.end()) {
    linear.weight = take(path + ".weight", shape, Content::values);
    return linear;
  }
  auto scales = checkpoint_.weights.find(path + ".scales");
  const int num_groups =
      scales == checkpoint_.weights.end() || scales->second.ndim() == 0
          ? 0
          : scales->second.shape(-1);
  const int num_columns = shape.back();
  quantize(linear,
           path,
           fit_to_columns(quantization->second, num_groups, num_columns),
           std::move(shape));
  return linear;
}

kernels::Linear WeightBinder::matrix(const std::string& path,
                                     AdapterTarget target,
                                     bool bias) {
  mx::Shape shape{target.rows, target.columns};
  if (target.experts > 0) shape.insert(shape.begin(), target.experts);
  auto linear = plain_matrix(path, shape);
  if (bias) {
    shape.pop_back();
    linear.bias = tensor(path + ".bias", shape);
  }
  if (target.experts == 0) rotate(linear, path, target.columns);
  adapt(linear, path, target);
  return linear;
}

void WeightBinder::rotate(kernels::Linear& linear,
                          const std::string& path,
                          int num_inputs) {
  auto found = checkpoint_.rotated.find(path);
  if (found == checkpoint_.rotated.end()) return;
  const auto name = path + ".signs";
  const int block = found->second;
  auto signs = tensor(name, {num_inputs});
  if (!checkpoint_.weights.contains(name)) return;
  if (!linear.quantized()) {
    faults_.add(path, "is to be rotated, but isn't quantized");
    return;
  }
  if (num_inputs % block != 0) {
    faults_.add(path,
                "has " + std::to_string(num_inputs) +
                    " inputs, which can't be rotated in blocks of " +
                    std::to_string(block));
    return;
  }
  const mx::array one(1.0f, signs.dtype());
  if (!mx::all(mx::equal(mx::abs(signs), one)).item<bool>()) {
    faults_.add(name, "must hold nothing but -1 and 1");
    return;
  }
  linear.rotation = std::make_shared<const kernels::InputRotation>(
      kernels::InputRotation{block, std::move(signs)});
}

void WeightBinder::adapt(kernels::Linear& linear,
                         const std::string& path,
                         const AdapterTarget& target) {
  if (adapter_ == nullptr) return;
  targets_.emplace(path, target);
  auto found = adapter_->modules.find(path);
  if (found == adapter_->modules.end()) return;
  const auto& module = found->second;
  // finish() reports what has another shape.
  auto shapes = adapter_shapes(target, adapter_->rank);
  if (!module.a || !module.b || module.a->shape() != shapes.a ||
      module.b->shape() != shapes.b) {
    return;
  }
  auto a = *module.a;
  auto b = *module.b;
  if (target.kind == AdapterTarget::Kind::embedding) {
    std::swap(a, b);
  }
  if (target.kind != AdapterTarget::Kind::linear) {
    a = mx::swapaxes(a, -1, -2);
    b = mx::swapaxes(b, -1, -2);
  }
  kernels::LowRank low_rank{derive(mx::astype(a, activation_dtype_)),
                            derive(mx::astype(b, activation_dtype_)),
                            adapter_->scale};
  if (module.magnitude && module.magnitude->shape() == shapes.magnitude) {
    low_rank.row_scale =
        derive(nn::dora_row_scale(linear, low_rank, *module.magnitude));
  }
  linear.low_rank = std::make_shared<const kernels::LowRank>(low_rank);
  taken_.push_back({path + ".lora_a", *module.a});
  taken_.push_back({path + ".lora_b", *module.b});
  if (module.magnitude) taken_.push_back({path + ".m", *module.magnitude});
}

kernels::Linear WeightBinder::linear(const std::string& path,
                                     int num_outputs,
                                     int num_inputs,
                                     bool bias) {
  return matrix(
      path, {AdapterTarget::Kind::linear, num_outputs, num_inputs}, bias);
}

kernels::Linear WeightBinder::embedding(const std::string& path,
                                        int num_rows,
                                        int width) {
  return matrix(path, {AdapterTarget::Kind::embedding, num_rows, width});
}

kernels::Linear WeightBinder::expert_stack(const std::string& path,
                                           int num_experts,
                                           int num_outputs,
                                           int num_inputs,
                                           bool bias) {
  return matrix(
      path,
      {AdapterTarget::Kind::experts, num_outputs, num_inputs, num_experts},
      bias);
}

kernels::Linear WeightBinder::matrix_stack(const std::string& path,
                                           int num_matrices,
                                           int num_outputs,
                                           int num_inputs) {
  return plain_matrix(path, {num_matrices, num_outputs, num_inputs});
}

kernels::Norm WeightBinder::norm(const std::string& path,
                                 int size,
                                 const NormSpec& spec) {
  kernels::Norm norm{.kind = spec.kind, .eps = spec.eps};
  if (spec.weight) norm.weight = norm_weight(path, {size}, spec);
  if (spec.bias) norm.bias = tensor(path + ".bias", {size});
  return norm;
}

kernels::Norm WeightBinder::head_norm(const std::string& path,
                                      int num_heads,
                                      int size,
                                      const NormSpec& spec) {
  kernels::Norm norm{.kind = spec.kind, .eps = spec.eps};
  if (!checkpoint_.weights.contains(path + ".norms.0.weight")) {
    norm.weight = norm_weight(path, {num_heads, size}, spec);
    return norm;
  }
  std::vector<mx::array> rows;
  for (int h = 0; h < num_heads; ++h) {
    const auto head = path + ".norms." + std::to_string(h);
    rows.push_back(norm_weight(head, {size}, spec));
  }
  norm.weight = derive(mx::stack(rows));
  return norm;
}

mx::array WeightBinder::norm_weight(const std::string& path,
                                    const mx::Shape& shape,
                                    const NormSpec& spec) {
  const bool is_tensor = checkpoint_.weights.contains(path);
  auto weight = tensor(is_tensor ? path : path + ".weight", shape);
  if (spec.weight_offset == 0) return weight;
  return derive(
      mx::add(weight, mx::array(spec.weight_offset, activation_dtype_)));
}

kernels::CausalConv WeightBinder::causal_conv(const std::string& path,
                                              int num_channels,
                                              int num_taps,
                                              bool bias) {
  const auto name = path + ".weight";
  mx::Shape shape{num_channels, num_taps, 1};
  auto found = checkpoint_.weights.find(name);
  if (found != checkpoint_.weights.end() && found->second.ndim() == 3 &&
      found->second.shape(1) == 1) {
    std::swap(shape[1], shape[2]);
  }
  kernels::CausalConv conv{
      derive(mx::reshape(tensor(name, shape), {num_channels, num_taps}))};
  if (bias) conv.bias = tensor(path + ".bias", {num_channels});
  return conv;
}

std::vector<kernels::Linear> WeightBinder::split_rows(
    const kernels::Linear& whole,
    std::span<const int> row_counts,
    int num_groups) {
  auto parts = num_groups == 1
                   ? nn::split_rows(whole, row_counts)
                   : nn::split_row_groups(whole, num_groups, row_counts);
  auto note = [&](const mx::array& tensor, auto part_of) {
    SplitTensor split{.whole = tensor.id(), .num_groups = num_groups};
    for (const auto& part : parts) split.parts.push_back(part_of(part));
    splits_.push_back(std::move(split));
  };
  using kernels::Linear;
  note(whole.weight, [](const Linear& part) { return part.weight; });
  if (whole.scales) {
    note(*whole.scales, [](const Linear& part) { return *part.scales; });
  }
  if (whole.zeros) {
    note(*whole.zeros, [](const Linear& part) { return *part.zeros; });
  }
  return parts;
}

void WeightBinder::finish(bool strict, int num_layers) {
  for (const auto& [name, value] : checkpoint_.weights) {
    if (strict && !taken_names_.contains(name)) {
      faults_.add(name, to_text(value.shape()) + " is unknown to the model");
    }
  }
  faults_.throw_if_any(checkpoint_.source +
                       ": the weights don't fit the configuration");
  if (adapter_ != nullptr) check_adapter(*adapter_, targets_, num_layers);
}

std::vector<Parameter> WeightBinder::parameters() const {
  auto sorted = taken_;
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.name < b.name;
  });
  return sorted;
}

}  // namespace mlxlm
