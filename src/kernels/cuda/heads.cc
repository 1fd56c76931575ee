#include "kernels/cuda/heads.h"

#include <algorithm>
#include <string>

#include <mlx/mlx.h>

#include "kernels/composite.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sources.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cuda {
namespace {

constexpr int kWarps = 4;  // kHeadWarps

int outputs_of(const Linear& linear) { return linear.weight.shape(-2); }

bool suits_norm(const Norm* norm, int head_size) {
  return norm == nullptr || (norm->kind == NormKind::rms && norm->weight &&
                             norm->weight->shape() == mx::Shape{head_size});
}

// Whether one call does all: heads of one size, one rope at most.
bool suits(const mx::array& x, std::span<const HeadProjection> projections) {
  if (x.shape(0) != 1 || x.shape(1) > 65535 ||
      (x.dtype() != mx::bfloat16 && x.dtype() != mx::float16)) {
    return false;
  }
  const int size =
      outputs_of(*projections[0].linear) / projections[0].num_heads;
  const Rope* rope = nullptr;
  for (const auto& each : projections) {
    if (each.rope != nullptr) rope = each.rope;
  }
  return size % 32 == 0 && size <= 256 &&
         (rope == nullptr ||
          (rope->dimensions % 2 == 0 && rope->dimensions <= size)) &&
         std::ranges::all_of(projections, [&](const HeadProjection& each) {
           return each.linear->weight.ndim() == 2 &&
                  outputs_of(*each.linear) == each.num_heads * size &&
                  suits_norm(each.norm, size) &&
                  (each.rope == nullptr || each.rope == rope);
         });
}

mx::array positions_of(const Positions& positions, int num_tokens) {
  std::vector<int> all;
  for (const TokenRun& run : positions.runs(num_tokens)) {
    for (int i = 0; i < run.num_tokens; ++i) all.push_back(run.offset + i);
  }
  return integers(all);
}

void add_projection(Launch& call,
                    const HeadProjection& projection,
                    const mx::array& x,
                    int head_size,
                    int i) {
  const auto n = std::to_string(i);
  call.inputs.emplace_back("x" + n, x);
  if (projection.norm != nullptr) {
    call.inputs.emplace_back("norm" + n,
                             mx::astype(*projection.norm->weight, x.dtype()));
  }
  call.output_names.push_back("y" + n);
  call.output_shapes.push_back(
      {1, projection.num_heads, x.shape(1), head_size});
  call.output_dtypes.push_back(x.dtype());
  call.scalars.emplace_back("heads" + n, projection.num_heads);
  call.scalars.emplace_back(
      "eps" + n, projection.norm != nullptr ? projection.norm->eps : 0.0f);
}

// Of a ProjectedHeads.
std::string text_of_projection(const HeadProjection& projection, int i) {
  const auto n = std::to_string(i);
  return "{x" + n + ", y" + n + ", " +
         (projection.norm != nullptr ? "norm" + n : "nullptr") + ", eps" + n +
         ", heads" + n + ", " +
         (projection.rope != nullptr ? "true" : "false") + "}, ";
}

void add_rope(Launch& call, const Rope* rope) {
  if (rope != nullptr && rope->freqs) {
    call.inputs.emplace_back("freqs", mx::astype(*rope->freqs, mx::float32));
  }
  call.scalars.insert(
      call.scalars.end(),
      {{"base", rope != nullptr ? rope->base : 1.0f},
       {"rope_scale", rope != nullptr ? rope->scale : 1.0f},
       {"input_scale", rope != nullptr ? rope->input_scale : 1.0f}});
  call.constants.emplace_back("ROTATED",
                              rope != nullptr ? rope->dimensions : 0);
  call.constants.emplace_back("TRADITIONAL",
                              rope != nullptr && rope->traditional);
}

}  // namespace

std::vector<mx::array> norm_heads(const mx::array& x,
                                  const Norm* norm,
                                  std::span<const HeadProjection> projections,
                                  const Positions& positions) {
  const Table& table = cuda_table();
  if (!suits(x, projections)) {
    return composite::norm_heads(table, x, norm, projections, positions);
  }
  std::vector<const Linear*> linears;
  const Rope* rope = nullptr;
  int num_heads = 0;
  for (const auto& each : projections) {
    linears.push_back(each.linear);
    num_heads += each.num_heads;
    if (each.rope != nullptr) rope = each.rope;
  }
  const auto made = table.norm_linear(x, norm, linears);
  const int size = outputs_of(*linears[0]) / projections[0].num_heads;
  const int count = static_cast<int>(projections.size());
  Launch call{.name = "norm_rope_heads",
              .header = k_heads,
              .inputs = {{"positions", positions_of(positions, x.shape(1))}},
              .constants = {{"T", x.dtype()}, {"D", size}, {"COUNT", count}},
              .blocks_x = (num_heads + kWarps - 1) / kWarps,
              .blocks_y = x.shape(1),
              .threads = kWarps * 32};
  for (int i = 0; i < count; ++i) {
    add_projection(call, projections[i], made[i], size, i);
    // The text depends on it.
    call.name += projections[i].rope != nullptr ? 'r' : 'n';
  }
  add_rope(call, rope);
  call.body = [&] {
    std::string list;
    for (int i = 0; i < count; ++i) {
      list += text_of_projection(projections[i], i);
    }
    return "  const ProjectedHeads<T> projections[COUNT] = {" + list +
           "};\n  norm_rope_heads<T, D, ROTATED, TRADITIONAL>(projections, {" +
           (rope != nullptr && rope->freqs ? "freqs" : "nullptr") +
           ", base, rope_scale, input_scale}, positions);\n";
  };
  return launch(call);
}

}  // namespace mlxlm::kernels::cuda
