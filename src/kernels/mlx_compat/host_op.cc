#include "kernels/mlx_compat/host_op.h"

#include <stdexcept>
#include <utility>

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/mlx.h>
#include <mlx/primitives.h>

namespace mlxlm::kernels {
namespace {

class HostPrimitive : public mx::Primitive {
 public:
  HostPrimitive(mx::Stream stream, const char* name, HostFunction function)
      : mx::Primitive(stream), name_(name), function_(std::move(function)) {}

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
    for (auto& output : outputs) {
      output.set_data(mx::allocator::malloc(output.nbytes()));
      encoder.set_output_array(output);
      weak_outputs.push_back(mx::array::unsafe_weak_copy(output));
    }
    encoder.dispatch(
        [function = function_,
         in = std::move(weak_inputs),
         out = std::move(weak_outputs)]() mutable { function(in, out); });
  }

  void eval_gpu(const std::vector<mx::array>&,
                std::vector<mx::array>&) override {
    throw std::runtime_error(std::string(name_) + " runs on the CPU only");
  }

  const char* name() const override { return name_; }

 private:
  const char* name_;
  HostFunction function_;
};

}  // namespace

std::vector<mx::array> host_op(const char* name,
                               std::vector<HostOutput> outputs,
                               std::vector<mx::array> inputs,
                               HostFunction function) {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (auto& output : outputs) {
    shapes.push_back(std::move(output.shape));
    dtypes.push_back(output.dtype);
  }
  auto primitive = std::make_shared<HostPrimitive>(
      mx::default_stream(mx::Device::cpu), name, std::move(function));
  return mx::array::make_arrays(
      std::move(shapes), dtypes, std::move(primitive), std::move(inputs));
}

}  // namespace mlxlm::kernels
