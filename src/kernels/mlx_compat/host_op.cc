#include "kernels/mlx_compat/host_op.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <utility>

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/mlx.h>
#include <mlx/primitives.h>

namespace mlxlm::kernels {
namespace {

std::atomic<std::int64_t> busy_nanoseconds = 0;

class HostPrimitive : public mx::Primitive {
 public:
  HostPrimitive(mx::Stream stream,
                const char* name,
                std::vector<int> takes_over,
                HostFunction function)
      : mx::Primitive(stream),
        name_(name),
        takes_over_(std::move(takes_over)),
        function_(std::move(function)) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    // MLX keeps the buffers alive until the task has run, not the arrays.
    std::vector<mx::array> weak_inputs;
    std::vector<mx::array> weak_outputs;
    for (const auto& input : inputs) {
      encoder.set_input_array(input);
      weak_inputs.push_back(mx::array::unsafe_weak_copy(input));
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      auto& output = outputs[i];
      if (takes_over_[i] >= 0) {
        take_over(inputs[takes_over_[i]], output);
      } else {
        output.set_data(mx::allocator::malloc(output.nbytes()));
      }
      encoder.set_output_array(output);
      weak_outputs.push_back(mx::array::unsafe_weak_copy(output));
    }
    encoder.dispatch([function = function_,
                      in = std::move(weak_inputs),
                      out = std::move(weak_outputs)]() mutable {
      const auto start = std::chrono::steady_clock::now();
      function(in, out);
      busy_nanoseconds +=
          std::chrono::nanoseconds(std::chrono::steady_clock::now() - start)
              .count();
    });
  }

  void eval_gpu(const std::vector<mx::array>&,
                std::vector<mx::array>&) override {
    throw std::runtime_error(std::string(name_) + " runs on the CPU only");
  }

  const char* name() const override { return name_; }

 private:
  void take_over(const mx::array& input, mx::array& output) {
    if (input.flags().row_contiguous) {
      output.copy_shared_buffer(input);
      return;
    }
    output.set_data(mx::allocator::malloc(output.nbytes()));
    mx::cpu::get_command_encoder(stream()).dispatch(
        [from = mx::array::unsafe_weak_copy(input),
         to = mx::array::unsafe_weak_copy(output)]() mutable {
          copy_bytes(from, to.data<char>());
        });
  }

  // The elements in row-major order.
  static void copy_bytes(const mx::array& from, char* to) {
    const std::size_t size = from.itemsize();
    mx::Shape at(from.ndim(), 0);
    for (std::size_t i = 0; i < from.size(); ++i) {
      std::int64_t element = 0;
      for (std::size_t axis = 0; axis < from.ndim(); ++axis) {
        element += at[axis] * from.strides(axis);
      }
      std::memcpy(to + i * size,
                  from.data<char>() + element * static_cast<std::int64_t>(size),
                  size);
      for (int axis = static_cast<int>(from.ndim()) - 1; axis >= 0; --axis) {
        if (++at[axis] < from.shape(axis)) break;
        at[axis] = 0;
      }
    }
  }

  const char* name_;
  std::vector<int> takes_over_;  // per output
  HostFunction function_;
};

}  // namespace

std::vector<mx::array> host_op(const char* name,
                               std::vector<HostOutput> outputs,
                               std::vector<mx::array> inputs,
                               HostFunction function) {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  std::vector<int> takes_over;
  for (auto& output : outputs) {
    shapes.push_back(std::move(output.shape));
    dtypes.push_back(output.dtype);
    takes_over.push_back(output.takes_over);
  }
  auto primitive =
      std::make_shared<HostPrimitive>(mx::default_stream(mx::Device::cpu),
                                      name,
                                      std::move(takes_over),
                                      std::move(function));
  return mx::array::make_arrays(
      std::move(shapes), dtypes, std::move(primitive), std::move(inputs));
}

double host_op_seconds() {
  return static_cast<double>(busy_nanoseconds) * 1e-9;
}

}  // namespace mlxlm::kernels
