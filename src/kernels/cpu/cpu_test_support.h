// What the tests of the CPU's kernels share: the fixture, and the difference
// from the reference.
#pragma once

#include <cstdlib>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "kernels/cpu/isa.h"
#include "kernels/seam.h"
#include "kernels/tables.h"
#include "kernels/test_layers.h"

namespace mlxlm::kernels::cpu_test {

using test_layers::dense;
using test_layers::quantize;
using test_layers::quantized;
using test_layers::random;

// Skips all where the environment asks for what this machine can't run.
class CpuKernels : public testing::Test {
 protected:
  void SetUp() override {
    const char* isa = std::getenv("MLX_LM_CPU_ISA");
    if (isa != nullptr && *isa != '\0' &&
        cpu::find_isa_kernels(isa) == nullptr) {
      GTEST_SKIP() << "this machine has no " << isa;
    }
    mx::set_default_device(mx::Device::cpu);
    set_cpu_mode(CpuMode::exact);
    mx::random::seed(7);
  }

  const Table& cpu_ = cpu_table();
  const Table& reference_ = reference_table();
};

// The largest difference, relative to the root mean square of `expected`, or to
// 1 where that is smaller.
inline float error_of(const mx::array& actual, const mx::array& expected) {
  EXPECT_EQ(actual.shape(), expected.shape());
  EXPECT_EQ(actual.dtype(), expected.dtype());
  auto difference = mx::max(mx::abs(mx::subtract(actual, expected)));
  auto size = mx::sqrt(mx::mean(mx::square(expected)));
  return mx::divide(difference, mx::maximum(size, mx::array(1.0f)))
      .item<float>();
}

}  // namespace mlxlm::kernels::cpu_test
