// mlx-lm models: the model types that can be loaded.
#include <algorithm>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/console.h"
#include "models/family.h"

namespace mlxlm::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  mlx-lm models
  mlx-lm models --json
  mlx-lm models --markdown > docs/MODELS.md)";

constexpr char kPreface[] = R"(# Model types

What `mlx-lm models --markdown` prints: the `model_type` of config.json, what
its layers are like, the caches that they keep, and whether `--max-kv-size` has
an effect (if not, the architecture chooses its caches itself). Whether a
certain model has experts or windows is for its configuration to say; `mlx-lm
info MODEL` shows it.

All of them work in batches, with saved and shared prompt caches, and with
speculative decoding; `--kv-bits` quantizes every cache that holds keys and
values ([CACHES.md](CACHES.md)).

)";

using Row = std::vector<std::string>;

std::vector<Row> all_rows() {
  std::vector<Row> rows;
  for (const auto& family : families()) {
    rows.push_back({std::string(family.model_type),
                    layers_text(family.traits),
                    caches_text(family.traits),
                    family.traits & trait::fixed ? "no" : "yes"});
  }
  return rows;
}

const Row kTitles{"model type", "layers", "caches", "--max-kv-size"};

std::string markdown() {
  auto line = [](const Row& row) {
    std::string text = "|";
    for (const auto& cell : row) text += " " + cell + " |";
    return text + "\n";
  };
  auto text = kPreface + line(kTitles) + "|---|---|---|---|\n";
  for (const auto& row : all_rows()) text += line(row);
  return text;
}

std::string table() {
  auto rows = all_rows();
  rows.insert(rows.begin(), kTitles);
  std::vector<std::size_t> widths(kTitles.size());
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  std::string text;
  for (const auto& row : rows) {
    for (std::size_t i = 0; i + 1 < row.size(); ++i) {
      text += row[i] + std::string(widths[i] + 2 - row[i].size(), ' ');
    }
    text += row.back() + "\n";
  }
  return text;
}

std::string json_text() {
  auto list = nlohmann::json::array();
  for (const auto& row : all_rows()) {
    list.push_back({{"model_type", row[0]},
                    {"layers", row[1]},
                    {"caches", row[2]},
                    {"max_kv_size", row[3] == "yes"}});
  }
  return list.dump(2) + "\n";
}

class Models {
 public:
  void add_to(CLI::App& command) {
    command.footer(kExamples);
    command.add_flag("--json", json_, "Print a list of objects.");
    command.add_flag("--markdown", markdown_, "Print docs/MODELS.md.");
  }

  void run() const {
    print(json_ ? json_text() : markdown_ ? markdown() : table());
  }

 private:
  bool json_ = false;
  bool markdown_ = false;
};

}  // namespace

Command add_models(CLI::App& command) { return command_of<Models>(command); }

}  // namespace mlxlm::cli
