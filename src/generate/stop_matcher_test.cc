#include "generate/stop_matcher.h"

#include <random>
#include <string>

#include <gtest/gtest.h>

namespace mlxlm {
namespace {

std::string fed_in_pieces(StopMatcher<std::string>& matcher,
                          const std::string& text,
                          std::size_t size) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); i += size) {
    out += matcher.feed(text.substr(i, size));
  }
  return out + matcher.flush();
}

TEST(StopMatcher, EndsBeforeTheFirstThatAppears) {
  for (std::size_t size : {1, 2, 3, 100}) {
    StopMatcher<std::string> matcher({"</s>", "\n\n"});
    EXPECT_EQ(fed_in_pieces(matcher, "one < two\n<</s>three\n\n", size),
              "one < two\n<");
    EXPECT_TRUE(matcher.stopped());
    EXPECT_EQ(matcher.feed("more"), "");
    EXPECT_EQ(matcher.flush(), "");
  }
}

TEST(StopMatcher, HoldsBackWhatMayBecomeOne) {
  StopMatcher<std::string> matcher({"stop"});
  EXPECT_EQ(matcher.feed("a st"), "a ");
  EXPECT_EQ(matcher.feed("o"), "");
  EXPECT_EQ(matcher.feed("ast"), "stoa");
  EXPECT_EQ(matcher.flush(), "st");
  EXPECT_EQ(matcher.flush(), "");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcher, FindsOverlappingBeginnings) {
  StopMatcher<std::string> matcher({"aab"});
  EXPECT_EQ(fed_in_pieces(matcher, "aaaab", 1), "aa");
  EXPECT_TRUE(matcher.stopped());
  StopMatcher<std::string> several({"abcd", "bc"});
  EXPECT_EQ(fed_in_pieces(several, "xabcd", 2), "xa");
  StopMatcher<std::string> nested({"b", "ab"});
  EXPECT_EQ(fed_in_pieces(nested, "xxab", 1), "xx");
}

TEST(StopMatcher, NeverSplitsCharacters) {
  StopMatcher<std::string> matcher({"é!"});
  EXPECT_EQ(matcher.feed("caf\u00e9"), "caf");
  EXPECT_EQ(matcher.feed("\u00e8"), "\u00e9\u00e8");
  EXPECT_EQ(matcher.feed("\u00e9"), "");
  EXPECT_EQ(matcher.feed("!"), "");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopMatcher, WithoutStopsEverythingPasses) {
  StopMatcher<std::vector<int>> matcher;
  EXPECT_EQ(matcher.feed({1, 2}), (std::vector<int>{1, 2}));
  EXPECT_FALSE(matcher.stopped());
}

// Against a search in the whole text: the stop that is complete first, and of
// those the longest.
TEST(StopMatcher, AgreesWithSearchingTheWhole) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    auto text_of = [&](std::size_t length) {
      std::string text;
      for (std::size_t i = 0; i < length; ++i) {
        text += static_cast<char>('a' + random() % 2);
      }
      return text;
    };
    std::vector<std::string> stops;
    for (std::size_t i = 0; i < 1 + random() % 3; ++i) {
      stops.push_back(text_of(2 + random() % 4));
    }
    std::string text = text_of(20);
    std::string expected = text;
    bool found = false;
    for (std::size_t end = 1; end <= text.size() && !found; ++end) {
      for (const auto& stop : stops) {
        if (text.substr(0, end).ends_with(stop)) {
          found = true;
          auto before = text.substr(0, end - stop.size());
          expected = before.size() < expected.size() ? before : expected;
        }
      }
    }
    StopMatcher<std::string> matcher(stops);
    EXPECT_EQ(fed_in_pieces(matcher, text, 1 + random() % 5), expected);
    EXPECT_EQ(matcher.stopped(), found);
  }
}

}  // namespace
}  // namespace mlxlm
