// Two processes that run one model, over MLX's ring on this machine.
#include <chrono>
#include <csignal>

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "models/random_checkpoint.h"
#include "tests/cli/cli_fixture.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class CliRanks : public CliTest {
 protected:
  void SetUp() override { environment_["MLX_LM_CPU_MODE"] = "exact"; }

  std::vector<std::string> launched(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(),
                     {"launch", "-n", "2", "--backend", "ring", "--"});
    return arguments;
  }

  std::vector<std::string> generating(
      const std::vector<std::string>& more = {}) const {
    std::vector<std::string> all{"generate",
                                 "--model",
                                 model(),
                                 "--tokens",
                                 "72,101,108,108,111",
                                 "--temp",
                                 "0",
                                 "-m",
                                 "12",
                                 "--ignore-eos",
                                 "--json",
                                 "--top-logprobs",
                                 "1"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  void write_random(const json& config) {
    mlx::core::save_safetensors(model() + "/model.safetensors",
                                random_checkpoint(config, 1).weights,
                                {{"format", "mlx"}});
    write_text(model() + "/config.json", config.dump());
  }

  void expect_equal_answers(const std::vector<std::string>& more = {}) {
    const auto alone = json_of(run(generating(more)));
    const auto together = json_of(run(launched(generating(more))));
    EXPECT_EQ(alone["tokens"], together["tokens"]);
    for (std::size_t i = 0; i < alone["logprobs"].size(); ++i) {
      EXPECT_NEAR(alone["logprobs"][i]["logprob"].get<double>(),
                  together["logprobs"][i]["logprob"].get<double>(),
                  1e-4);
    }
  }
};

TEST_F(CliRanks, AnswerAsOneProcessDoes) {
  write_model({.tied_head = false});
  expect_equal_answers();
}

// Attention and MLP side by side: two sums that don't need each other.
TEST_F(CliRanks, AnswerWithParallelParts) {
  write_model();
  auto config = tiny_config();
  config.update({{"model_type", "cohere"},
                 {"layer_norm_eps", 1e-5},
                 {"logit_scale", 0.25},
                 {"use_qk_norm", false}});
  write_random(config);
  expect_equal_answers();
}

TEST_F(CliRanks, AnswerWithQuantizedWeightsAndCaches) {
  write_model({.hidden_size = 128, .quantize_bits = 4, .num_shards = 2});
  expect_equal_answers({"--kv-bits", "8", "--kv-group-size", "32"});
}

TEST_F(CliRanks, AnswerWithExperts) {
  write_model();
  auto config = tiny_config();
  config.update({{"model_type", "qwen3_moe"},
                 {"head_dim", 16},
                 {"num_experts", 4},
                 {"num_experts_per_tok", 2},
                 {"decoder_sparse_step", 1},
                 {"moe_intermediate_size", 32},
                 {"mlp_only_layers", json::array()},
                 {"norm_topk_prob", true}});
  write_random(config);
  expect_equal_answers();
}

TEST_F(CliRanks, DrawTheSameWithoutASeed) {
  write_model();
  // They would wait for each other for ever if one ended sooner.
  const auto result = run(launched({"generate",
                                    "--model",
                                    model(),
                                    "--prompt",
                                    "-",
                                    "--temp",
                                    "1",
                                    "-m",
                                    "20"}),
                          "Hi");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("Generation: "));
}

TEST_F(CliRanks, RefuseHeadsThatCantBeSplit) {
  write_model({.hidden_size = 48, .num_heads = 3, .num_kv_heads = 3});
  const auto result = run(launched(generating()));
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.output, "");
  EXPECT_THAT(result.errors,
              HasSubstr("can't run on 2 ranks: 3 heads can't be split evenly"));
}

TEST_F(CliRanks, RefuseWhatOneProcessDoes) {
  write_model();
  environment_["MLX_RANK"] = "0";
  environment_["MLX_WORLD_SIZE"] = "2";
  environment_["NCCL_HOST_IP"] = "127.0.0.1";
  environment_["NCCL_PORT"] = "1";
  for (const char* verb : {"chat", "info", "batch"}) {
    const auto result = run({verb, "--model", model()});
    EXPECT_EQ(result.exit_code, 1) << verb;
    EXPECT_THAT(result.errors, HasSubstr("doesn't work on several ranks"));
  }
}

// A port that nobody listens at now.
int free_port() {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(::bind(socket, any, length), 0);
  EXPECT_EQ(::getsockname(socket, any, &length), 0);
  ::close(socket);
  return ntohs(address.sin_port);
}

TEST_F(CliRanks, EndWhenOneIsKilled) {
  write_model({.num_layers = 1});
  json hosts;
  for (int i = 0; i < 2; ++i) {
    hosts.push_back({"127.0.0.1:" + std::to_string(free_port())});
  }
  write_text(path("hosts.json"), hosts.dump());
  environment_["MLX_HOSTFILE"] = path("hosts.json");
  const auto endless = endless_command();
  environment_["MLX_RANK"] = "0";
  Process first(endless, process_options());
  environment_["MLX_RANK"] = "1";
  Process second(endless, process_options());
  first.wait_for("AAAA");
  const auto killed = std::chrono::steady_clock::now();
  second.send(SIGKILL);
  const auto result = first.finish();
  EXPECT_LT(std::chrono::steady_clock::now() - killed, std::chrono::seconds(5));
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.errors,
              HasSubstr("rank 0 of 2 gives up: rank 1 has ended before its "
                        "work was done"));
}

}  // namespace
}  // namespace mlxlm
