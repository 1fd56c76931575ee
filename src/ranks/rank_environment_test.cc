#include "ranks/rank_environment.h"

#include <map>

#include <gtest/gtest.h>

#include "tests/support/expect_error.h"
#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using Variables = std::map<std::string, std::string>;

RankEnvironment read(const Variables& variables) {
  return read_rank_environment([&](const char* name) {
    auto found = variables.find(name);
    return found == variables.end() ? std::string() : found->second;
  });
}

class RankEnvironmentTest : public ::testing::Test {
 protected:
  std::string hostfile(const std::string& text) {
    const auto path = folder_ / "hosts.json";
    write_text(path, text);
    return path.string();
  }

  TemporaryFolder folder_;
};

TEST_F(RankEnvironmentTest, WithoutVariablesAProcessIsAlone) {
  EXPECT_EQ(read({}).size, 1);
  EXPECT_EQ(read({{"MLX_HOSTFILE", "nowhere"}}).size, 1);
  EXPECT_EQ(read({{"MLX_RANK", "0"}}).size, 1);
}

TEST_F(RankEnvironmentTest, AHostfileMakesARing) {
  const auto ring =
      read({{"MLX_RANK", "1"},
            {"MLX_HOSTFILE", hostfile(R"([["10.0.0.1:5000", "10.0.0.1:5001"],
                          ["10.0.0.2:5000", "10.0.0.2:5001"]])")}});
  EXPECT_EQ(ring.rank, 1);
  EXPECT_EQ(ring.size, 2);
  EXPECT_EQ(ring.backend, "ring");
  EXPECT_EQ(ring.host, "10.0.0.1");
}

TEST_F(RankEnvironmentTest, TheEmptyFileOfOneHostIsNoRing) {
  EXPECT_EQ(read({{"MLX_RANK", "0"}, {"MLX_HOSTFILE", hostfile("\n")}}).size,
            1);
}

TEST_F(RankEnvironmentTest, AnAddressAndAWorldMakeNccl) {
  const auto nccl = read({{"MLX_RANK", "2"},
                          {"MLX_WORLD_SIZE", "4"},
                          {"NCCL_HOST_IP", "127.0.0.1"},
                          {"NCCL_PORT", "12345"}});
  EXPECT_EQ(nccl.rank, 2);
  EXPECT_EQ(nccl.size, 4);
  EXPECT_EQ(nccl.backend, "nccl");
  EXPECT_EQ(nccl.host, "127.0.0.1");
}

TEST_F(RankEnvironmentTest, FaultsNameTheVariable) {
  const Variables nccl{{"MLX_WORLD_SIZE", "2"},
                       {"NCCL_HOST_IP", "127.0.0.1"},
                       {"NCCL_PORT", "12345"}};
  auto with = [&](const char* name, const char* value) {
    auto changed = nccl;
    changed["MLX_RANK"] = "0";
    changed[name] = value;
    return changed;
  };
  expect_error(
      ErrorKind::argument, "MLX_RANK", [&] { read(with("MLX_RANK", "2")); });
  expect_error(
      ErrorKind::argument, "MLX_RANK", [&] { read(with("MLX_RANK", "x")); });
  expect_error(ErrorKind::argument, "MLX_WORLD", [&] {
    read(with("MLX_WORLD_SIZE", "-1"));
  });
  expect_error(
      ErrorKind::argument, "ranks", [&] { read(with("MLX_WORLD_SIZE", "0")); });
  expect_error(
      ErrorKind::argument, "PORT", [&] { read(with("NCCL_PORT", "70000")); });
  for (const char* text : {"{", "{}", "[]", "[[]]", "[[1]]", R"([["host"]])"}) {
    expect_error(ErrorKind::argument, "hosts.json", [&] {
      read({{"MLX_RANK", "0"}, {"MLX_HOSTFILE", hostfile(text)}});
    });
  }
}

}  // namespace
}  // namespace mlxlm
