// The seam on the CPU: activations are float32; what isn't goes to the
// reference.
#include <algorithm>
#include <cmath>
#include <utility>

#include <mlx/mlx.h>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/project.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/shapes.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace cpu {
namespace {

struct NormalizedTag {};
struct UpTag {};

bool suits(const mx::array& x) { return x.dtype() == mx::float32; }

// x normalized, or x itself; valid until the next call on this thread.
const float* normalized(const std::optional<BoundNorm>& norm,
                        std::span<const mx::array> inputs,
                        const float* x,
                        std::size_t num_rows,
                        int size) {
  if (!norm) return x;
  float* y = scratch<NormalizedTag>(num_rows * size);
  norm->apply(inputs, x, num_rows, size, y);
  return y;
}

mx::array norm(const mx::array& x, const Norm& norm) {
  if (!suits(x)) return reference_table().norm(x, norm);
  std::vector<mx::array> inputs{x};
  BoundNorm bound(norm, inputs);
  return host_op("cpu_norm",
                 {{x.shape(), mx::float32}},
                 std::move(inputs),
                 [bound](auto in, auto out) {
                   Rows rows(in[0]);
                   bound.apply(in,
                               rows.data(),
                               num_rows_of(in[0]),
                               in[0].shape(-1),
                               out[0].template data<float>());
                 })[0];
}

std::vector<mx::array> norm_linear(const mx::array& x,
                                   const Norm* norm,
                                   std::span<const Linear* const> linears) {
  if (!cpu::suits(x, linears)) {
    return reference_table().norm_linear(x, norm, linears);
  }
  std::vector<std::shared_ptr<const PackedLinear>> weights;
  std::vector<HostOutput> outputs;
  for (const Linear* each : linears) {
    weights.push_back(packed(*each));
    outputs.push_back(
        {shape_with_last(x, weights.back()->matrix().num_rows), mx::float32});
  }
  std::vector<mx::array> inputs{x};
  auto bound = bind(norm, inputs);
  return host_op("cpu_norm_linear",
                 std::move(outputs),
                 std::move(inputs),
                 [bound, weights = std::move(weights)](auto in, auto out) {
                   Rows rows(in[0]);
                   const int size = in[0].shape(-1);
                   const std::size_t num_rows = num_rows_of(in[0]);
                   const float* n =
                       normalized(bound, in, rows.data(), num_rows, size);
                   std::vector<Product> products;
                   for (std::size_t i = 0; i < weights.size(); ++i) {
                     products.push_back({&weights[i]->matrix(),
                                         weights[i]->bias(),
                                         out[i].template data<float>()});
                   }
                   project(n, static_cast<int>(num_rows), size, products);
                 });
}

mx::array linear_residual(const mx::array& x,
                          const Linear& linear,
                          const Norm* post_norm,
                          const mx::array* residual,
                          float scale) {
  const Linear* const linears[] = {&linear};
  if (!cpu::suits(x, linears) || (residual != nullptr && !suits(*residual))) {
    return reference_table().linear_residual(
        x, linear, post_norm, residual, scale);
  }
  std::vector<mx::array> inputs{x};
  const bool has_residual = residual != nullptr;
  if (has_residual) inputs.push_back(*residual);
  auto bound = bind(post_norm, inputs);
  auto weights = packed(linear);
  const int width = weights->matrix().num_rows;
  return host_op(
      "cpu_linear_residual",
      {{shape_with_last(x, width), mx::float32}},
      std::move(inputs),
      [bound, weights, width, scale, has_residual](auto in, auto out) {
        Rows rows(in[0]);
        const std::size_t num_rows = num_rows_of(in[0]);
        float* y = out[0].template data<float>();
        const Product product{&weights->matrix(), weights->bias(), y};
        project(rows.data(),
                static_cast<int>(num_rows),
                in[0].shape(-1),
                {&product, 1});
        if (bound) bound->apply(in, y, num_rows, width, y);
        const std::size_t size = num_rows * width;
        if (scale != 1.0f) {
          for (std::size_t i = 0; i < size; ++i) y[i] *= scale;
        }
        if (has_residual) {
          Rows residual(in[1]);
          for (std::size_t i = 0; i < size; ++i) y[i] += residual.data()[i];
        }
      })[0];
}

mx::array norm_gated_mlp(const mx::array& x,
                         const Norm* norm,
                         const Linear* gate,
                         const Linear& up,
                         Activation activation) {
  std::vector<const Linear*> linears{&up};
  if (gate != nullptr) linears.push_back(gate);
  if (!cpu::suits(x, linears)) {
    return reference_table().norm_gated_mlp(x, norm, gate, up, activation);
  }
  std::vector<std::shared_ptr<const PackedLinear>> weights;
  if (gate != nullptr) weights.push_back(packed(*gate));
  weights.push_back(packed(up));
  const int width = weights[0]->matrix().num_rows;
  std::vector<mx::array> inputs{x};
  auto bound = bind(norm, inputs);
  return host_op(
      "cpu_norm_gated_mlp",
      {{shape_with_last(x, width), mx::float32}},
      std::move(inputs),
      [bound,
       weights = std::move(weights),
       width,
       function = gate_function(activation)](auto in, auto out) {
        Rows rows(in[0]);
        const int size = in[0].shape(-1);
        const std::size_t num_rows = num_rows_of(in[0]);
        const float* n = normalized(bound, in, rows.data(), num_rows, size);
        float* y = out[0].template data<float>();
        float* up =
            weights.size() > 1 ? scratch<UpTag>(num_rows * width) : nullptr;
        Product products[2] = {{&weights[0]->matrix(), weights[0]->bias(), y},
                               {up ? &weights[1]->matrix() : nullptr,
                                up ? weights[1]->bias() : nullptr,
                                up}};
        project(
            n, static_cast<int>(num_rows), size, {products, weights.size()});
        auto one = [&](int row) {
          const std::size_t at = static_cast<std::size_t>(row) * width;
          isa_kernels().gate(y + at, up ? up + at : nullptr, width, function);
        };
        if (num_rows < 4) {
          for (std::size_t row = 0; row < num_rows; ++row) one(row);
        } else {
          parallel_for(static_cast<int>(num_rows), one);
        }
      })[0];
}

mx::array head(const mx::array& x, const Norm* norm, const Linear& linear) {
  const Linear* const linears[] = {&linear};
  return norm_linear(x, norm, linears)[0];
}

}  // namespace
}  // namespace cpu

const Table& cpu_table() {
  static const Table kTable = [] {
    // Wrong names in the environment are reported here and not where the
    // kernels run.
    cpu::isa_kernels();
    cpu_mode();
    Table table = reference_table();
    table.name = "cpu";
    table.norm = cpu::norm;
    table.norm_linear = cpu::norm_linear;
    table.linear_residual = cpu::linear_residual;
    table.norm_gated_mlp = cpu::norm_gated_mlp;
    table.norm_rope = cpu::norm_rope;
    table.norm_heads = cpu::norm_heads;
    table.attention = cpu::attention;
    table.quantized_attention = cpu::quantized_attention;
    table.append_attention = cpu::append_attention;
    table.append_rows = cpu::append_rows;
    table.to_half = cpu::to_half;
    table.concatenate_tokens = cpu::concatenate_tokens;
    table.finish_layer = cpu::finish_layer;
    table.expert_mlp = cpu::expert_mlp;
    table.causal_conv = cpu::causal_conv;
    table.matrix_scan = cpu::matrix_scan;
    table.selective_scan = cpu::selective_scan;
    table.decayed_sum = cpu::decayed_sum;
    table.head = cpu::head;
    table.log_softmax = cpu::log_softmax;
    table.argmax = cpu::argmax;
    table.prepare = cpu::prepare;
    table.embed = cpu::embed;
    return table;
  }();
  return kTable;
}

bool cpu_table_usable() { return mx::default_device() == mx::Device::cpu; }

}  // namespace mlxlm::kernels
