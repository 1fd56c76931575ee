// Replays the streams that the oracle made with the reference
// (detokenizers.json and tokenizers/ of the folder MLXLM_PARITY_PIECES): ids,
// segments and texts must agree exactly.
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <mlxlm/tokenizer.h>

#include "core/file.h"

namespace mlxlm {
namespace {

using nlohmann::json;

// The reference writes the zero byte of the stream "control" as the character
// that stands for it.
std::string with_zero_byte(std::string text, const std::string& stream) {
  const std::string stand_in = "\xC4\x80";
  std::size_t at = text.find(stand_in);
  if (stream == "control" && at != std::string::npos) {
    text.replace(at, stand_in.size(), 1, '\0');
  }
  return text;
}

TEST(DetokenizersParity, SegmentsAreTheReferences) {
  const char* folder = std::getenv("MLXLM_PARITY_PIECES");
  if (folder == nullptr || *folder == '\0') {
    GTEST_SKIP() << "MLXLM_PARITY_PIECES is not set";
  }
  std::filesystem::path pieces(folder);
  json kinds = json::parse(read_file(pieces / "detokenizers.json"));
  for (const auto& [kind, expected] : kinds.items()) {
    auto tokenizer = load_tokenizer((pieces / "tokenizers" / kind).string());
    EXPECT_EQ(tokenizer->vocabulary_size(), expected["vocab_size"]) << kind;
    for (const auto& [name, stream] : expected["streams"].items()) {
      SCOPED_TRACE(kind + ", " + name);
      auto tokens = stream["tokens"].get<std::vector<int>>();
      auto detokenizer = tokenizer->detokenizer();
      std::vector<std::string> segments;
      for (int token : tokens) {
        detokenizer->add_token(token);
        segments.push_back(detokenizer->last_segment());
      }
      detokenizer->finalize();
      std::vector<std::string> wanted;
      for (const json& segment : stream["segments"]) {
        wanted.push_back(with_zero_byte(segment, name));
      }
      EXPECT_EQ(segments, wanted);
      EXPECT_EQ(detokenizer->last_segment(), stream["last"].get<std::string>());
      EXPECT_EQ(detokenizer->text(), with_zero_byte(stream["text"], name));
      EXPECT_EQ(tokenizer->decode(tokens), stream["decode"].get<std::string>());
    }
  }
}

}  // namespace
}  // namespace mlxlm
