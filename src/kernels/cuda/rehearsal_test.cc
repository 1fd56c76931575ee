// Kernels compile for every generation of GPUs that NVIDIA's compiler knows,
// and ask for no more shared memory than those have. Needs no GPU: with MLX's
// CPU build it is enough that the dynamic linker finds libnvrtc.
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "kernels/cuda/compile.h"
#include "kernels/cuda/device.h"
#include "kernels/seam.h"
#include "kernels/step.h"
#include "kernels/tables.h"
#include "kernels/test_layers.h"

namespace mlxlm::kernels {
namespace {

constexpr int kKilobyte = 1024;

struct Gpu {
  const char* name;
  cuda::DeviceLimits limits;
  const char* architecture;  // or how it begins
};

std::ostream& operator<<(std::ostream& out, const Gpu& gpu) {
  return out << gpu.name;
}

class CudaRehearsal : public testing::TestWithParam<Gpu> {
 protected:
  void SetUp() override {
    try {
      const auto architecture = cuda::gpu_architecture();
      ASSERT_TRUE(architecture.starts_with(GetParam().architecture))
          << architecture;
    } catch (const Error& fault) {
      if (fault.kind() != ErrorKind::unsupported) throw;
      GTEST_SKIP() << "NVIDIA's compiler is not there";
    }
  }

  const cuda::Rehearsal rehearsal_{GetParam().limits};
};

mx::array random(const mx::Shape& shape, mx::Dtype dtype = mx::bfloat16) {
  return mx::astype(test_layers::random(shape), dtype);
}

// The sizes of an 8B llama, whose kernels need most.
constexpr int kSize = 4096;
constexpr int kHidden = 14336;

struct Format {
  const char* mode;
  int bits, group_size;
  bool is_float() const { return std::string_view(mode) != "affine"; }
};
constexpr Format kFormats[] = {{"affine", 4, 64},
                               {"affine", 8, 64},
                               {"mxfp4", 4, 32},
                               {"nvfp4", 4, 16},
                               {"mxfp8", 8, 32}};

Linear quantized(int rows, int columns, const Format& format = kFormats[0]) {
  return test_layers::quantized(
      rows, columns, format.bits, format.group_size, mx::bfloat16, format.mode);
}

TEST_P(CudaRehearsal, Products) {
  const Table& ops = cuda_table();
  const Norm norm{.weight = random({kSize}), .eps = 1e-5f};
  for (int rows : {1, 8, 16, 128}) {
    for (const auto& format : kFormats) {
      if (rows > 16 && format.is_float()) continue;
      // Outputs are few, as their number is no part of a kernel.
      const Linear one = quantized(32, kSize, format);
      const Linear down = quantized(32, kHidden, format);
      const auto x = random({1, rows, kSize});
      const auto residual = random({1, rows, 32});
      ops.norm_linear(x, &norm, std::vector{&one, &one, &one});
      ops.norm_gated_mlp(x, &norm, &one, one, Activation::silu);
      ops.linear_residual(
          random({1, rows, kHidden}), down, nullptr, &residual, 1.0f);
    }
  }
}

TEST_P(CudaRehearsal, AttentionAndLogits) {
  const Table& ops = cuda_table();
  for (int size : {64, 128, 256}) {
    const auto buffer = random({1, 2, 300, size});
    const std::vector<BatchRow> rows(
        3, {.keys = buffer, .values = buffer, .at = 255, .num_keys = 256});
    const auto q = random({1, 8, 3, size});
    const auto k = random({1, 2, 3, size});
    EXPECT_TRUE(ops.append_rows(q, k, k, rows, {}).has_value());
    const Rope rope{.dimensions = size};
    const Linear heads = quantized(2 * size, kSize);
    const Norm norm{.weight = random({size}), .eps = 1e-5f};
    const std::vector<HeadProjection> projections{{&heads, 2, &norm, &rope}};
    norm_heads(ops, random({1, 1, kSize}), nullptr, projections, Positions(7));
  }
  const auto logits = random({1, 1, 1000}, mx::float32);
  ops.log_softmax(logits);
  ops.argmax(logits);
}

// What a decoder of one layer is made of.
struct Layer {
  Norm norm{.weight = random({kSize}), .eps = 1e-5f};
  Linear square, keys, wide, down;

  explicit Layer(const Format& format)
      : square(matrix(kSize, kSize, format)),
        keys(matrix(1024, kSize, format)),
        wide(matrix(kHidden, kSize, format)),
        down(matrix(kSize, kHidden, format)) {}

  static Linear matrix(int rows, int columns, const Format& format) {
    if (format.bits == 16) {
      return Linear{mx::zeros({rows, columns}, mx::bfloat16)};
    }
    Linear made{mx::zeros({rows, columns * format.bits / 32}, mx::uint32)};
    made.mode = format.mode;
    made.bits = format.bits;
    made.group_size = format.group_size;
    made.scales = mx::zeros({rows, columns / format.group_size},
                            format.is_float() ? mx::uint8 : mx::bfloat16);
    if (!format.is_float()) made.zeros = made.scales;
    return made;
  }

  StepSpec spec() const {
    StepSpec made{.embedding = &keys,
                  .rope = {.dimensions = 128},
                  .num_heads = 32,
                  .num_kv_heads = 8,
                  .head_size = 128,
                  .norm = &norm,
                  .head = &keys};
    made.layers.push_back({.attention_norm = &norm,
                           .q = &square,
                           .k = &keys,
                           .v = &keys,
                           .o = &square,
                           .attention_scale = 0.1f,
                           .mlp_norm = &norm,
                           .gate = &wide,
                           .up = &wide,
                           .down = &down});
    return made;
  }
};

// Steps of one row to eight.
void rehearse(Step& step, const StepSpec& spec) {
  const auto buffer =
      mx::zeros({1, spec.num_kv_heads, 256, spec.head_size}, mx::bfloat16);
  mx::eval(buffer);
  for (std::size_t count : {1u, 4u, 8u}) {
    if (count > step.most_rows()) continue;
    const std::vector<StepRow> rows(
        count, {.position = 5, .layers = {{buffer, buffer}}});
    step(mx::zeros({1, static_cast<int>(count)}, mx::int32), rows, {});
  }
}

TEST_P(CudaRehearsal, Steps) {
  for (const Format& format : {Format{"affine", 4, 64},
                               Format{"affine", 8, 64},
                               Format{"affine", 16, 64},
                               Format{"mxfp4", 4, 32},
                               Format{"nvfp4", 4, 16}}) {
    const Layer layer(format);
    const auto step = make_cuda_step(layer.spec());
    if (format.bits == 16 &&
        GetParam().limits.shared_bytes_per_block < 128 * kKilobyte) {
      EXPECT_EQ(step, nullptr);  // x alone has no room
      continue;
    }
    ASSERT_NE(step, nullptr) << format.mode << ", " << format.bits << " bits";
    rehearse(*step, layer.spec());
  }
}

// The sizes of a mixture of 30B, of which 3B work.
TEST_P(CudaRehearsal, StepsOfExperts) {
  constexpr int kWidth = 2048;
  for (const Format& format :
       {Format{"affine", 4, 64}, Format{"mxfp4", 4, 32}}) {
    auto stack = [&](int rows, int columns) {
      Linear made = Layer::matrix(16 * rows, columns, format);
      auto apart = [&](mx::array& x) {
        x = mx::reshape(x, {16, rows, x.shape(1)});
      };
      apart(made.weight);
      if (made.scales) apart(*made.scales);
      if (made.zeros) apart(*made.zeros);
      return made;
    };
    const Linear q = Layer::matrix(kSize, kWidth, format);
    const Linear k = Layer::matrix(512, kWidth, format);
    const Linear o = Layer::matrix(kWidth, kSize, format);
    const Linear gate = stack(768, kWidth);
    const Linear down = stack(kWidth, 768);
    const Linear router{mx::zeros({16, kWidth}, mx::bfloat16)};
    const Norm norm{.weight = random({kWidth}), .eps = 1e-6f};
    StepSpec spec{.embedding = &k,
                  .rope = {.dimensions = 128},
                  .num_heads = 32,
                  .num_kv_heads = 4,
                  .head_size = 128,
                  .norm = &norm,
                  .head = &k};
    spec.layers.push_back(
        {.attention_norm = &norm,
         .q = &q,
         .k = &k,
         .v = &k,
         .o = &o,
         .mlp_norm = &norm,
         .gate = &gate,
         .up = &gate,
         .down = &down,
         .experts = StepExperts{.router = &router, .num_chosen = 8}});
    const auto step = make_cuda_step(spec);
    ASSERT_NE(step, nullptr) << format.mode << ", " << format.bits << " bits";
    rehearse(*step, spec);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Generations,
    CudaRehearsal,
    testing::Values(Gpu{"A100", {8, 0, 108, 163 * kKilobyte}, "sm_80"},
                    Gpu{"Ada", {8, 9, 128, 99 * kKilobyte}, "sm_89"},
                    Gpu{"Hopper", {9, 0, 132, 227 * kKilobyte}, "sm_90a"},
                    Gpu{"Blackwell", {10, 0, 148, 227 * kKilobyte}, "sm_100a"},
                    Gpu{"Later", {99, 0, 128, 99 * kKilobyte}, "compute_"}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace mlxlm::kernels
