// The step kernel against the operations of the seam in float32.
#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cuda/step_test_decoder.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace {

INSTANTIATE_TEST_SUITE_P(
    Cases,
    CudaStepTest,
    testing::Values(
        StepCase{.name = "Plain"},
        StepCase{.name = "Float16", .dtype = mx::float16},
        StepCase{.name = "EightBits", .bits = 8, .head_norms = true},
        StepCase{.name = "SmallHeads",
                 .group_size = 32,
                 .head_size = 64,
                 .num_heads = 16,
                 .num_kv_heads = 16,
                 .rotated = 64,
                 .traditional = true},
        StepCase{.name = "LargeGroups",
                 .group_size = 128,
                 .num_kv_heads = 1,
                 .rotated = 64,
                 .biases = true},
        StepCase{.name = "EightBitsInSmallGroups", .bits = 8, .group_size = 32},
        StepCase{.name = "Dense",
                 .bits = 16,
                 .size = 1088,
                 .hidden_size = 1600,
                 .head_norms = true,
                 .biases = true},
        StepCase{.name = "DenseFloat16", .dtype = mx::float16, .bits = 16},
        StepCase{.name = "Experts",
                 .hidden_size = 768,
                 .num_heads = 16,
                 .head_norms = true,
                 .num_experts = 16,
                 .num_chosen = 4,
                 .normalize = true},
        StepCase{.name = "ManyExperts",
                 .group_size = 32,
                 .hidden_size = 128,
                 .num_experts = 140,
                 .num_chosen = 10},
        StepCase{.name = "ExpertsOfEightBits",
                 .dtype = mx::float16,
                 .bits = 8,
                 .hidden_size = 256,
                 .num_experts = 9,
                 .num_chosen = 2},
        StepCase{.name = "DenseExperts",
                 .bits = 16,
                 .hidden_size = 320,
                 .num_experts = 6,
                 .num_chosen = 3,
                 .normalize = true},
        StepCase{.name = "PowersOfTwo",
                 .group_size = 32,
                 .hidden_size = 1536,
                 .head_norms = true,
                 .biases = true,
                 .mode = "mxfp4"},
        StepCase{.name = "SmallFloats",
                 .group_size = 16,
                 .size = 768,
                 .hidden_size = 2304,
                 .mode = "nvfp4"},
        StepCase{.name = "SmallFloatsInFloat16",
                 .dtype = mx::float16,
                 .group_size = 16,
                 .mode = "nvfp4"},
        StepCase{.name = "ExpertsOfPowersOfTwo",
                 .group_size = 32,
                 .hidden_size = 768,
                 .num_experts = 16,
                 .num_chosen = 4,
                 .normalize = true,
                 .mode = "mxfp4"},
        StepCase{.name = "ExpertsOfSmallFloats",
                 .group_size = 16,
                 .hidden_size = 256,
                 .num_experts = 12,
                 .num_chosen = 3,
                 .mode = "nvfp4"},
        StepCase{.name = "Window",
                 .head_norms = true,
                 .window_tokens = 100,
                 .softcap = 20,
                 .sinks = true}),
    [](const auto& info) { return info.param.name; });

TEST_P(CudaStepTest, EqualsTheOperations) {
  auto step = make_cuda_step(spec_);
  ASSERT_NE(step, nullptr);
  ASSERT_TRUE(step->writes(GetParam().dtype));
  int num_compared = 0;
  // In turn and out of turn.
  auto row = row_of(0);
  for (int position : {0, 1, 15, 130, 131, 132, 700, 40}) {
    row.position = position;
    num_compared += step_and_compare(*step, {row});
  }
  EXPECT_GT(num_compared, 2);
}

TEST_P(CudaStepTest, RowsOfABatch) {
  auto step = make_cuda_step(spec_);
  ASSERT_NE(step, nullptr);
  if (step->most_rows() == 1) GTEST_SKIP() << "takes one row";
  const bool chooses = GetParam().num_experts > 0;
  // What is expected of experts takes long.
  const std::size_t most = chooses
                               ? std::min<std::size_t>(step->most_rows(), 13)
                               : step->most_rows();
  std::vector<StepRow> rows;
  int num_compared = 0;
  int num_steps = 0;
  for (int count : {2, 5, 8, 13, 32, 50, 128, 3}) {
    if (static_cast<std::size_t>(count) > most) continue;
    while (rows.size() < static_cast<std::size_t>(count)) {
      rows.push_back(row_of(static_cast<int>(rows.size()) * 97 % 740));
    }
    rows.resize(count);
    SCOPED_TRACE(std::to_string(count) + " rows");
    num_compared += step_and_compare(*step, rows);
    for (auto& row : rows) ++row.position;
    num_compared += step_and_compare(*step, rows);
    num_steps += 2 * count;
  }
  EXPECT_GE(num_compared, chooses ? num_steps / 4 : num_steps);
}

}  // namespace
}  // namespace mlxlm::kernels
