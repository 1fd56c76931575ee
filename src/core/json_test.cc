#include "core/json.h"

#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string error_of(const std::string& text, const JsonLimits& limits = {}) {
  try {
    parse_json(text, "the text", limits);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::format);
    return error.what();
  }
  return "no error";
}

TEST(Json, NamesTheTextAndThePlace) {
  EXPECT_THAT(error_of("{\"a\": 1,\n oops}"),
              AllOf(HasSubstr("the text is not valid JSON"),
                    HasSubstr("line 2, column")));
  EXPECT_THAT(error_of(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of("{} {}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of("\"\xff\""), HasSubstr("not valid JSON"));
  EXPECT_LT(error_of("[\"" + std::string(100000, 'x')).size(), 500u);
}

TEST(Json, DepthAndSizeAreLimited) {
  std::string deep = std::string(64, '[') + std::string(64, ']');
  EXPECT_NO_THROW(parse_json(deep, "x"));
  EXPECT_THAT(error_of("[" + deep + "]"), HasSubstr("more than 64 levels"));
  EXPECT_THAT(error_of(std::string(1000000, '[')), HasSubstr("levels"));
  EXPECT_THAT(error_of("[1, 2, 3]", {.max_bytes = 4}),
              HasSubstr("has 9 bytes, more than the 4"));
}

TEST(Json, ReadsPythonsNonFiniteNumbersWhereAllowed) {
  std::string text =
      R"({"a": [0.0, Infinity], "b": -Infinity, "c": NaN,
          "d": {"__float__": "Infinity"}, "e": "NaN \" Infinity",
          "f": {"__float__": "1"}})";
  nlohmann::json value = parse_json(text, "x", {.non_finite = true});
  EXPECT_TRUE(std::isinf(value["a"][1].get<double>()));
  EXPECT_LT(value["b"].get<double>(), 0);
  EXPECT_TRUE(std::isnan(value["c"].get<double>()));
  EXPECT_TRUE(value["d"].is_number());
  EXPECT_EQ(value["e"], "NaN \" Infinity");
  EXPECT_TRUE(value["f"].is_object());
  EXPECT_THAT(error_of(text), HasSubstr("not valid JSON"));
}

TEST(Json, DescribesValuesBriefly) {
  EXPECT_EQ(describe_json("x"), "\"x\"");
  EXPECT_EQ(describe_json(1.5), "1.5");
  EXPECT_EQ(describe_json(nullptr), "null");
  EXPECT_EQ(describe_json({1, 2}), "a list");
  EXPECT_EQ(describe_json(nlohmann::json::object()), "an object");
  EXPECT_LT(describe_json(std::string(1000, 'x')).size(), 80u);
}

TEST(Json, ReadsFiles) {
  TemporaryFolder folder;
  EXPECT_THROW(read_json_file(folder / "none.json"), Error);
}

}  // namespace
}  // namespace mlxlm
