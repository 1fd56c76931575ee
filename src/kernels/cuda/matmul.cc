#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <string>

#include <mlx/mlx.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sources.h"
#include "kernels/shapes.h"

namespace mlxlm::kernels::cuda {
namespace {

constexpr int kThreads = 256;  // kMatmulThreads
constexpr int kWarps = kThreads / 32;
constexpr std::size_t kMaxRows = 16;

// The kernels' constants for this many rows.
struct Plan {
  int rows;    // M
  int chunk;   // CHUNK
  int blocks;  // at most
  int shared_bytes;
};

Plan plan(std::size_t num_rows, const Linear& linear, int visit) {
  int rows = 1;
  while (rows < static_cast<int>(num_rows)) rows *= 2;
  const int most = rows <= 2 ? 16384 : rows == 4 ? 8192 : 4096;
  auto bytes_of = [&](int chunk) {
    return 4 * (rows * (chunk / 2 + 4) + 2 * visit * kWarps * 16 * rows +
                2 * rows * (chunk / std::max(linear.group_size, 32)) + rows);
  };
  int chunk = 1024;
  while (chunk < most && chunk < columns_of(linear) &&
         bytes_of(2 * chunk) <= device_limits().shared_bytes_per_block) {
    chunk *= 2;
  }
  // As many blocks as an H100 holds at a time.
  const int blocks =
      std::max(device_limits().num_processors, 1) * (rows <= 4   ? 3
                                                     : rows == 8 ? 2
                                                                 : 1);
  return {rows, chunk, blocks, bytes_of(chunk)};
}

// The start of every call: x, the norm and the constants.
Launch start(const std::string& name,
             const mx::array& x,
             const Norm* norm,
             const Linear& linear,
             const Plan& plan) {
  static const std::string kText =
      std::string(k_quantized_weights) + k_quantized_matmul;
  Launch call{.name = name, .header = kText.c_str()};
  call.inputs.emplace_back("x", x);
  if (norm != nullptr) {
    call.inputs.emplace_back("norm", mx::astype(*norm->weight, x.dtype()));
  }
  call.constants = {{"T", x.dtype()},
                    {"BITS", linear.bits},
                    {"GROUP", linear.group_size},
                    {"FLOATS", linear.mode != "affine"},
                    {"M", plan.rows},
                    {"CHUNK", plan.chunk}};
  call.scalars = {{"num_rows", static_cast<int>(num_rows_of(x))},
                  {"size", columns_of(linear)},
                  {"eps", norm != nullptr ? norm->eps : 0.0f}};
  call.threads = kThreads;
  call.shared_bytes = plan.shared_bytes;
  return call;
}

bool is_matrix_for(const mx::array& x, const Linear& linear) {
  return x.ndim() == 3 &&
         (x.dtype() == mx::bfloat16 || x.dtype() == mx::float16) &&
         linear.quantized() && linear.weight.ndim() == 2 && linear.plain();
}

std::string text_of_rows(const Norm* norm) {
  return std::string("  const NormedRows<T> rows{x, num_rows, ") +
         (norm != nullptr ? "norm" : "nullptr") + ", eps};\n";
}

}  // namespace

int columns_of(const Linear& linear) {
  return linear.quantized() ? linear.scales->shape(-1) * linear.group_size
                            : linear.weight.shape(-1);
}

void add_matrix(Launch& call, const Linear& linear, mx::Dtype dtype, int i) {
  const std::string n = std::to_string(i);
  call.inputs.emplace_back("w" + n, linear.weight);
  call.inputs.emplace_back("s" + n, *linear.scales);
  if (linear.zeros) call.inputs.emplace_back("z" + n, *linear.zeros);
  if (linear.bias) {
    call.inputs.emplace_back("b" + n, mx::astype(*linear.bias, dtype));
  }
  call.scalars.emplace_back("n" + n, linear.weight.shape(0));
}

std::string text_of_matrix(const Linear& linear, int i) {
  const std::string n = std::to_string(i);
  return "{w" + n + ", reinterpret_cast<const T*>(s" + n + "), " +
         (linear.zeros ? "z" + n : std::string("nullptr")) + ", " +
         (linear.bias ? "b" + n : std::string("nullptr")) + ", n" + n + "}";
}

const char* function_of(Activation activation) {
  switch (activation) {
    case Activation::silu:
      return "[](float x) { return x / (1 + __expf(-x)); }";
    case Activation::gelu:
      return "[](float x) { return 0.5f * x * (1 + erff(x * 0.70710678f)); }";
    case Activation::gelu_tanh:
      return "[](float x) { return 0.5f * x * (1 + tanhf(0.79788456f * "
             "(x + 0.044715f * x * x * x))); }";
    case Activation::gelu_fast:
      return "[](float x) { return x / (1 + __expf(-1.702f * x)); }";
    case Activation::relu:
      return "[](float x) { return fmaxf(x, 0); }";
    case Activation::relu_squared:
      return "[](float x) { x = fmaxf(x, 0); return x * x; }";
  }
  return "[](float x) { return x; }";
}

bool suits_kernels(const mx::array& x, const Linear& linear) {
  return is_matrix_for(x, linear) && linear.mode == "affine" &&
         (linear.bits == 4 || linear.bits == 8) && linear.group_size >= 32 &&
         linear.scales->dtype() == x.dtype() && linear.zeros;
}

bool suits_few_rows(const mx::array& x, const Linear& linear) {
  return num_rows_of(x) <= kMaxRows &&
         (suits_kernels(x, linear) ||
          (is_matrix_for(x, linear) && linear.mode != "affine" &&
           columns_of(linear) % 32 == 0));
}

std::vector<mx::array> few_rows_linear(const mx::array& x,
                                       const Norm* norm,
                                       std::span<const Linear* const> linears,
                                       const mx::array* residual,
                                       float scale) {
  const auto how = plan(num_rows_of(x), *linears[0], 1);
  auto call = start("norm_linear", x, norm, *linears[0], how);
  const int count = static_cast<int>(linears.size());
  call.name += std::to_string(count);
  call.scalars.emplace_back("scale", scale);
  int tiles = 0;
  for (int i = 0; i < count; ++i) {
    const int size = linears[i]->weight.shape(0);
    add_matrix(call, *linears[i], x.dtype(), i);
    call.output_names.push_back("y" + std::to_string(i));
    call.output_shapes.push_back(shape_with_last(x, size));
    call.output_dtypes.push_back(x.dtype());
    tiles += (size + 15) / 16;
  }
  if (residual != nullptr) call.inputs.emplace_back("residual", *residual);
  call.body = [&] {
    std::string matrices;
    std::string outputs;
    for (int i = 0; i < count; ++i) {
      matrices += text_of_matrix(*linears[i], i) + ", ";
      outputs += "y" + std::to_string(i) + ", ";
    }
    const std::string n = "[" + std::to_string(count) + "]";
    return text_of_rows(norm) + "  const QuantizedMatrix<T> matrices" + n +
           " = {" + matrices + "};\n  T* const outputs" + n + " = {" + outputs +
           "};\n  mlxlm::norm_linear<T, BITS, GROUP, FLOATS, M, CHUNK>("
           "matrices, outputs, rows, " +
           (residual != nullptr ? "residual" : "nullptr") + ", scale, size);\n";
  };
  call.blocks_x = std::min(tiles, how.blocks);
  return launch(call);
}

mx::array few_rows_gated(const mx::array& x,
                         const Norm* norm,
                         const Linear& gate,
                         const Linear& up,
                         Activation activation) {
  const auto how = plan(num_rows_of(x), gate, 2);
  auto call = start("norm_gated", x, norm, gate, how);
  call.name += std::to_string(static_cast<int>(activation));
  add_matrix(call, gate, x.dtype(), 0);
  add_matrix(call, up, x.dtype(), 1);
  call.body = [&] {
    return text_of_rows(norm) +
           "  const QuantizedMatrix<T> gate = " + text_of_matrix(gate, 0) +
           ";\n  const QuantizedMatrix<T> up = " + text_of_matrix(up, 1) +
           ";\n  mlxlm::norm_gated<T, BITS, GROUP, FLOATS, M, CHUNK>("
           "gate, up, y, rows, size, " +
           function_of(activation) + ");\n";
  };
  const int size = gate.weight.shape(0);
  call.output_names = {"y"};
  call.output_shapes = {shape_with_last(x, size)};
  call.output_dtypes = {x.dtype()};
  call.blocks_x = std::min((size + 15) / 16, how.blocks);
  return launch(call)[0];
}

}  // namespace mlxlm::kernels::cuda
