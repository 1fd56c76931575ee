// Replays the cases that the oracle made with the reference (samplers.json and
// .safetensors of the folder MLXLM_PARITY_PIECES): every filter, processor and
// draw must agree exactly.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/sample.h>

#include "sample/filters.h"

namespace mlxlm {
namespace {

using nlohmann::json;
using Tensors = std::unordered_map<std::string, mx::array>;

struct Pieces {
  json cases;
  Tensors tensors;
};

Pieces read_pieces(const std::filesystem::path& folder) {
  std::ifstream file(folder / "samplers.json");
  return {
      json::parse(file),
      mx::load_safetensors((folder / "samplers.safetensors").string()).first};
}

mx::array filtered(const json& piece, const mx::array& logprobs) {
  if (piece.contains("seed")) {
    seed(piece["seed"]);
  }
  const json& args = piece["args"];
  const std::string name = piece["fn"];
  if (name == "apply_top_p") {
    return apply_top_p(logprobs, args["top_p"]);
  }
  if (name == "apply_min_p") {
    return apply_min_p(logprobs, args["min_p"], args["min_tokens_to_keep"]);
  }
  if (name == "apply_top_k") {
    return apply_top_k(logprobs, args["top_k"]);
  }
  return apply_xtc(logprobs,
                   args["xtc_probability"],
                   args["xtc_threshold"],
                   args["xtc_special_tokens"]);
}

mx::array processed(const json& piece, const Tensors& tensors) {
  const json& args = piece["args"];
  PenaltyOptions options;
  for (const json& bias : args.value("logit_bias", json::array())) {
    options.logit_bias.emplace_back(bias[0], bias[1]);
  }
  options.repetition_penalty = args.value("repetition_penalty", 0.0);
  options.repetition_context_size = args.value("repetition_context_size", 20);
  options.presence_penalty = args.value("presence_penalty", 0.0);
  options.presence_context_size = args.value("presence_context_size", 20);
  options.frequency_penalty = args.value("frequency_penalty", 0.0);
  options.frequency_context_size = args.value("frequency_context_size", 20);

  const mx::array& logits = tensors.at("logits");
  mx::array row = mx::slice(logits, {0, 0}, {1, logits.shape(1)});
  for (const LogitsProcessor& process : make_logits_processors(options)) {
    row = process(tensors.at(piece["tokens"]), row);
  }
  return row;
}

mx::array drawn(const json& piece, const mx::array& logprobs) {
  const json& args = piece["args"];
  Sampler sampler =
      make_sampler({.temperature = args.value("temp", 0.0),
                    .top_p = args.value("top_p", 0.0),
                    .min_p = args.value("min_p", 0.0),
                    .min_tokens_to_keep = args.value("min_tokens_to_keep", 1),
                    .top_k = args.value("top_k", 0),
                    .xtc_probability = args.value("xtc_probability", 0.0),
                    .xtc_threshold = args.value("xtc_threshold", 0.1),
                    .xtc_special_tokens =
                        args.value("xtc_special_tokens", std::vector<int>())});
  seed(piece["seed"]);
  std::vector<mx::array> draws;
  for (int i = 0; i < piece["draws"]; ++i) {
    draws.push_back(mx::astype(sampler(logprobs), mx::int32));
  }
  return mx::stack(draws);
}

mx::array keys_of(const json& piece, int count) {
  mx::array state = mx::random::key(piece["seed"]);
  std::vector<mx::array> keys;
  for (int i = 0; i < count; ++i) {
    auto [next, key] = mx::random::split(state);
    state = next;
    keys.push_back(key);
  }
  return mx::stack(keys);
}

mx::array result_of(const json& piece, const Tensors& tensors) {
  const std::string kind = piece["kind"];
  if (kind == "filter") {
    return filtered(piece, tensors.at(piece["input"]));
  }
  if (kind == "processor") {
    return processed(piece, tensors);
  }
  if (kind == "draw") {
    return drawn(piece, tensors.at(piece["input"]));
  }
  return keys_of(piece, tensors.at(piece["output"]).shape(0));
}

TEST(SamplerParity, EveryPieceAgreesExactly) {
  const char* folder = std::getenv("MLXLM_PARITY_PIECES");
  if (folder == nullptr) {
    GTEST_SKIP() << "MLXLM_PARITY_PIECES names no folder";
  }
  Pieces pieces = read_pieces(folder);
  int compared = 0;
  for (const json& piece : pieces.cases) {
    if (!piece.contains("output")) {
      continue;
    }
    const std::string name = piece["output"];
    mx::array expected = pieces.tensors.at(name);
    mx::array actual = result_of(piece, pieces.tensors);
    EXPECT_EQ(actual.dtype(), expected.dtype()) << name;
    EXPECT_EQ(actual.shape(), expected.shape()) << name;
    EXPECT_TRUE(mx::array_equal(actual, expected).item<bool>()) << name;
    ++compared;
  }
  EXPECT_GE(compared, 90);
}

}  // namespace
}  // namespace mlxlm
