#include "load/hub.h"

#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "core/file.h"
#include "load/hub_files.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kCommit = "0123456789abcdef0123456789abcdef01234567";

Environment environment_of(std::map<std::string, std::string> values) {
  return [values](const char* name) {
    auto found = values.find(name);
    return found == values.end() ? "" : found->second;
  };
}

void write(const fs::path& path, std::string_view content) {
  fs::create_directories(path.parent_path());
  write_file_atomically(path, content);
}

// A cache with one model, laid out as huggingface_hub does.
class HubCache : public ::testing::Test {
 protected:
  HubCache() {
    options_.cache_folder = folder_ / "hub";
    options_.offline = true;
    options_.endpoint = "http://127.0.0.1:1";
  }

  fs::path storage() { return options_.cache_folder / "models--org--name"; }
  fs::path snapshot() { return storage() / "snapshots" / kCommit; }

  void add_file(const std::string& name, std::string_view content) {
    std::string etag = "etag-" + fs::path(name).filename().string();
    write(storage() / "blobs" / etag, content);
    fs::path pointer = snapshot() / name;
    fs::create_directories(pointer.parent_path());
    fs::path up = name.find('/') == name.npos ? "../.." : "../../..";
    fs::create_symlink(up / "blobs" / etag, pointer);
  }

  void add_model() {
    write(storage() / "refs/main", kCommit);
    add_file("config.json", "{}");
    add_file("tokenizer.json", "{}");
    add_file("model.safetensors", "weights");
  }

  TemporaryFolder folder_;
  HubOptions options_;
  HubId id_{"org/name", "main"};
};

TEST(HubId, IsOrganisationAndName) {
  auto id = parse_hub_id("mlx-community/Llama-3.2_1B");
  ASSERT_TRUE(id);
  EXPECT_EQ(id->repository, "mlx-community/Llama-3.2_1B");
  EXPECT_EQ(id->revision, "main");
  EXPECT_EQ(id->text(), "mlx-community/Llama-3.2_1B");
}

TEST(HubId, MayNameARevision) {
  auto id = parse_hub_id("org/name@refs/pr/1");
  ASSERT_TRUE(id);
  EXPECT_EQ(id->revision, "refs/pr/1");
  EXPECT_EQ(id->text(), "org/name@refs/pr/1");
}

TEST(HubId, RefusesWhatTheHubRefuses) {
  for (const char* name : {"",
                           "name",
                           "/name",
                           "org/",
                           "org/a/b",
                           "../name",
                           "org/..",
                           "org/-a",
                           "org/a--b",
                           "org/a..b",
                           "org/a.git",
                           "org/a b",
                           "org/name@",
                           "org/name@../x",
                           "org/name@/x",
                           "org/name@a//b",
                           "org/name@a\nb"}) {
    EXPECT_FALSE(parse_hub_id(name)) << name;
  }
  EXPECT_FALSE(parse_hub_id("org/" + std::string(97, 'a')));
}

TEST(HubOptions, DefaultToTheUsersCache) {
  auto options = hub_options(environment_of({{"HOME", "/home/me"}}));
  EXPECT_EQ(options.cache_folder, "/home/me/.cache/huggingface/hub");
  EXPECT_EQ(options.endpoint, "https://huggingface.co");
  EXPECT_EQ(options.token, "");
  EXPECT_FALSE(options.offline);
}

TEST(HubOptions, FollowTheEnvironment) {
  std::map<std::string, std::string> values = {{"HOME", "/home/me"},
                                               {"XDG_CACHE_HOME", "/xdg"}};
  auto cache = [&] { return hub_options(environment_of(values)).cache_folder; };
  EXPECT_EQ(cache(), "/xdg/huggingface/hub");
  values["HF_HOME"] = "~/hf";
  EXPECT_EQ(cache(), "/home/me/hf/hub");
  values["HUGGINGFACE_HUB_CACHE"] = "/old";
  EXPECT_EQ(cache(), "/old");
  values["HF_HUB_CACHE"] = "/new";
  EXPECT_EQ(cache(), "/new");

  values["HF_ENDPOINT"] = "https://mirror.example//";
  values["HF_HUB_OFFLINE"] = "yes";
  values["HF_HUB_DOWNLOAD_TIMEOUT"] = "3";
  auto options = hub_options(environment_of(values));
  EXPECT_EQ(options.endpoint, "https://mirror.example");
  EXPECT_TRUE(options.offline);
  EXPECT_EQ(options.stall_timeout, std::chrono::seconds(3));
  values["HF_HUB_OFFLINE"] = "0";
  EXPECT_FALSE(hub_options(environment_of(values)).offline);
}

TEST(HubOptions, TakeTheTokenFromVariableOrFile) {
  TemporaryFolder folder;
  std::map<std::string, std::string> values = {
      {"HF_HOME", folder.path().string()}};
  auto token = [&] { return hub_options(environment_of(values)).token; };
  EXPECT_EQ(token(), "");
  write(folder / "token", "  hf_file\n");
  EXPECT_EQ(token(), "hf_file");
  write(folder / "other", "hf_other");
  values["HF_TOKEN_PATH"] = folder / "other";
  EXPECT_EQ(token(), "hf_other");
  values["HUGGING_FACE_HUB_TOKEN"] = "hf_old";
  EXPECT_EQ(token(), "hf_old");
  values["HF_TOKEN"] = " hf_new ";
  EXPECT_EQ(token(), "hf_new");
  values["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1";
  EXPECT_EQ(token(), "");
}

TEST(HubFiles, AreThoseAModelNeeds) {
  for (const char* name : {"config.json",
                           "sub/config.json",
                           "model.safetensors",
                           "merges.txt",
                           "model-00001-of-00002.safetensors",
                           "tokenizer.model",
                           "a.tiktoken",
                           "chat_template.jinja"}) {
    EXPECT_TRUE(is_wanted_file(name)) << name;
  }
  for (const char* name :
       {"README.md", "model.bin", "modeling.py", "consolidated.safetensors"}) {
    EXPECT_FALSE(is_wanted_file(name)) << name;
  }
}

TEST(HubFiles, StayBelowTheirFolder) {
  EXPECT_TRUE(is_safe_file_name("a/b..c"));
  for (const char* name : {"",
                           "/a",
                           "a/",
                           "a//b",
                           "..",
                           "../a",
                           "a/..",
                           "a/./b",
                           "a\\b",
                           "a\nb"}) {
    EXPECT_FALSE(is_safe_file_name(name)) << name;
  }
}

TEST_F(HubCache, FindsASnapshotByBranchAndCommit) {
  add_model();
  EXPECT_EQ(find_snapshot(id_, options_), snapshot());
  EXPECT_EQ(find_snapshot({"org/name", kCommit}, options_), snapshot());
  EXPECT_EQ(find_snapshot({"org/name", "dev"}, options_), std::nullopt);
  EXPECT_EQ(find_snapshot({"org/other", "main"}, options_), std::nullopt);
  EXPECT_EQ(fetch_snapshot(id_, options_, {}), snapshot());
  EXPECT_THAT(cached_repositories(options_), ElementsAre("org/name"));
}

TEST_F(HubCache, SeesWhatIsMissing) {
  add_model();
  fs::remove(storage() / "blobs/etag-tokenizer.json");
  EXPECT_FALSE(find_snapshot(id_, options_));
}

TEST_F(HubCache, WantsEveryShard) {
  add_model();
  fs::remove(snapshot() / "model.safetensors");
  EXPECT_FALSE(find_snapshot(id_, options_));
  add_file("model.safetensors.index.json",
           R"({"weight_map": {"a": "model-1.safetensors",
                              "b": "model-2.safetensors"}})");
  add_file("model-1.safetensors", "1");
  EXPECT_FALSE(find_snapshot(id_, options_));
  add_file("model-2.safetensors", "2");
  EXPECT_EQ(find_snapshot(id_, options_), snapshot());
}

TEST_F(HubCache, HeedsTheListOfFilesIfThereIsOne) {
  add_model();
  write(storage() / "trees" / (std::string(kCommit) + ".json"),
        R"({"format_version": 1, "files": {"config.json": {"size": 2},
            "README.md": {"size": 1}, "chat_template.jinja": {"size": 1}}})");
  EXPECT_FALSE(find_snapshot(id_, options_));
  add_file("chat_template.jinja", "x");
  EXPECT_EQ(find_snapshot(id_, options_), snapshot());
}

TEST_F(HubCache, IgnoresBrokenRefs) {
  add_model();
  for (const char* text : {"", "main", "../../../..", "0123"}) {
    write(storage() / "refs/main", text);
    EXPECT_FALSE(find_snapshot(id_, options_)) << text;
  }
  write(storage() / "refs/main", std::string(kCommit) + "\n");
  EXPECT_TRUE(find_snapshot(id_, options_));
}

TEST_F(HubCache, OfflineSaysWhatIsMissingAndWhatIsNear) {
  add_model();
  try {
    fetch_snapshot({"org/nam", "main"}, options_, {});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::file);
    EXPECT_THAT(error.what(), HasSubstr("org/nam is not in the hub cache"));
    EXPECT_THAT(error.what(), HasSubstr("did you mean org/name"));
    EXPECT_THAT(error.what(), HasSubstr("HF_HUB_OFFLINE"));
  }
  fs::remove(snapshot() / "model.safetensors");
  try {
    fetch_snapshot(id_, options_, {});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("only partly in the hub cache"));
  }
}

}  // namespace
}  // namespace mlxlm
