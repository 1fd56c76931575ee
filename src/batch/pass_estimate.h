// How much memory a pass takes beside the weights and what caches hold.
#pragma once

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include <mlxlm/generate.h>

namespace mlxlm {

// Of one way to store caches. Nothing is computed: the graph of an unevaluated
// pass tells which arrays there are, and how long each is needed. As MLX
// dispatches nodes before those ahead of them are done, arrays count for some
// time beyond their last use.
class PassEstimate {
 public:
  PassEstimate(ModelPtr model, const GenerateOptions& options);

  // At most, of a pass over `num_tokens` of `num_rows` rows, each of which
  // holds no more than `context` tokens before it; logits aside.
  std::uint64_t bytes(std::int64_t num_tokens,
                      std::int64_t context,
                      std::size_t num_rows);

 private:
  // By the length of the context: up to one that is measured, and beyond.
  struct Line {
    double bytes = 0;
    double bytes_per_token = 0;
  };
  const Line& line(int num_tokens, int num_rows);
  PromptCache cache_of(int num_tokens) const;
  void quantize(PromptCache& cache) const;
  // The bytes that each node of the graph makes, and how long they stay.
  struct Node {
    double bytes;
    std::size_t freed_at;
  };
  // Of caches that are quantized from the start or, `begins`, after the pass.
  std::vector<Node> nodes(int num_tokens,
                          int context,
                          int num_rows,
                          bool begins) const;
  Line measure(int num_tokens, int num_rows, bool begins) const;
  static double peak(const std::vector<Node>& nodes);

  ModelPtr model_;
  GenerateOptions options_;
  std::map<std::pair<int, int>, Line> lines_;
};

// At most, for the logits of a row that has `num_positions` in a pass, and what
// becomes of them.
std::uint64_t logits_bytes(const Model& model,
                           int num_positions,
                           bool is_greedy);

}  // namespace mlxlm
