#include "batch/pass_estimate.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <unordered_set>

#include <mlx/mlx.h>

#include "cache/batch_cache.h"
#include "cache/rows.h"
#include "generate/options.h"
#include "generate/prefill.h"
#include "kernels/mlx_compat/views.h"

namespace mlxlm {
namespace {

// MLX dispatches ten tasks of ten nodes before it waits for the first.
constexpr std::size_t kNodesAhead = 110;
// More rows count like so many.
constexpr int kMostRows = 2;

using Ids = std::unordered_set<std::uintptr_t>;

// Of the same shape, whose place it can take.
bool has_input_like(const mx::array& array) {
  return array.has_primitive() &&
         std::ranges::any_of(array.inputs(), [&](const mx::array& input) {
           return input.shape() == array.shape();
         });
}

bool is_computed(const mx::array& array, const Ids& outside) {
  return array.has_primitive() && !outside.contains(array.id()) &&
         array.status() == mx::array::Status::unscheduled;
}

// The nodes that `ends` need, inputs first; of several outputs of a node the
// one that was met first.
std::vector<mx::array> in_order(const std::vector<mx::array>& ends,
                                const Ids& outside) {
  std::vector<mx::array> order;
  Ids seen;
  std::vector<std::pair<mx::array, std::size_t>> path;
  auto visit = [&](const mx::array& array) {
    if (!is_computed(array, outside) || !seen.insert(array.id()).second) return;
    for (const auto& sibling : array.siblings()) seen.insert(sibling.id());
    path.emplace_back(array, 0);
  };
  for (const auto& end : ends) {
    visit(end);
    while (!path.empty()) {
      auto& [array, next] = path.back();
      if (next < array.inputs().size()) {
        const mx::array input = array.inputs()[next++];
        visit(input);
      } else {
        order.push_back(array);
        path.pop_back();
      }
    }
  }
  return order;
}

}  // namespace

PassEstimate::PassEstimate(ModelPtr model, const GenerateOptions& options)
    : model_(std::move(model)), options_(options) {}

PromptCache PassEstimate::cache_of(int num_tokens) const {
  PromptCache cache = model_->make_cache(options_.max_kv_size);
  if (num_tokens > 0) {
    model_->forward(token_row(std::vector<int>(num_tokens, 0)), cache);
  }
  return cache;
}

void PassEstimate::quantize(PromptCache& cache) const {
  const auto quantization = kv_quantization(options_);
  for (auto& layer : cache) {
    auto quantized =
        quantization ? layer->to_quantized(*quantization) : nullptr;
    if (quantized) layer = std::move(quantized);
  }
}

std::vector<PassEstimate::Node> PassEstimate::nodes(int num_tokens,
                                                    int context,
                                                    int num_rows,
                                                    bool begins) const {
  std::vector<PromptCache> caches;
  std::vector<const PromptCache*> rows;
  std::vector<int> counts;
  std::vector<mx::array> held;
  for (int i = 0; i < num_rows; ++i) {
    caches.push_back(cache_of(context));
    if (!begins) quantize(caches.back());
    for (const auto& layer : caches.back()) layer->append_arrays_to(held);
    counts.push_back(i == 0 ? num_tokens - num_rows + 1 : 1);
  }
  Ids outside;
  for (const auto& array : in_order(held, {})) {
    outside.insert(array.id());
    for (const auto& sibling : array.siblings()) outside.insert(sibling.id());
  }
  for (const auto& cache : caches) rows.push_back(&cache);
  const auto tokens = token_row(std::vector<int>(num_tokens, 0));
  // With embeddings it goes layer by layer, which takes the most.
  std::vector<mx::array> ends{model_->forward_at(
      {0}, tokens, join_rows(rows, counts), model_->embed(tokens))};
  if (begins)
    std::ranges::for_each(caches, [&](auto& each) { quantize(each); });
  Ids appended_to;  // in place
  for (const auto& cache : caches) {
    for (const auto& layer : cache) {
      const std::size_t first = ends.size();
      layer->append_arrays_to(ends);
      if (!layer->capabilities().attends) continue;
      for (std::size_t i = first; i < ends.size(); ++i) {
        if (has_input_like(ends[i])) appended_to.insert(ends[i].id());
      }
    }
  }

  std::vector<Node> nodes;
  std::unordered_map<std::uintptr_t, std::size_t> place;
  for (const auto& array : in_order(ends, outside)) {
    double bytes = 0;
    auto add = [&](const mx::array& output) {
      place[output.id()] = nodes.size();
      if (!kernels::is_view(array) && !appended_to.contains(output.id())) {
        bytes += static_cast<double>(output.nbytes());
      }
    };
    add(array);
    for (const auto& sibling : array.siblings()) add(sibling);
    // What a view shows stays as long as the view.
    for (const auto& input : array.inputs()) {
      auto found = place.find(input.id());
      if (found != place.end()) nodes[found->second].freed_at = nodes.size();
    }
    nodes.push_back({bytes, nodes.size()});
  }
  return nodes;
}

double PassEstimate::peak(const std::vector<Node>& nodes) {
  std::vector<double> freed(nodes.size() + kNodesAhead + 1, 0.0);
  double now = 0;
  double most = 0;
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    now += nodes[i].bytes - freed[i];
    freed[nodes[i].freed_at + kNodesAhead] += nodes[i].bytes;
    most = std::max(most, now);
  }
  return most;
}

PassEstimate::Line PassEstimate::measure(int num_tokens,
                                         int num_rows,
                                         bool begins) const {
  const int limit = model_->context_tokens() > 0
                        ? std::max(model_->context_tokens() - num_tokens, 0)
                        : 2 * kCacheStepTokens;
  // Caches that are full, so that they grow in the pass.
  const int from = std::min(kCacheStepTokens, limit);
  const int to = std::min(2 * kCacheStepTokens, limit);
  auto near = nodes(num_tokens, from, num_rows, begins);
  Line line{.bytes = peak(near)};
  if (to <= from) return line;
  auto far = nodes(num_tokens, to, num_rows, begins);
  double more = peak(far) - line.bytes;
  if (far.size() == near.size()) {
    for (std::size_t i = 0; i < far.size(); ++i) {
      far[i].bytes = std::max(far[i].bytes - near[i].bytes, 0.0);
    }
    more = peak(far);
  }
  line.bytes_per_token = std::max(more, 0.0) / (to - from);
  return line;
}

const PassEstimate::Line& PassEstimate::line(int num_tokens, int num_rows) {
  auto [found, is_new] = lines_.try_emplace({num_tokens, num_rows});
  if (!is_new) return found->second;
  Line line = measure(num_tokens, num_rows, false);
  if (kv_quantization(options_)) {
    const Line first = measure(num_tokens, num_rows, true);
    line.bytes = std::max(line.bytes, first.bytes);
    line.bytes_per_token =
        std::max(line.bytes_per_token, first.bytes_per_token);
  }
  return found->second = line;
}

std::uint64_t PassEstimate::bytes(std::int64_t num_tokens,
                                  std::int64_t context,
                                  std::size_t num_rows) {
  if (num_rows == 0) return 0;
  const int rows = num_rows == 1 ? 1 : kMostRows;
  // Models with a table of positions can't be asked for more.
  const int limit = model_->context_tokens();
  if (limit > rows && num_tokens > limit) {
    return bytes(limit, context, num_rows) *
           static_cast<std::uint64_t>(num_tokens) /
           static_cast<std::uint64_t>(limit);
  }
  const auto count = static_cast<int>(std::max<std::int64_t>(num_tokens, rows));
  // A peak is a convex function of the tokens, which lies below these lines.
  int below = rows;
  int above = rows;
  while (above < count) {
    below = above;
    above = above < 16 ? 16 : above * 8;
  }
  if (limit > rows) above = std::min(above, limit);
  auto at = [&](int tokens) {
    const Line& found = line(tokens, rows);
    return found.bytes +
           found.bytes_per_token * static_cast<double>(std::max<std::int64_t>(
                                       context - kCacheStepTokens, 0));
  };
  double bytes = at(above);
  if (count < above) {
    const double share = double(count - below) / (above - below);
    bytes = bytes * share + at(below) * (1 - share);
  }
  return static_cast<std::uint64_t>(std::ceil(bytes));
}

std::uint64_t logits_bytes(const Model& model,
                           int num_positions,
                           bool is_greedy) {
  // Logits, log-probabilities, those of the pass before, and what a draw of
  // one row sorts and sums.
  const std::uint64_t arrays = is_greedy ? 6 : 20;
  return arrays * static_cast<std::uint64_t>(num_positions) *
         static_cast<std::uint64_t>(model.vocabulary_size()) * sizeof(float);
}

}  // namespace mlxlm
