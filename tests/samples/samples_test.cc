// The samples on top of the public headers, as they stand there. They name the
// model "path/to/model" and write into the working folder.
#include <filesystem>
#include <iostream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>

#include <mlxlm/batch.h>
#include <mlxlm/cache.h>
#include <mlxlm/error.h>
#include <mlxlm/generate.h>
#include <mlxlm/model.h>
#include <mlxlm/sample.h>
#include <mlxlm/session.h>
#include <mlxlm/tokenizer.h>

#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mx = mlx::core;

namespace {

class Samples : public testing::Test {
 protected:
  void SetUp() override {
    before_ = std::filesystem::current_path();
    std::filesystem::create_directories(folder_ / "path/to/model");
    mlxlm::write_tiny_model(folder_ / "path/to/model");
    std::filesystem::current_path(folder_.path());
    auto loaded = mlxlm::load("path/to/model");
    model = loaded.model;
    tokenizer = loaded.tokenizer;
  }
  void TearDown() override {
    std::filesystem::current_path(before_);
    mlxlm::set_log_handler({});
  }

  // What a sample may use without making it.
  mlxlm::ModelPtr model;
  mlxlm::TokenizerPtr tokenizer;
  const mx::array tokens = mx::array({1, 2, 3}, {1, 3});

 private:
  mlxlm::TemporaryFolder folder_;
  std::filesystem::path before_;
};

#include "samples.inc"

}  // namespace
