// What a batch takes at its most, as MLX counts it, against its budget.
#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include "batch/batch_fixture.h"
#include "generate/memory_estimate.h"
#include "tests/support/expect_error.h"

namespace mlxlm {
namespace {

struct Shape {
  const char* name;
  ToyOptions toy;
  int num_rows;
  int prompt_tokens;
  int max_tokens;
  BatchOptions batch = {};
  GenerateOptions options = {};
  bool has_store = false;
  bool has_draft_model = false;
};

void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }

class Memory : public ::testing::TestWithParam<Shape> {
 protected:
  BatchRequest row(int i) const {
    const Shape& shape = GetParam();
    BatchRequest request{.options = shape.options};
    for (int n = 0; n < shape.prompt_tokens; ++n) {
      request.prompt.push_back('a' + (n * 7 + i) % 26);
    }
    request.options.max_tokens = shape.max_tokens;
    request.options.ignore_eos = true;
    request.options.prefix_store = store_;
    request.options.draft_model = draft_;
    return request;
  }

  // The most that was in use while all rows ran.
  std::uint64_t run_all(std::uint64_t budget_bytes) {
    const Shape& shape = GetParam();
    BatchOptions options = shape.batch;
    options.memory_budget_bytes = budget_bytes;
    BatchGenerator batch(model_, nullptr, options);
    for (int i = 0; i < shape.num_rows; ++i) batch.insert(row(i));
    mx::reset_peak_memory();
    std::size_t num_tokens = 0;
    while (!batch.empty()) num_tokens += batch.next().size();
    EXPECT_EQ(num_tokens,
              static_cast<std::size_t>(shape.num_rows * shape.max_tokens));
    preemptions_ = batch.stats().preemptions;
    return mx::get_peak_memory();
  }

  void SetUp() override {
    model_ = std::make_shared<ToyModel>(GetParam().toy);
    if (GetParam().has_store) {
      store_ = std::make_shared<PrefixStore>(
          PrefixStoreOptions{.max_bytes = std::size_t{1} << 20});
    }
    std::uint64_t weights = weight_bytes(*model_);
    if (model_->draft_head() != nullptr) {
      weights += model_->draft_head()->nbytes();
    }
    if (GetParam().has_draft_model) {
      ToyOptions toy = GetParam().toy;
      toy.noise = 0.03f;
      draft_ = std::make_shared<ToyModel>(toy);
      weights += weight_bytes(*draft_);
    }
    mx::clear_cache();
    before_ = mx::get_active_memory() - weights;
  }

  std::shared_ptr<ToyModel> model_;
  std::shared_ptr<ToyModel> draft_;
  std::shared_ptr<PrefixStore> store_;
  std::uint64_t before_ = 0;  // of other tests
  std::uint64_t preemptions_ = 0;
};

TEST_P(Memory, StaysWithinTheBudget) {
  const std::uint64_t least = least_budget(model_, row(0));
  for (std::uint64_t budget : {least, least * 3 / 2, least * 4}) {
    const std::uint64_t peak = run_all(budget) - before_;
    EXPECT_LE(peak, budget);
    std::cout << GetParam().name << ": budget " << budget / 1000 << " kB, peak "
              << peak / 1000 << " kB, " << preemptions_ << " preemptions\n";
  }
}

// The figures, before anything is read.
TEST_F(BatchTest, WhatCantFitIsRefusedWithTheFigures) {
  auto row = request(std::string(500, 'x'), {.max_tokens = 1000});
  const std::uint64_t least = least_budget(model_, row);
  BatchGenerator batch(
      model_, tokenizer_, {.memory_budget_bytes = least * 9 / 10});
  mx::reset_peak_memory();
  const auto before = mx::get_active_memory();
  expect_error(ErrorKind::memory, "a row of 1500 tokens needs about", [&] {
    batch.insert(row);
  });
  expect_error(ErrorKind::memory, "(its KV cache 1.6 MB, a pass ", [&] {
    batch.insert(row);
  });
  expect_error(ErrorKind::memory,
               "beside the model's 198 kB: more than the batch's budget of ",
               [&] { batch.insert(row); });
  row.options.prefix_store = std::make_shared<PrefixStore>();
  expect_error(ErrorKind::memory,
               "and the prefix stores' 1.1 GB: more than",
               [&] { batch.insert(row); });
  EXPECT_TRUE(batch.empty());
  EXPECT_EQ(batch.stats().passes, 0u);
  EXPECT_LE(mx::get_peak_memory(), before + 10000);  // nothing was computed
}

// A store that would leave too little to a row that waits is refused.
TEST_F(BatchTest, AStoreThatLeavesTooLittle) {
  auto large = request(std::string(500, 'x'), {.max_tokens = 1000});
  auto small = request("small", {.max_tokens = 5});
  const auto budget = least_budget(model_, large) * 11 / 10;
  BatchGenerator batch(model_, tokenizer_, {.memory_budget_bytes = budget});
  batch.insert(large);
  small.options.prefix_store = std::make_shared<PrefixStore>(
      PrefixStoreOptions{.max_bytes = budget / 4});
  expect_error(ErrorKind::memory, "another row", [&] { batch.insert(small); });
  small.options.prefix_store.reset();
  batch.insert(small);
  EXPECT_EQ(run(batch).size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(
    Shapes,
    Memory,
    ::testing::Values(Shape{"LongPrompt", {.context_tokens = 8192}, 1, 3000, 4},
                      Shape{
                          "LongPrompts", {.context_tokens = 8192}, 4, 1500, 4},
                      Shape{"ManyRows", {}, 40, 20, 20, {.max_rows = 40}},
                      Shape{"RowsThatGrow", {}, 6, 250, 20},
                      Shape{"Window", {.window_tokens = 64}, 5, 400, 12},
                      Shape{"Recurrent", {.recurrent = true}, 5, 300, 12},
                      Shape{"Quantized",
                            {},
                            3,
                            400,
                            12,
                            {},
                            {.kv_bits = 8, .kv_group_size = 32}},
                      Shape{"Drafts",
                            {.window_tokens = 64},
                            4,
                            200,
                            30,
                            {},
                            {.draft = DraftKind::ngram}},
                      Shape{"DraftModel",
                            {.window_tokens = 64},
                            4,
                            200,
                            30,
                            {},
                            {},
                            false,
                            true},
                      Shape{"DraftHead",
                            {.recurrent = true, .head_noise = 0.03f},
                            4,
                            200,
                            30,
                            {},
                            {.draft = DraftKind::mtp}},
                      Shape{"Store", {}, 5, 300, 12, {}, {}, true}),
    [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace mlxlm
