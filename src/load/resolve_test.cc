#include "load/resolve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "core/file.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Resolve : public ::testing::Test {
 protected:
  Resolve() {
    fs::create_directories(folder_ / "work/my-model");
    fs::create_directories(folder_ / "models");
    write_file_atomically(folder_ / "work/tiny.gguf", "GGUF");
    write_file_atomically(folder_ / "work/notes.txt", "no model");
    options_.models_folder = folder_ / "models";
    options_.hub.cache_folder = folder_ / "hub";
    options_.hub.offline = true;
  }

  fs::path resolve(const std::string& name, const std::string& revision = "") {
    return resolve_model(name, revision, {}, options_);
  }
  std::string in_work(const std::string& name) {
    return (folder_ / "work" / name).string();
  }

  // The message of the error of this kind.
  std::string error_of(ErrorKind kind,
                       const std::string& name,
                       const std::string& revision = "") {
    try {
      resolve(name, revision);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "no error";
    return "";
  }

  TemporaryFolder folder_;
  ResolveOptions options_;
};

TEST_F(Resolve, AFolderOrGgufFileIsItself) {
  EXPECT_EQ(resolve(in_work("my-model")), in_work("my-model"));
  EXPECT_EQ(resolve(in_work("my-model/")), in_work("my-model/"));
  EXPECT_EQ(resolve(in_work("tiny.gguf")), in_work("tiny.gguf"));
}

TEST_F(Resolve, AnotherFileIsNoModel) {
  EXPECT_THAT(error_of(ErrorKind::argument, in_work("notes.txt")),
              HasSubstr("a model is a folder"));
}

TEST_F(Resolve, AMissingPathNamesItsNeighbour) {
  EXPECT_THAT(error_of(ErrorKind::file, in_work("my-modle")),
              AllOf(HasSubstr("there is no folder or file"),
                    HasSubstr("did you mean " + in_work("my-model") + "?")));
  EXPECT_THAT(error_of(ErrorKind::file, in_work("tini.gguf")),
              HasSubstr("did you mean " + in_work("tiny.gguf") + "?"));
  EXPECT_THAT(error_of(ErrorKind::file, "/no-such-folder/x/y/"),
              HasSubstr("there is no folder or file /no-such-folder/x/y/"));
  EXPECT_THAT(error_of(ErrorKind::file, "missing.gguf"),
              HasSubstr("there is no folder or file missing.gguf"));
}

TEST_F(Resolve, ADefaultModelIsAFileOfTheModelsFolder) {
  EXPECT_THAT(error_of(ErrorKind::file, "smollm2-135m-instruct"),
              AllOf(HasSubstr("SmolLM2-135M-Instruct.Q4_1.gguf is missing"),
                    HasSubstr("scripts/fetch-model smollm2-135m-instruct")));
  for (const DefaultModel& model : default_models()) {
    fs::path file = options_.models_folder / model.file_name;
    write_file_atomically(file, "GGUF");
    EXPECT_EQ(resolve(model.name), file);
  }
}

TEST_F(Resolve, AnUnknownWordNamesTheDefaults) {
  EXPECT_THAT(error_of(ErrorKind::argument, "gemma-3-207m"),
              AllOf(HasSubstr("is no model"),
                    HasSubstr("smollm2-135m-instruct, gemma-3-270m"),
                    HasSubstr("org/name[@revision]"),
                    HasSubstr("did you mean gemma-3-270m?")));
  EXPECT_THAT(error_of(ErrorKind::argument, ""), HasSubstr("empty"));
}

TEST_F(Resolve, AHubIdSaysThatNoFolderHasItsName) {
  EXPECT_THAT(error_of(ErrorKind::file, "org/name"),
              AllOf(HasSubstr("org/name is not in the hub cache"),
                    HasSubstr("nor is there a folder org/name")));
}

TEST_F(Resolve, ARevisionIsGivenOnce) {
  EXPECT_THAT(error_of(ErrorKind::argument, "org/name@a", "b"),
              HasSubstr("give one only"));
  EXPECT_THAT(error_of(ErrorKind::argument, "org/name", "../b"),
              HasSubstr("can't be the revision"));
  EXPECT_THAT(error_of(ErrorKind::file, "org/name", "b"),
              HasSubstr("org/name@b is not in the hub cache"));
}

}  // namespace
}  // namespace mlxlm
