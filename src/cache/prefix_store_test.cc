// The prefix store: what it finds, what it says, what it costs.
#include <algorithm>
#include <map>
#include <thread>

#include <mlx/mlx.h>

#include "cache/prefix_test_support.h"
#include "cache/toy_layers.h"

namespace mlxlm {
namespace {

int common_length(const Tokens& a, const Tokens& b) {
  return static_cast<int>(std::ranges::mismatch(a, b).in1 - a.begin());
}

TEST(PrefixStore, GivesTheLongestCommonPrefix) {
  PrefixStore store;
  std::vector<Tokens> stored;
  std::mt19937 random(7);
  for (int i = 0; i < 60; ++i) {
    Tokens prompt = random_tokens(random, 1 + static_cast<int>(random() % 12));
    int expected = 0;
    for (const Tokens& tokens : stored) {
      expected = std::max(expected, common_length(tokens, prompt));
    }
    auto match = store.find("", prompt);
    ASSERT_EQ(match.matched_tokens, expected);
    ASSERT_EQ(match.reused_tokens,
              std::min<int>(expected, static_cast<int>(prompt.size()) - 1));
    if (match.reused_tokens > 0) {
      for (const auto& layer : match.cache) {
        ASSERT_EQ(tokens_in(*layer), first(prompt, match.reused_tokens));
      }
      // What is given out goes on without harm to what is stored.
      read_tokens(*match.cache[0], {9, 9, 9});
    }
    EXPECT_TRUE(store.put("", prompt, growing(prompt)));
    stored.push_back(prompt);
  }
}

TEST(PrefixStore, HoldsCommonBeginningsOnce) {
  PrefixStore store;
  Tokens system = counted(0, 400);
  store.put("", system + Tokens{1000}, growing(system + Tokens{1000}));
  std::size_t before = store.statistics().nbytes;
  for (int i = 1; i < 10; ++i) {
    Tokens prompt = system + Tokens{1000 + i};
    store.put("", prompt, growing(prompt));
  }
  auto after = store.statistics();
  EXPECT_LT(after.nbytes, before + before / 2);
  EXPECT_EQ(after.num_runs, 11u);  // the system text and ten ends
}

TEST(PrefixStore, SaysWhyNotMoreIsReused) {
  PrefixStore store({.max_bytes = 1 << 20});
  Tokens a = counted(0, 10);
  auto limit = [&](const Tokens& tokens) {
    return store.find("", tokens).limit;
  };
  EXPECT_EQ(limit(a), PrefixLimit::unknown);
  store.put("", a, growing(a));
  EXPECT_EQ(limit(a), PrefixLimit::none);
  EXPECT_EQ(store.find("", a).reason, "");
  EXPECT_EQ(limit(a + Tokens{1}), PrefixLimit::none);
  EXPECT_EQ(limit(a + Tokens{1, 2}), PrefixLimit::ends);
  EXPECT_EQ(limit(first(a, 5) + Tokens{77, 78}), PrefixLimit::differs);
  EXPECT_EQ(limit({77, 78}), PrefixLimit::unknown);
  EXPECT_EQ(limit({0}), PrefixLimit::none);  // the last token is always read
  store.put("", first(a, 5) + Tokens{77}, growing(first(a, 5) + Tokens{77}));
  store.find("", first(a, 5) + Tokens{77, 78});
  auto all = store.statistics();
  store.trim_to(all.nbytes - 1);  // the end of `a`, which was used before
  auto match = store.find("", a + Tokens{1});
  EXPECT_EQ(match.limit, PrefixLimit::evicted);
  EXPECT_EQ(match.reused_tokens, 5);
  EXPECT_EQ(match.reason, "what was stored after 5 tokens had to make room");
}

TEST(PrefixStore, ReusesCheckpointsWhereLayersCannotBeCut) {
  PrefixStore store;
  Tokens a = counted(0, 20);
  for (int count : {8, 16, 20}) {
    store.put("", first(a, count), windowed(first(a, count)));
  }
  auto match = store.find("", first(a, 18) + Tokens{99, 98});
  EXPECT_EQ(match.matched_tokens, 18);
  EXPECT_EQ(match.reused_tokens, 16);
  EXPECT_EQ(match.limit, PrefixLimit::checkpoint);
  EXPECT_EQ(match.reason,
            "18 tokens are the same, but RotatingKVCache can't be cut, and the "
            "last checkpoint before is at 16");
  EXPECT_EQ(match.cache[1]->offset(), 16);
  EXPECT_EQ(store.find("", a + Tokens{5}).reused_tokens, 20);
  EXPECT_EQ(store.find("", first(a, 5)).reused_tokens, 0);
}

TEST(PrefixStore, CutsStatesThatStillCan) {
  PrefixStore store;
  Tokens a = counted(0, 20);
  store.put("", a, windowed(a, 64));  // the window isn't full
  auto match = store.find("", first(a, 7) + Tokens{99, 98});
  EXPECT_EQ(match.reused_tokens, 7);
  EXPECT_EQ(match.cache[0]->offset(), 7);
  EXPECT_EQ(match.cache[1]->offset(), 7);
  EXPECT_EQ(match.limit, PrefixLimit::differs);
}

TEST(PrefixStore, KeysShareNothing) {
  PrefixStore store;
  Tokens a = counted(0, 10);
  store.put("one", a, growing(a));
  for (const char* key : {"two", "", "on", "one "}) {
    auto match = store.find(key, a);
    EXPECT_EQ(match.reused_tokens, 0) << key;
    EXPECT_EQ(match.matched_tokens, 0) << key;
    EXPECT_EQ(match.limit, PrefixLimit::unknown) << key;
  }
  EXPECT_EQ(store.find("one", a).reused_tokens, 9);
}

TEST(PrefixStore, RefusesCachesOfOtherTokens) {
  PrefixStore store;
  expect_error(ErrorKind::argument, "has read 10 tokens, not the 9", [&] {
    store.put("", counted(0, 9), growing(counted(0, 10)));
  });
  EXPECT_EQ(store.statistics().nbytes, 0u);
  EXPECT_TRUE(store.put("", Tokens{}, {}));
  store.put("", counted(0, 9), growing(counted(0, 9)));
  EXPECT_EQ(store.find("", Tokens{}).reused_tokens, 0);
}

// Whatever is done: the bytes stay within the budget, what is found is right,
// and tenants never see each other's tokens.
TEST(PrefixStore, StaysWithinItsBudget) {
  constexpr std::size_t kBudget = 20000;
  PrefixStore store({.max_bytes = kBudget});
  std::mt19937 random(11);
  std::map<std::string, std::vector<Tokens>> stored;
  int num_refused = 0;
  for (int i = 0; i < 250; ++i) {
    std::string tenant(1, static_cast<char>('a' + random() % 3));
    const bool windows = tenant == "c";
    Tokens prompt = random_tokens(random, 1 + static_cast<int>(random() % 40));
    if (random() % 40 == 0) {
      prompt = random_tokens(random, 400);  // more than the budget
    }
    auto match = store.find(tenant, prompt);
    int most = 0;
    for (const Tokens& tokens : stored[tenant]) {
      most = std::max(most, common_length(tokens, prompt));
    }
    ASSERT_LE(match.matched_tokens, most);
    if (match.reused_tokens > 0) {
      ASSERT_EQ(tokens_in(*match.cache[0]), first(prompt, match.reused_tokens));
    }
    bool kept =
        store.put(tenant, prompt, windows ? windowed(prompt) : growing(prompt));
    ASSERT_EQ(kept, prompt.size() < 200);
    num_refused += kept ? 0 : 1;
    if (kept) {
      EXPECT_GE(store.find(tenant, prompt).reused_tokens,
                windows ? 0 : static_cast<int>(prompt.size()) - 1);
      EXPECT_EQ(store.find(tenant, prompt + Tokens{7}).reused_tokens,
                static_cast<int>(prompt.size()));
    }
    stored[tenant].push_back(prompt);
    ASSERT_LE(store.statistics().nbytes, kBudget);
  }
  auto statistics = store.statistics();
  EXPECT_GT(statistics.evictions, 20u);
  EXPECT_GT(num_refused, 0);
  EXPECT_GT(statistics.nbytes, kBudget / 4);
  store.trim_to(0);
  EXPECT_EQ(store.statistics().nbytes, 0u);
  EXPECT_EQ(store.statistics().num_runs, 0u);
}

TEST(PrefixStore, IsUsedFromSeveralThreads) {
  PrefixStore store({.max_bytes = 20000});
  auto work = [&](unsigned seed) {
    std::mt19937 random(seed);
    for (int i = 0; i < 40; ++i) {
      Tokens prompt = random_tokens(random, 2 + static_cast<int>(random() % 9));
      auto match = store.find("", prompt);
      if (match.reused_tokens > 0) {
        EXPECT_EQ(tokens_in(*match.cache[0]),
                  first(prompt, match.reused_tokens));
        read_tokens(*match.cache[0], {1});
      }
      store.put("", prompt, growing(prompt));
    }
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 3; ++seed) {
    threads.emplace_back(work, seed);
  }
  for (auto& thread : threads) {
    thread.join();
  }
  EXPECT_GT(store.statistics().reused_tokens, 0u);
}

// For each kind of cache: after any lookup the logits are those of a run that
// never stopped, bit for bit.
class PrefixStoreKinds : public testing::TestWithParam<std::size_t> {};

class Reader {
 public:
  Reader(const Kind& kind, const Storage& storage)
      : kind_(kind), storage_(storage) {}

  PromptCache fresh() const { return {kind_.make(), kind_.make()}; }

  // One token after the other; the logits of each.
  std::vector<mx::array> read(PromptCache& cache, const Tokens& tokens) const {
    std::vector<mx::array> logits;
    for (int token : tokens) {
      if (storage_.quantization) {
        quantize_prompt_cache(cache, 0, *storage_.quantization);
      }
      logits.push_back(model_.read(cache, {token}));
    }
    return logits;
  }

 private:
  const Kind& kind_;
  const Storage& storage_;
  ToyLayers model_;
};

TEST_P(PrefixStoreKinds, ContinuationEqualsTheColdRun) {
  const Kind& kind = kinds()[GetParam()];
  for (int storage : {0, 2}) {
    SCOPED_TRACE(std::string(kind.name) + storages()[storage].name);
    Reader reader(kind, storages()[storage]);
    PrefixStore store;
    Tokens conversation = counted(3, 26);
    PromptCache cache = reader.fresh();
    int done = 0;
    for (int stop : {5, 9, 15, 26}) {
      Tokens part(conversation.begin() + done, conversation.begin() + stop);
      reader.read(cache, part);
      done = stop;
      store.put("", first(conversation, done), cache);
    }
    int num_reused = 0;
    for (int shared : {26, 20, 9, 7}) {
      Tokens prompt = first(conversation, shared) + Tokens{1, 39, 2};
      auto match = store.find("", prompt);
      num_reused += match.reused_tokens > 0 ? 1 : 0;
      PromptCache warm = match.reused_tokens > 0 ? match.cache : reader.fresh();
      Tokens rest(prompt.begin() + match.reused_tokens, prompt.end());
      auto actual = reader.read(warm, rest);
      PromptCache cold = reader.fresh();
      auto expected = reader.read(cold, prompt);
      for (std::size_t i = 0; i < actual.size(); ++i) {
        std::size_t at = expected.size() - actual.size() + i;
        EXPECT_TRUE(same(actual[i], expected[at]))
            << shared << " tokens shared, token " << at;
      }
    }
    EXPECT_EQ(num_reused, 4);
  }
}

INSTANTIATE_TEST_SUITE_P(All,
                         PrefixStoreKinds,
                         testing::Range<std::size_t>(0, kinds().size()));

}  // namespace
}  // namespace mlxlm
