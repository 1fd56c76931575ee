// Every feature with every other, alone and in a batch: the answer is that of a
// plain loop, or a refusal. docs/COMPOSITION.md holds what comes of it;
// MLXLM_WRITE_COMPOSITION=1 writes it there.
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <tuple>

#include <gtest/gtest.h>

#include "batch/batch_fixture.h"
#include "batch/composition_features.h"
#include "tests/support/test_data.h"

namespace mlxlm::composition {
namespace {

using Features = std::vector<const Feature*>;

// A cell of a table.
struct Cell {
  std::string name;
  Case run;
  Outcome expected;
  Outcome outcome;
  std::string refusal;
};

class Composition : public ::testing::Test {
 protected:
  // Models are shared, as rows of a batch have the same.
  std::shared_ptr<ToyModel> model(const ToyOptions& toy) {
    auto& model = models_[{toy.window_tokens, toy.recurrent, toy.chunk_tokens}];
    if (!model) model = std::make_shared<ToyModel>(toy);
    return model;
  }

  Cell cell(const Features& all, const std::string& prompt = kPrompt) {
    auto run_of_meaning = [&] {
      Case run;
      run.prompt = bytes_of(prompt);
      for (auto* feature : all) {
        if (feature->means) feature->means(run);
      }
      run.model = model(run.toy);
      return run;
    };
    Cell cell;
    std::string meaning = prompt;
    for (auto* feature : all) {
      cell.name += (cell.name.empty() ? "" : " + ") + feature->name;
      if (feature->means) meaning += " + " + feature->name;
    }
    auto [found, is_new] = loops_.try_emplace(meaning);
    if (is_new) found->second = plain_loop(run_of_meaning());
    cell.expected = found->second;
    cell.run = run_of_meaning();
    for (auto* feature : all) {
      if (feature->ends) feature->ends(cell.run, cell.expected.tokens);
    }
    cut(cell.run, cell.expected);
    for (auto* feature : all) {
      if (feature->how) feature->how(cell.run);
    }
    return cell;
  }

  // With a feature itself, then with those before it.
  std::vector<Cell> pairs() {
    std::vector<Cell> cells;
    for (std::size_t i = 0; i < features_.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        cells.push_back(cell({&features_[j], &features_[i]}));
      }
      cells.push_back(cell({&features_[i]}));
    }
    return cells;
  }

  static void take(Cell& cell, const GenerationResponse& part) {
    Outcome& outcome = cell.outcome;
    outcome.text += part.text;
    outcome.reason = part.finish_reason;
    if (part.token < 0) return;
    outcome.tokens.push_back(part.token);
    outcome.logprobs.push_back(part.logprobs.value_or(mx::array(0.0f)));
    if (static_cast<int>(outcome.tokens.size()) == cell.run.cancel_after) {
      cell.run.options.cancel.cancel();
    }
  }

  static void run_alone(Cell& cell) {
    const Case& run = cell.run;
    try {
      for (const auto& part : stream_generate(
               run.model, run.tokenizer(), run.prompt, run.options)) {
        take(cell, part);
      }
    } catch (const Error& error) {
      note_refusal(cell, error);
    }
  }

  static void note_refusal(Cell& cell, const Error& error) {
    EXPECT_TRUE(error.kind() == ErrorKind::argument ||
                error.kind() == ErrorKind::unsupported)
        << cell.name << ": " << error.what();
    EXPECT_TRUE(cell.outcome.tokens.empty()) << cell.name;
    cell.refusal = error.what();
  }

  // All that have the same model and end tokens, at once.
  static void run_in_batch(const std::vector<Cell*>& cells,
                           const BatchOptions& options,
                           BatchStats* stats = nullptr) {
    const Case& last = cells.back()->run;
    BatchGenerator batch(last.model, last.tokenizer(), options);
    std::map<RowId, Cell*> rows;
    for (Cell* cell : cells) {
      try {
        rows[batch.insert({cell->run.prompt, cell->run.options})] = cell;
      } catch (const Error& error) {
        note_refusal(*cell, error);
      }
    }
    while (!batch.empty()) {
      for (const auto& [row, part, error] : batch.next()) {
        EXPECT_EQ(error, "") << rows.at(row)->name;
        take(*rows.at(row), part);
      }
    }
    if (stats != nullptr) *stats = batch.stats();
  }

  static void run_in_engine(Cell& cell) {
    const Case& run = cell.run;
    Engine engine(run.model, run.tokenizer(), {.logprobs = true});
    auto answer = engine.submit({run.prompt, run.options});
    try {
      while (auto part = answer.next()) take(cell, *part);
    } catch (const Error& error) {
      note_refusal(cell, error);
    }
  }

  // What a table shows of the cell, after a check that it is true.
  std::string result(const Cell& cell) {
    SCOPED_TRACE(cell.name);
    const auto& [tokens, text, reason, logprobs] = cell.outcome;
    if (!cell.refusal.empty()) return refusal_number(cell.refusal);
    Outcome expected = cell.expected;
    if (reason == "cancelled") {
      EXPECT_GE(static_cast<int>(tokens.size()), cell.run.cancel_after);
      EXPECT_LE(tokens.size(), expected.tokens.size());
      expected.tokens.resize(std::min(tokens.size(), expected.tokens.size()));
      expected.reason = reason;
      expected.text = text;
    }
    EXPECT_EQ(tokens, expected.tokens);
    EXPECT_EQ(text, expected.text);
    EXPECT_EQ(reason, expected.reason);
    for (std::size_t i = 0;
         i < std::min(logprobs.size(), expected.tokens.size());
         ++i) {
      EXPECT_TRUE(mx::allclose(logprobs[i], expected.logprobs[i], 1e-4, 1e-4)
                      .item<bool>())
          << "logprobs of token " << i;
    }
    if (cell.run.progress && !cell.run.starts_late) {
      const auto& seen = *cell.run.progress;
      EXPECT_TRUE(std::ranges::is_sorted(seen));
      EXPECT_EQ(seen.at(seen.size() - 2), seen.back());
    }
    return "=";
  }

  std::string refusal_number(const std::string& message) {
    auto found = std::ranges::find(refusals_, message);
    const auto number = found - refusals_.begin() + 1;
    if (found == refusals_.end()) refusals_.push_back(message);
    return "R" + std::to_string(number);
  }

  // The lower half: a pair is written once.
  std::string table_of_pairs(const std::vector<Cell>& cells) {
    std::string head = "| |", line = "|---|", rows;
    auto each = cells.begin();
    for (std::size_t i = 0; i < features_.size(); ++i) {
      const std::string number = std::to_string(i + 1);
      head += " " + number + " |";
      line += "---|";
      rows += "| " + number + " " + features_[i].name + " |";
      for (std::size_t j = 0; j < features_.size(); ++j) {
        rows += j <= i ? " " + result(*each++) + " |" : " |";
      }
      rows += "\n";
    }
    return head + "\n" + line + "\n" + rows;
  }

  // A line for each feature with the results of its runs.
  std::string table_of_lines(
      const std::string& column,
      const std::function<std::string(const Feature&)>& result_of) {
    std::string text = "| | " + column + " |\n|---|---|\n";
    for (std::size_t i = 0; i < features_.size(); ++i) {
      text += "| " + std::to_string(i + 1) + " " + features_[i].name + " | " +
              result_of(features_[i]) + " |\n";
    }
    return text;
  }

  // A section of the file, as it must be; or writes it there.
  void compare(const std::string& title, std::string text) {
    if (!refusals_.empty()) text += "\n";
    for (std::size_t i = 0; i < refusals_.size(); ++i) {
      text += "- R" + std::to_string(i + 1) + ": " + refusals_[i] + "\n";
    }
    const auto path = test_data("../../docs/COMPOSITION.md");
    std::ifstream file(path);
    std::string all{std::istreambuf_iterator<char>(file), {}};
    const std::string head = "## " + title + "\n\n";
    const auto start = all.find(head) + head.size();
    ASSERT_GE(start, head.size()) << "docs/COMPOSITION.md lacks " << head;
    const auto end = std::min(all.find("\n## ", start), all.size());
    if (std::getenv("MLXLM_WRITE_COMPOSITION") != nullptr) {
      std::ofstream(path) << all.replace(start, end - start, text);
      return;
    }
    EXPECT_EQ(all.substr(start, end - start), text)
        << "MLXLM_WRITE_COMPOSITION=1 writes docs/COMPOSITION.md anew";
  }

  // Rows that outgrow the memory together; the feature's came last.
  std::string preempted(const Feature& feature) {
    const std::string prompt =
        std::string("one two three ") + std::string(216, 'x') + kPrompt;
    // On the same model.
    const Feature neighbour{"beside " + feature.name, [&](Case& run) {
                              Case other;
                              if (feature.means) feature.means(other);
                              run.toy = other.toy;
                              run.options.ignore_eos = true;
                            }};
    std::vector<Cell> cells{cell({&feature}, prompt)};
    // More where that needs room first that is free later.
    const auto& options = cells[0].run.options;
    const bool needs_room = options.max_kv_size > 0 || options.kv_bits ||
                            options.prompt_cache ||
                            options.draft != DraftKind::none;
    for (int i = 0; i < (needs_room ? 14 : 2); ++i) {
      cells.insert(cells.begin(), cell({&neighbour}, prompt));
    }
    BatchStats stats;
    // Enough for all at first, and soon it isn't.
    std::vector<BatchRequest> requests;
    std::vector<Cell*> rows;
    for (Cell& each : cells) {
      rows.push_back(&each);
      requests.push_back({each.run.prompt, each.run.options});
    }
    const auto& model = cells[0].run.model;
    const auto budget = std::max(tight_budget(model, requests),
                                 least_budget(model, requests[0]));
    run_in_batch(
        rows, {.max_prompt_rows = 16, .memory_budget_bytes = budget}, &stats);
    EXPECT_GT(stats.preemptions, 0u) << feature.name;
    std::string last;
    for (const Cell& each : cells) last = result(each);
    return last;
  }

  std::vector<Feature> features_ = features();
  std::map<std::tuple<int, bool, int>, std::shared_ptr<ToyModel>> models_;
  std::map<std::string, Outcome> loops_;
  std::vector<std::string> refusals_;
};

TEST_F(Composition, PairsAlone) {
  auto cells = pairs();
  for (Cell& cell : cells) run_alone(cell);
  compare("Pairs alone", table_of_pairs(cells));
}

TEST_F(Composition, PairsInABatch) {
  auto cells = pairs();
  std::map<std::pair<Model*, std::vector<int>>, std::vector<Cell*>> groups;
  for (Cell& cell : cells) {
    groups[{cell.run.model.get(), cell.run.end_tokens}].push_back(&cell);
  }
  for (auto& [_, group] : groups) run_in_batch(group, {.max_rows = 500});
  compare("Pairs in a batch", table_of_pairs(cells));
}

TEST_F(Composition, EachInAnEngine) {
  compare("Each in an engine",
          table_of_lines("engine", [&](const Feature& feature) {
            Cell one = cell({&feature});
            run_in_engine(one);
            return result(one);
          }));
}

TEST_F(Composition, EachBesidePreemption) {
  compare("Each where rows are preempted",
          table_of_lines("short of memory", [&](const Feature& feature) {
            return preempted(feature);
          }));
}

}  // namespace
}  // namespace mlxlm::composition
