// Whether trees of drafted tokens would give more tokens per second than lines,
// from measurements: who drafts ranks its candidates at each place of texts
// that a model wrote, and a tree is followed as far as it has the candidates
// that were right.
//
//   draft_trees MODEL DRAFT... FILE...
//     Each file is a prompt, which the model answers; or a prompt, a line
//     "=====", and the answer. DRAFT: "noise:S", the model with noise of S
//     times the weights' deviation, or "layers:N", its first N layers. N-grams
//     come last in any case.
//
// What favours trees: they are made of the measured ranks themselves, their
// masks cost nothing, and no cache has to be put in order afterwards.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <numeric>
#include <queue>
#include <string>
#include <vector>

#include <mlx/mlx.h>
#include <nlohmann/json.hpp>

#include <mlxlm/generate.h>

#include "load/checkpoint.h"
#include "load/resolve.h"
#include "models/make_model.h"

namespace {

namespace mx = mlx::core;
using mlxlm::ModelPtr;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kMaxNodes = 15;
constexpr int kCandidates = 4;
constexpr int kAnswerTokens = 200;

mx::array row_of(const std::vector<int>& tokens) {
  return mx::array(
      tokens.data(), {1, static_cast<int>(tokens.size())}, mx::int32);
}

// ---- Texts and ranks

struct Text {
  std::vector<int> tokens;
  int answer_begin = 0;
};

// For each token of an answer: the place of the right one among the candidates,
// from 0, or kCandidates; and how many there were.
struct Place {
  int rank = kCandidates;
  int count = kCandidates;
};
using Trace = std::vector<Place>;

Text read_text(const mlxlm::LoadedModel& loaded, const std::string& path) {
  std::ifstream file(path);
  std::string prompt{std::istreambuf_iterator<char>(file), {}};
  const std::string line = "\n=====\n";
  const auto cut = prompt.find(line);
  std::string answer;
  if (cut != std::string::npos) {
    answer = prompt.substr(cut + line.size());
    prompt.resize(cut);
  }
  const auto& [model, tokenizer] = loaded;
  json messages = {{{"role", "user"}, {"content", prompt}}};
  Text text{
      tokenizer->encode(tokenizer->has_chat_template()
                            ? tokenizer->apply_chat_template(messages.dump())
                            : prompt)};
  text.answer_begin = static_cast<int>(text.tokens.size());
  if (!answer.empty()) {
    auto more = tokenizer->encode(answer, false);
    text.tokens.insert(text.tokens.end(), more.begin(), more.end());
    return text;
  }
  const auto given = text.tokens;
  for (const auto& part : mlxlm::stream_generate(
           model, tokenizer, given, {.max_tokens = kAnswerTokens})) {
    text.tokens.push_back(part.token);
  }
  return text;
}

Trace trace_of_model(mlxlm::Model& draft, const Text& text) {
  auto logits = draft.forward(row_of(text.tokens));  // [1, L, V]
  Trace trace;
  for (auto i = static_cast<std::size_t>(text.answer_begin);
       i < text.tokens.size();
       ++i) {
    const int at = static_cast<int>(i) - 1;
    auto row = mx::reshape(
        mx::slice(logits, {0, at, 0}, {1, at + 1, logits.shape(2)}), {-1});
    const float right = mx::take(row, text.tokens[i]).item<float>();
    const int above =
        mx::sum(mx::astype(mx::greater(row, mx::array(right)), mx::int32))
            .item<int>();
    trace.push_back({.rank = std::min(above, kCandidates)});
  }
  return trace;
}

// What followed the longest earlier matches, newest first.
Trace trace_of_ngrams(const Text& text, int min_match) {
  const auto& t = text.tokens;
  Trace trace;
  for (int i = text.answer_begin; i < static_cast<int>(t.size()); ++i) {
    std::vector<std::pair<int, int>> matches;  // length, place after it
    for (int j = i - 1; j > 0; --j) {
      int length = 0;
      while (length < j && length < 32 &&
             t[j - 1 - length] == t[i - 1 - length])
        ++length;
      if (length >= min_match) matches.emplace_back(length, j);
    }
    std::ranges::stable_sort(
        matches, [](auto& a, auto& b) { return a.first > b.first; });
    std::vector<int> candidates;
    for (const auto& [length, j] : matches) {
      if (std::ranges::count(candidates, t[j]) == 0) candidates.push_back(t[j]);
    }
    candidates.resize(std::min<std::size_t>(candidates.size(), kCandidates));
    const auto found = std::ranges::find(candidates, t[i]);
    trace.push_back({.rank = found == candidates.end()
                                 ? kCandidates
                                 : static_cast<int>(found - candidates.begin()),
                     .count = static_cast<int>(candidates.size())});
  }
  return trace;
}

// ---- Trees

// Of each node but the root: its parent, and which candidate it is.
struct Tree {
  std::vector<int> parent{-1}, rank{0}, depth{0};

  int add(int to, int with_rank) {
    parent.push_back(to);
    rank.push_back(with_rank);
    depth.push_back(depth[to] + 1);
    return size();
  }
  int size() const { return static_cast<int>(parent.size()) - 1; }
  int child(int of, int with_rank) const {
    for (int i = of + 1; i <= size(); ++i) {
      if (parent[i] == of && rank[i] == with_rank) return i;
    }
    return -1;
  }
  int num_at(int level) const {
    return static_cast<int>(std::ranges::count(depth, level));
  }
  // Nodes that are left where the root has only so many candidates.
  int size_with(int count) const {
    std::vector<bool> is_there(parent.size(), true);
    for (int i = 1; i <= size(); ++i) {
      is_there[i] = is_there[parent[i]] && (parent[i] > 0 || rank[i] < count);
    }
    return static_cast<int>(std::ranges::count(is_there, true)) - 1;
  }
  int height() const { return *std::ranges::max_element(depth); }
};

Tree line(int num_nodes) {
  Tree tree;
  for (int i = 0; i < num_nodes; ++i) tree.add(i, 0);
  return tree;
}

// The nodes with the greatest probability, if places don't depend on each
// other (Chen et al. 2024, Sequoia), no deeper than `height`.
Tree best_tree(const std::vector<double>& shares, int num_nodes, int height) {
  struct Next {
    double probability;
    int parent, rank;
    bool operator<(const Next& other) const {
      return probability < other.probability;
    }
  };
  Tree tree;
  std::vector<double> reached{1};
  std::priority_queue<Next> queue;
  auto offer = [&](int parent, int rank) {
    if (rank < kCandidates && tree.depth[parent] < height) {
      queue.push({reached[parent] * shares[rank], parent, rank});
    }
  };
  offer(0, 0);
  while (tree.size() < num_nodes && !queue.empty()) {
    const auto [probability, parent, rank] = queue.top();
    queue.pop();
    const int node = tree.add(parent, rank);
    reached.push_back(probability);
    offer(parent, rank + 1);
    offer(node, 0);
  }
  return tree;
}

// ---- Costs, in plain steps

struct Costs {
  const char* name;
  std::vector<double> rows;  // a pass over so many, from 0 on
  double draft;              // a draft model's step of one row; 0: no model
};

double draft_seconds(const Tree& tree, const Costs& costs) {
  double sum = 0;
  // The rows of a level are a pass of the draft model; the last isn't read.
  for (int level = 0; level < tree.height(); ++level) {
    sum += costs.draft * costs.rows[tree.num_at(level)];
  }
  return sum;
}

// Tokens per plain step's time.
double speed(const std::vector<Trace>& traces,
             const Tree& tree,
             const Costs& costs) {
  double time = 0;
  double tokens = 0;
  std::vector<double> round(kCandidates + 1);
  for (int count = 0; count <= kCandidates; ++count) {
    round[count] = count == 0 ? 1
                              : costs.rows[tree.size_with(count) + 1] +
                                    draft_seconds(tree, costs);
  }
  for (const auto& trace : traces) {
    tokens += static_cast<double>(trace.size());
    for (std::size_t at = 0; at < trace.size(); ++at) {
      time += round[trace[at].count];
      if (trace[at].count == 0) continue;
      int node = 0;
      for (; at < trace.size(); ++at) {
        node = tree.child(node, trace[at].rank);
        if (node < 0) break;
      }
    }
  }
  return tokens / time;
}

void compare(const char* who,
             const std::vector<Trace>& traces,
             const Costs& costs) {
  std::vector<double> shares(kCandidates);
  double count = 0;
  for (const auto& trace : traces) {
    for (const auto& place : trace) {
      if (place.count == 0) continue;
      count += 1;
      if (place.rank < kCandidates) shares[place.rank] += 1;
    }
  }
  for (auto& share : shares) share /= count;
  double of_line = 0, of_same = 0, of_tree = 0;
  int nodes = 0;
  Tree best;
  for (int n = 1; n <= kMaxNodes; ++n) {
    const double one = speed(traces, line(n), costs);
    double same = 0;
    for (int height = 1; height <= n; ++height) {
      const auto tree = best_tree(shares, n, height);
      const double value = speed(traces, tree, costs);
      same = std::max(same, value);
      if (value > of_tree) {
        of_tree = value;
        best = tree;
      }
    }
    if (one > of_line) {
      of_line = one;
      of_same = same;
      nodes = n;
    }
  }
  std::printf(
      "| %s | %s | %.2f | %.2f | %.2f (%d) | %.2f | %.2f (%d, %d deep) | "
      "%+.1f %% |\n",
      who,
      costs.name,
      shares[0],
      shares[1] / (1 - shares[0]),
      of_line,
      nodes,
      of_same,
      of_tree,
      best.size(),
      best.height(),
      100 * (of_tree / of_line - 1));
}

// Seconds of passes over 0 to kMaxNodes + 1 rows, against one row's.
std::vector<double> measured_rows(mlxlm::Model& model) {
  auto cache = model.make_cache();
  auto pass = [&](int count) {
    auto start = Clock::now();
    std::vector<int> tokens(count, 7);
    mx::eval(mx::argmax(model.forward(row_of(tokens), cache), -1));
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  pass(256);
  std::vector<std::vector<double>> seconds(kMaxNodes + 2);
  for (int round = 0; round < 15; ++round) {
    for (int count = 1; count <= kMaxNodes + 1; ++count) {
      seconds[count].push_back(pass(count));
      mlxlm::trim_prompt_cache(cache, count);
    }
  }
  std::vector<double> rows(kMaxNodes + 2);
  for (int count = 1; count <= kMaxNodes + 1; ++count) {
    std::ranges::sort(seconds[count]);
    rows[count] = seconds[count][7] / seconds[1][7];
  }
  return rows;
}

// ---- Drafts that are often right

ModelPtr degraded(const std::string& name, const std::string& how) {
  auto checkpoint = mlxlm::load_checkpoint(mlxlm::resolve_model(name), {});
  const double amount = std::stod(how.substr(how.find(':') + 1));
  if (how.starts_with("layers:")) {
    checkpoint.config["num_hidden_layers"] = static_cast<int>(amount);
    return mlxlm::make_model(checkpoint, {.strict = false});
  }
  for (const auto& [module, q] : checkpoint.quantized) {
    auto& weights = checkpoint.weights;
    auto biases = weights.find(module + ".biases");
    auto w = mx::dequantize(weights.at(module + ".weight"),
                            weights.at(module + ".scales"),
                            biases == weights.end()
                                ? std::nullopt
                                : std::optional<mx::array>(biases->second),
                            q.group_size,
                            q.bits,
                            q.mode);
    w = mx::astype(w, mx::float32);
    auto noise = mx::random::normal(
        w.shape(), mx::float32, mx::random::key(weights.size()));
    auto scale =
        mx::multiply(mx::std(w), mx::array(static_cast<float>(amount)));
    w = mx::add(w, mx::multiply(noise, scale));
    w.eval();
    weights.insert_or_assign(module + ".weight", w);
    weights.erase(module + ".scales");
    weights.erase(module + ".biases");
  }
  checkpoint.quantized.clear();
  return mlxlm::make_model(checkpoint);
}

int run(const std::vector<std::string>& words) {
  if (words.size() < 2) {
    std::fputs("usage: see the top of benchmarks/draft_trees.cc\n", stderr);
    return 2;
  }
  auto loaded = mlxlm::load(words[0]);
  const auto rows = measured_rows(*loaded.model);
  for (int count = 1; count <= kMaxNodes + 1; ++count) {
    std::printf("%d rows %.2f%s",
                count,
                rows[count],
                count <= kMaxNodes ? ", " : "\n\n");
  }
  std::vector<std::string> drafts;
  std::vector<Text> texts;
  for (auto word = words.begin() + 1; word != words.end(); ++word) {
    const bool is_draft =
        word->starts_with("noise:") || word->starts_with("layers:");
    if (is_draft)
      drafts.push_back(*word);
    else
      texts.push_back(read_text(loaded, *word));
  }
  auto rows_at = [](double each) {
    std::vector<double> costs(kMaxNodes + 2);
    for (int i = 0; i < kMaxNodes + 2; ++i) costs[i] = 1 + each * (i - 1);
    return costs;
  };
  auto compare_all = [&](const std::string& who,
                         const std::vector<Trace>& traces,
                         double draft) {
    compare(who.c_str(), traces, {"measured", rows, draft});
    compare(who.c_str(), traces, {"5 % a row", rows_at(0.05), draft});
    compare(who.c_str(), traces, {"rows free", rows_at(0), draft});
  };
  std::puts(
      "| who drafts | costs | first right | second, where not | best line "
      "(nodes) | tree of as many | best tree | tree against line |\n"
      "|---|---|---|---|---|---|---|---|");
  for (const auto& how : drafts) {
    auto draft = degraded(words[0], how);
    std::vector<Trace> traces;
    for (const auto& text : texts) {
      traces.push_back(trace_of_model(*draft, text));
    }
    for (double step : {0.05, 0.18}) {
      const auto name = how + ", a draft " + std::to_string(step).substr(0, 4);
      compare_all(name, traces, step);
    }
  }
  for (int min_match : {1, 2, 3}) {
    const auto name = "n-grams from " + std::to_string(min_match);
    std::vector<Trace> traces;
    for (const auto& text : texts) {
      traces.push_back(trace_of_ngrams(text, min_match));
    }
    compare_all(name, traces, 0);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& fault) {
    std::fprintf(stderr, "draft_trees: %s\n", fault.what());
    return 1;
  }
}
