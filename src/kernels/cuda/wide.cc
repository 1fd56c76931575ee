#include "kernels/cuda/wide.h"

#include <algorithm>
#include <functional>
#include <string>

#include <mlx/mlx.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/sources.h"
#include "kernels/shapes.h"

namespace mlxlm::kernels::cuda {
namespace {

constexpr int kHopper = 9;
constexpr int kThreads = 512;       // kWideThreads
constexpr int kBlockThreads = 640;  // kWideBlockThreads
constexpr int kOutputs = 256;       // of a tile
constexpr int kStage = 256;         // kWideStage
constexpr int kSlab = 64;           // kWideSlab

// How x is cut into tiles, and a product's outputs.
struct Plan {
  int num_rows = 0;
  int row_tile = 8;  // N
  int num_row_tiles = 0;
  int num_tiles = 0;
  int num_slots = 0;  // WideProblem
  int num_blocks = 0;
};

Plan plan_of(const mx::array& x, const Linear& linear, int num_output_tiles) {
  Plan plan;
  plan.num_rows = static_cast<int>(num_rows_of(x));
  while (plan.row_tile < plan.num_rows && plan.row_tile < 128) {
    plan.row_tile *= 2;
  }
  plan.num_row_tiles = (plan.num_rows + plan.row_tile - 1) / plan.row_tile;
  plan.num_tiles = num_output_tiles * plan.num_row_tiles;
  plan.num_blocks = device_limits().num_processors;
  const int waves = (plan.num_tiles + plan.num_blocks - 1) / plan.num_blocks;
  // Adding up parts costs more than a quarter of the blocks idle.
  const bool whole = plan.num_tiles * 4 >= waves * plan.num_blocks * 3;
  plan.num_slots = whole ? 0 : waves + 1;
  if (!whole) {  // each has a part
    plan.num_blocks = std::min(plan.num_blocks,
                               plan.num_tiles * (columns_of(linear) / kStage));
  }
  return plan;
}

// Of WideMatmul::Shared.
int shared_bytes(const Linear& linear, int row_tile) {
  const WideRings rings(linear.bits, row_tile);
  const int words = kOutputs * kStage / 8 * linear.bits;
  const int scales = kOutputs * 2 * (kStage / linear.group_size * 2);
  const int bytes = rings.slabs * kSlab * row_tile * 2 +
                    rings.stages * (words + scales) + rings.slabs * 2 * 8;
  return (bytes + 127) / 128 * 128;
}

const char* text() {
  static const std::string kText = std::string(k_async) + k_wgmma +
                                   k_wide_input + k_wide_matmul + k_wide_output;
  return kText.c_str();
}

Launch start(const char* name, const mx::array& x, const Linear& linear) {
  return {.name = name,
          .header = text(),
          .constants = {{"T", x.dtype()}, {"BITS", linear.bits}}};
}

mx::array arranged(const mx::array& x,
                   const Norm* norm,
                   const Linear& linear,
                   const Plan& plan) {
  // Blocks of eight rows write whole lines, of one row are more.
  const int rows = plan.num_rows > 64 ? 8 : 1;
  auto call = start("wide_input", x, linear);
  call.inputs = {{"x", x}};
  if (norm != nullptr) {
    call.inputs.emplace_back("norm", mx::astype(*norm->weight, x.dtype()));
  }
  call.output_names = {"arranged"};
  call.output_shapes = {
      {plan.num_row_tiles * plan.row_tile, columns_of(linear)}};
  call.output_dtypes = {x.dtype()};
  call.scalars = {{"num_rows", plan.num_rows},
                  {"size", columns_of(linear)},
                  {"eps", norm != nullptr ? norm->eps : 0.0f}};
  call.constants.emplace_back("N", plan.row_tile);
  call.constants.emplace_back("ROWS", rows);
  call.body = [&] {
    return std::string(
               "  WideInput<T, BITS, N, ROWS>::run(x, num_rows, size, ") +
           (norm != nullptr ? "norm" : "nullptr") + ", eps, arranged);\n";
  };
  call.blocks_x = plan.num_row_tiles * plan.row_tile / rows;
  call.threads = rows == 1 ? 256 : 512;
  return launch(call)[0];
}

void add_problem(Launch& call,
                 const mx::array& x,
                 std::span<const Linear* const> linears,
                 const Plan& plan) {
  for (std::size_t i = 0; i < linears.size(); ++i) {
    add_matrix(call, *linears[i], x.dtype(), static_cast<int>(i));
  }
  call.scalars.insert(call.scalars.end(),
                      {{"size", columns_of(*linears[0])},
                       {"num_rows", plan.num_rows},
                       {"num_slots", plan.num_slots},
                       {"num_blocks", plan.num_blocks}});
  call.constants.insert(call.constants.end(),
                        {{"GROUP", linears[0]->group_size},
                         {"N", plan.row_tile},
                         {"COUNT", static_cast<int>(linears.size())}});
}

// Of a WideProblem, whose parts are at `parts`.
std::string text_of_problem(std::span<const Linear* const> linears,
                            const std::string& parts) {
  std::string matrices;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    matrices += text_of_matrix(*linears[i], static_cast<int>(i)) + ", ";
  }
  return "  const WideProblem<T> p{x, {" + matrices +
         "}, COUNT, size, num_rows, num_slots, " + parts + "};\n";
}

// What products need to be written: types, End and its value.
struct Writing {
  std::string matmul;                // its type
  std::function<std::string()> end;  // an expression
  std::vector<std::string> names;
  std::vector<mx::Shape> shapes;
  std::vector<std::pair<std::string, mx::array>> inputs = {};
  std::vector<std::pair<std::string, std::variant<int, float>>> scalars = {};
};

std::vector<mx::array> product(const std::string& name,
                               const mx::array& x,
                               const mx::array& arranged,
                               std::span<const Linear* const> linears,
                               const Plan& plan,
                               const Writing& writing) {
  auto begin = [&](const std::string& what) {
    auto call = start("", x, *linears[0]);
    call.name = name + what;
    call.inputs = {{"x", arranged}};
    return call;
  };
  auto write = [&](Launch& call) {
    for (const auto& each : writing.inputs) call.inputs.push_back(each);
    for (const auto& each : writing.scalars) call.scalars.push_back(each);
    call.output_names = writing.names;
    call.output_shapes = writing.shapes;
    call.output_dtypes.assign(writing.names.size(), x.dtype());
  };
  auto multiply = begin(plan.num_slots > 0 ? "_parts" : "");
  multiply.blocks_x = plan.num_blocks;
  multiply.threads = kBlockThreads;
  multiply.shared_bytes = shared_bytes(*linears[0], plan.row_tile);
  add_problem(multiply, x, linears, plan);
  if (plan.num_slots == 0) {
    write(multiply);
    multiply.body = [&] {
      return text_of_problem(linears, "nullptr") + "  wide_matmul<" +
             writing.matmul + ">(p, " + writing.end() + ");\n";
    };
    return launch(multiply);
  }
  multiply.output_names = {"parts"};
  multiply.output_shapes = {
      {plan.num_blocks, plan.num_slots, kOutputs * plan.row_tile}};
  multiply.output_dtypes = {mx::float32};
  multiply.body = [&] {
    return text_of_problem(linears, "parts") + "  wide_matmul<" +
           writing.matmul + ">(p, WideNothing());\n";
  };
  const auto parts = launch(multiply)[0];

  auto join = begin("_join");
  join.inputs.emplace_back("parts", parts);
  add_problem(join, x, linears, plan);
  write(join);
  join.body = [&] {
    return text_of_problem(linears, "const_cast<float*>(parts)") + "  " +
           writing.matmul + "::join(p, num_blocks, " + writing.end() + ");\n";
  };
  join.blocks_x = plan.num_tiles;
  join.blocks_y = plan.row_tile / 8;
  join.threads = kThreads;
  return launch(join);
}

int tiles_of(int num_outputs, int tile) {
  return (num_outputs + tile - 1) / tile;
}

}  // namespace

bool suits_many_rows(const mx::array& x, const Linear& linear) {
  return suits_kernels(x, linear) && columns_of(linear) % kStage == 0 &&
         (linear.group_size == 32 || linear.group_size == 64 ||
          linear.group_size == 128) &&
         device_limits().compute_capability_major == kHopper;
}

std::vector<mx::array> many_rows_linear(const mx::array& x,
                                        const Norm* norm,
                                        std::span<const Linear* const> linears,
                                        const mx::array* residual,
                                        float scale) {
  int output_tiles = 0;
  for (const Linear* each : linears) {
    output_tiles += tiles_of(each->weight.shape(0), kOutputs);
  }
  const auto plan = plan_of(x, *linears[0], output_tiles);
  Writing writing{.matmul = "WideMatmul<T, BITS, GROUP, N, false>"};
  for (std::size_t i = 0; i < linears.size(); ++i) {
    writing.names.push_back("y" + std::to_string(i));
    writing.shapes.push_back(shape_with_last(x, linears[i]->weight.shape(0)));
  }
  if (residual != nullptr) {
    writing.inputs.emplace_back("residual", *residual);
    writing.scalars.emplace_back("scale", scale);
  }
  writing.end = [&] {
    std::string outputs;
    for (const auto& name : writing.names) outputs += name + ", ";
    return "WideLinear<T, BITS, GROUP, N>::End{p, {" + outputs + "}, " +
           (residual != nullptr ? "residual, scale" : "nullptr, 1.0f") + "}";
  };
  return product("wide_linear",
                 x,
                 arranged(x, norm, *linears[0], plan),
                 linears,
                 plan,
                 writing);
}

mx::array many_rows_gated(const mx::array& x,
                          const Norm* norm,
                          const Linear& gate,
                          const Linear& up,
                          Activation activation) {
  const int size = gate.weight.shape(0);
  const auto plan = plan_of(x, gate, tiles_of(size, kOutputs / 2));
  const Writing writing{
      .matmul = "WideMatmul<T, BITS, GROUP, N, true>",
      .end =
          [&] {
            return std::string("wide_gated<T, BITS, GROUP, N>(p, y, ") +
                   function_of(activation) + ")";
          },
      .names = {"y"},
      .shapes = {shape_with_last(x, size)}};
  const Linear* const both[] = {&gate, &up};
  const auto number = std::to_string(static_cast<int>(activation));
  return product("wide_gated" + number,
                 x,
                 arranged(x, norm, gate, plan),
                 both,
                 plan,
                 writing)[0];
}

}  // namespace mlxlm::kernels::cuda
