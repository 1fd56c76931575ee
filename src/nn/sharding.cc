#include "nn/sharding.h"

#include <memory>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "nn/linear.h"
#include "ranks/ranks.h"

namespace mlxlm::nn {
namespace {

// Inputs that can't be torn apart: a group, a packed word, a rotated block.
int input_unit(const kernels::Linear& linear) {
  int unit = linear.quantized() ? linear.group_size : 1;
  if (linear.rotation) unit = std::max(unit, linear.rotation->block);
  return unit;
}

int num_inputs(const kernels::Linear& linear) {
  return linear.quantized() ? linear.scales->shape(-1) * linear.group_size
                            : linear.weight.shape(-1);
}

}  // namespace

int share_of(int number,
             int unit,
             const std::string& what,
             const Share& share) {
  if (number % (share.count * unit) == 0) return number / share.count;
  std::string text = std::to_string(number) + " " + what;
  if (unit > 1) text += " in groups of " + std::to_string(unit);
  throw Error(ErrorKind::unsupported,
              "the model can't run on " + std::to_string(share.count) +
                  " ranks: " + text + " can't be split evenly");
}

mx::array part_of(const mx::array& a, int axis, const Share& share) {
  const int index = static_cast<int>(a.ndim()) + axis;
  const int size = a.shape(index) / share.count;
  mx::Shape start(a.ndim(), 0);
  mx::Shape stop = a.shape();
  start[index] = share.index * size;
  stop[index] = start[index] + size;
  return mx::contiguous(mx::slice(a, start, stop));
}

kernels::Linear part_of_outputs(const kernels::Linear& linear,
                                const Share& share) {
  const int rows = linear.weight.shape(-2) / share.count;
  const std::vector<int> sizes(share.count, rows);
  auto part = split_rows(linear, sizes)[share.index];
  auto own = [](mx::array& a) { a = mx::contiguous(a); };
  own(part.weight);
  for (auto* each : {&part.scales, &part.zeros, &part.bias}) {
    if (*each) own(**each);
  }
  return part;
}

kernels::Linear part_of_inputs(const kernels::Linear& linear,
                               const std::string& what,
                               const Share& share) {
  const int inputs =
      share_of(num_inputs(linear), input_unit(linear), what, share);
  if (linear.quantized() && inputs * linear.bits % 32 != 0) {
    share_of(num_inputs(linear), 32, what, share);
  }
  auto part = linear;
  part.weight = part_of(linear.weight, -1, share);
  for (auto* each : {&part.scales, &part.zeros}) {
    if (*each) *each = part_of(**each, -1, share);
  }
  if (share.index > 0) part.bias.reset();
  if (linear.low_rank) {
    auto low_rank = *linear.low_rank;
    low_rank.a = part_of(low_rank.a, -2, share);
    part.low_rank =
        std::make_shared<const kernels::LowRank>(std::move(low_rank));
  }
  if (linear.rotation) {
    auto rotation = *linear.rotation;
    rotation.signs = part_of(rotation.signs, -1, share);
    part.rotation =
        std::make_shared<const kernels::InputRotation>(std::move(rotation));
  }
  return part;
}

mx::array after(const mx::array& x, const mx::array& first) {
  return Ranks::all().several() ? mx::depends({x}, {first})[0] : x;
}

mx::array sum_residual(const mx::array& y, const Residual& residual) {
  auto sum = Ranks::all().sum(y);
  if (residual.post_norm != nullptr) {
    sum = kernels::table().norm(sum, *residual.post_norm);
  }
  if (residual.scale != 1.0f) {
    sum = mx::multiply(sum, mx::array(residual.scale, sum.dtype()));
  }
  return residual.stream != nullptr ? mx::add(*residual.stream, sum) : sum;
}

mx::array linear_residual(const mx::array& x,
                          const kernels::Linear& linear,
                          const Residual& residual,
                          bool partial) {
  const auto& table = kernels::table();
  if (!partial) {
    return table.linear_residual(
        x, linear, residual.post_norm, residual.stream, residual.scale);
  }
  if (residual.post_norm != nullptr) {
    return sum_residual(
        table.linear_residual(x, linear, nullptr, nullptr, 1.0f), residual);
  }
  // Rank 0 brings the stream into the sum.
  const auto& ranks = Ranks::all();
  return ranks.sum(
      table.linear_residual(x,
                            linear,
                            nullptr,
                            ranks.rank() == 0 ? residual.stream : nullptr,
                            residual.scale));
}

}  // namespace mlxlm::nn
