#include "load/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using testing::HasSubstr;

TEST(LoadCheckpoint, TakesAFolder) {
  TemporaryFolder folder;
  write_tiny_model(folder.path());
  Checkpoint loaded = load_checkpoint(
      folder.path().string(), {.config_overrides = R"({"rope_theta": 2})"});
  EXPECT_EQ(loaded.config["rope_theta"], 2);
  EXPECT_EQ(loaded.weights.size(), tiny_weights().size());
}

TEST(LoadCheckpoint, NamesAFolderThatIsMissing) {
  TemporaryFolder folder;
  std::string name = (folder / "no/such/model").string();
  try {
    load_checkpoint(name, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(name));
  }
}

}  // namespace
}  // namespace mlxlm
