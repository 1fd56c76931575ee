#include "core/nearest.h"

#include <vector>

#include <gtest/gtest.h>

namespace mlxlm {
namespace {

TEST(Nearest, CountsEdits) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("abc", ""), 3u);
}

TEST(Nearest, FindsATypingErrorAndNothingForAStrangeName) {
  std::vector<std::string> names{"llama", "qwen2", "qwen3", "gemma"};
  EXPECT_EQ(nearest_name("lama", names), "llama");
  EXPECT_EQ(nearest_name("qwen_3", names), "qwen3");
  EXPECT_EQ(nearest_name("zzzzzzzz", names), std::nullopt);
  EXPECT_EQ(nearest_name(std::string(100000, 'a'), names), std::nullopt);
}

}  // namespace
}  // namespace mlxlm
