#include "generate/suffix_automaton.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

namespace mlxlm {
namespace {

// Where the last `length` tokens end before the end, the latest; 0: nowhere.
int latest_end(const std::vector<int>& text, int length) {
  const int size = static_cast<int>(text.size());
  for (int end = size - 1; end >= length; --end) {
    if (std::equal(
            text.end() - length, text.end(), text.begin() + end - length)) {
      return end;
    }
  }
  return 0;
}

int longest_match(const std::vector<int>& text) {
  int length = 0;
  while (length + 1 < static_cast<int>(text.size()) &&
         latest_end(text, length + 1) > 0) {
    ++length;
  }
  return length;
}

TEST(SuffixAutomaton, FindsTheLongestAndLatestMatch) {
  std::mt19937 random(1);
  for (int alphabet : {2, 3, 10}) {
    SuffixAutomaton automaton(1000);
    std::vector<int> text;
    for (int i = 0; i < 300; ++i) {
      const int token = static_cast<int>(random() % alphabet);
      text.push_back(token);
      automaton.append(token);
      const int length = longest_match(text);
      ASSERT_EQ(automaton.match_length(), length) << i;
      if (length == 0) {
        EXPECT_TRUE(automaton.continuation(3).empty());
        continue;
      }
      const int end = latest_end(text, length);
      auto expected = std::vector<int>(text.begin() + end, text.end());
      expected.resize(std::min<std::size_t>(expected.size(), 3));
      auto found = automaton.continuation(3);
      found.resize(expected.size());
      ASSERT_EQ(found, expected) << i;
    }
  }
}

TEST(SuffixAutomaton, GoesOnRepeating) {
  SuffixAutomaton automaton(100);
  for (int token : {7, 1, 2, 3, 1, 2, 3}) {
    automaton.append(token);
  }
  EXPECT_EQ(automaton.match_length(), 3);
  EXPECT_EQ(automaton.continuation(7), (std::vector<int>{1, 2, 3, 1, 2, 3, 1}));
}

TEST(SuffixAutomaton, ForgetsTheOlderHalf) {
  SuffixAutomaton automaton(64);
  for (int token = 0; token < 10; ++token) {
    automaton.append(token);
  }
  for (int i = 0; i < 200; ++i) {
    automaton.append(1000 + i);
  }
  EXPECT_EQ(automaton.match_length(), 0);
  automaton.append(3);  // long forgotten
  EXPECT_EQ(automaton.match_length(), 0);
  automaton.append(1199);
  EXPECT_EQ(automaton.match_length(), 1);
  EXPECT_EQ(automaton.continuation(2), (std::vector<int>{3, 1199}));
}

TEST(SuffixAutomaton, ALongTextOfOneTokenIsQuick) {
  SuffixAutomaton automaton(5000);
  for (int i = 0; i < 20000; ++i) {
    automaton.append(5);
  }
  EXPECT_EQ(automaton.continuation(4), (std::vector<int>{5, 5, 5, 5}));
}

}  // namespace
}  // namespace mlxlm
