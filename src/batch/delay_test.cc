// How much of long prompts is read between two tokens of another row.
#include <gtest/gtest.h>

#include "batch/batch_fixture.h"

namespace mlxlm {
namespace {

struct DelayCase {
  const char* name;
  ToyOptions toy;  // one layer, mostly, as only the order matters
  int prompt_tokens = 32768;
  int num_long = 1;
  GenerateOptions options = {};
  int most = 512;
  bool has_store = false;
  bool is_short_of_memory = false;
};

void PrintTo(const DelayCase& the, std::ostream* out) { *out << the.name; }

class Delay : public ::testing::TestWithParam<DelayCase> {
 protected:
  static BatchRequest short_row() {
    return request(std::string(200, 'x'),
                   {.max_tokens = 90, .ignore_eos = true});
  }
};

// Whoever decodes has a token in every pass, and no pass reads more of prompts
// than it may.
TEST_P(Delay, NeverMoreThanSoManyTokens) {
  const DelayCase& the = GetParam();
  BatchOptions options{.interleaved_tokens = 512, .prefill_step_tokens = 4096};
  auto model = std::make_shared<ToyModel>(the.toy);
  if (the.is_short_of_memory) {
    // For a long row beside a short one, until that grows.
    const auto row = request(std::string(the.prompt_tokens, 'a'));
    options.memory_budget_bytes = tight_budget(model, {short_row(), row});
  }
  BatchGenerator batch(model, nullptr, options);
  batch.insert(short_row());
  batch.next();
  auto store = the.has_store ? std::make_shared<PrefixStore>() : nullptr;
  std::map<RowId, bool> is_long;
  for (int i = 0; i < the.num_long; ++i) {
    BatchRequest row{std::vector<int>(the.prompt_tokens, 'a'), the.options};
    row.prompt.back() = 'b' + i;
    row.options.max_tokens = 1;
    row.options.prefix_store = store;
    is_long[batch.insert(row)] = true;
  }
  int most = 0, num_passes = 0, num_ended = 0;
  std::map<RowId, bool> decodes;
  while (num_ended < the.num_long) {
    const auto before = batch.stats();
    auto expected = std::exchange(decodes, {});
    for (const auto& part : batch.next()) {
      expected.erase(part.row);
      const bool ended = !part.part.finish_reason.empty();
      num_ended += ended && is_long.contains(part.row);
      if (!ended) decodes[part.row] = true;
      if (ended && !is_long.contains(part.row)) batch.insert(short_row());
    }
    const auto window = batch.stats() - before;
    if (window.preemptions > 0) {
      decodes.clear();  // those left are known after the next pass
    } else {
      ASSERT_TRUE(expected.empty()) << "a row had no token";
    }
    if (expected.size() + decodes.size() == 0) continue;
    if (++num_passes > 1) {
      most = std::max(most, static_cast<int>(window.prompt_tokens));
    }
  }
  EXPECT_LE(most, the.most);
  EXPECT_GE(most, the.is_short_of_memory ? 1 : the.most / 2);
  EXPECT_EQ(batch.stats().preemptions > 0, the.is_short_of_memory);
  EXPECT_EQ(batch.stats().reused_tokens > 0, the.has_store);
}

INSTANTIATE_TEST_SUITE_P(
    Cases,
    Delay,
    ::testing::Values(
        DelayCase{"Growing", {.num_layers = 1, .context_tokens = 0}},
        DelayCase{"Several",
                  {.num_layers = 1, .window_tokens = 16, .context_tokens = 0},
                  32768,
                  3},
        DelayCase{"Recurrent",
                  {.num_layers = 1, .recurrent = true, .context_tokens = 0}},
        DelayCase{"Store",
                  {.num_layers = 1, .context_tokens = 0},
                  8192,
                  3,
                  {},
                  512,
                  true},
        DelayCase{"Uncut",
                  {.num_layers = 1, .context_tokens = 0},
                  32768,
                  2,
                  {.max_kv_size = 32, .prefill_step_tokens = 700},
                  700},
        DelayCase{"Preempted",
                  {.num_layers = 1, .context_tokens = 0},
                  8192,
                  1,
                  {},
                  512,
                  false,
                  true}),
    [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace mlxlm
