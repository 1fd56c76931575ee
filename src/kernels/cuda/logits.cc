#include "kernels/cuda/logits.h"

#include <algorithm>

#include <mlx/mlx.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/sources.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cuda {
namespace {

constexpr int kThreads = 256;  // kLogitsThreads
constexpr int kMostRows = 65535;

bool suits(const mx::array& x) {
  return x.dtype() == mx::float32 && x.ndim() > 0 && x.shape(-1) > 0 &&
         x.size() > 0 && x.size() / x.shape(-1) <= kMostRows;
}

// A call whose blocks share out the rows of x.
Launch start(const char* name, const mx::array& x) {
  constexpr int kMostBlocks = 64;  // of a row
  const int size = x.shape(-1);
  return {.name = name,
          .header = k_logits,
          .inputs = {{"x", x}},
          .scalars = {{"size", size}},
          .blocks_x = std::clamp(size / (4 * kThreads), 1, kMostBlocks),
          .blocks_y = static_cast<int>(x.size() / size),
          .threads = kThreads};
}

}  // namespace

mx::array log_softmax(const mx::array& logits) {
  if (!suits(logits)) return reference_table().log_softmax(logits);
  auto sum = start("sum_exponentials", logits);
  sum.body = [] {
    return "  mlxlm::sum_exponentials(x, size, "
           "reinterpret_cast<float2*>(parts));"
           "\n";
  };
  sum.output_names = {"parts"};
  sum.output_shapes = {{sum.blocks_y, sum.blocks_x, 2}};
  sum.output_dtypes = {mx::float32};
  auto subtract = start("subtract_sum", logits);
  subtract.inputs.emplace_back("parts", launch(sum)[0]);
  subtract.body = [] {
    return "  mlxlm::subtract_sum(x, size, "
           "reinterpret_cast<const float2*>(parts), y);\n";
  };
  subtract.output_names = {"y"};
  subtract.output_shapes = {logits.shape()};
  subtract.output_dtypes = {mx::float32};
  return launch(subtract)[0];
}

mx::array argmax(const mx::array& x) {
  if (!suits(x)) return reference_table().argmax(x);
  auto find = start("find_largest", x);
  find.body = [] {
    return "  mlxlm::find_largest(x, size, values, indices);\n";
  };
  find.output_names = {"values", "indices"};
  find.output_shapes.assign(2, {find.blocks_y, find.blocks_x});
  find.output_dtypes = {mx::float32, mx::int32};
  const auto parts = launch(find);
  mx::Shape shape = x.shape();
  shape.pop_back();
  const Launch join{
      .name = "join_largest",
      .header = k_logits,
      .body =
          [] {
            return "  mlxlm::join_largest(values, indices, num_parts, y);\n";
          },
      .inputs = {{"values", parts[0]}, {"indices", parts[1]}},
      .output_names = {"y"},
      .output_shapes = {shape},
      .output_dtypes = {mx::uint32},
      .scalars = {{"num_parts", find.blocks_x}},
      .blocks_x = find.blocks_y,
      .threads = 32};
  return launch(join)[0];
}

}  // namespace mlxlm::kernels::cuda
