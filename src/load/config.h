// config.json: read, merged, and asked field by field.
//
//   ConfigReader config(checkpoint.config);
//   int width = config.require_int("hidden_size");
//   double eps = config.get_float("rms_norm_eps", 1e-6);
//   if (auto scaling = config.find_object("rope_scaling")) {
//     double factor = scaling->require_float("factor");
//   }
//   config.unread();  // what nobody asked for
//
// Every fault is an Error{config} that names the field, what it holds and what
// it must be. A field that is null counts as missing, as in the reference.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace mlxlm {

class ConfigReader {
 public:
  // `config` must outlive the reader, and be an object. `source` begins the
  // messages.
  explicit ConfigReader(const nlohmann::json& config,
                        std::string source = "config.json");
  explicit ConfigReader(nlohmann::json&&, std::string = "") = delete;

  // True if the field is there and isn't null. Doesn't count as reading it.
  bool has(std::string_view key) const;

  // Whole numbers (1024 or 1024.0) from `min` to `max`.
  static constexpr int kMaxInt = std::numeric_limits<int>::max();
  int require_int(std::string_view key, int min = 1, int max = kMaxInt) const;
  int get_int(std::string_view key,
              int fallback,
              int min = 0,
              int max = kMaxInt) const;
  std::optional<int> find_int(std::string_view key,
                              int min = 0,
                              int max = kMaxInt) const;

  // Finite numbers.
  double require_float(std::string_view key) const;
  double get_float(std::string_view key, double fallback) const;
  std::optional<double> find_float(std::string_view key) const;

  bool require_bool(std::string_view key) const;
  bool get_bool(std::string_view key, bool fallback) const;
  std::optional<bool> find_bool(std::string_view key) const;

  std::string require_string(std::string_view key) const;
  std::string get_string(std::string_view key,
                         const std::string& fallback) const;
  std::optional<std::string> find_string(std::string_view key) const;

  // Lists of one type. find_ints also takes a single number as a list of one.
  std::optional<std::vector<int>> find_ints(std::string_view key,
                                            int min = 0) const;
  std::optional<std::vector<double>> find_floats(std::string_view key) const;
  std::optional<std::vector<bool>> find_bools(std::string_view key) const;
  std::optional<std::vector<std::string>> find_strings(
      std::string_view key) const;

  // The fields of an object inside this one.
  ConfigReader require_object(std::string_view key) const;
  std::optional<ConfigReader> find_object(std::string_view key) const;

  // The value itself, null if missing.
  const nlohmann::json* find(std::string_view key) const;
  const nlohmann::json& raw() const { return *config_; }

  // The same with other values: what is asked of it counts as asked of this.
  // `config` must outlive it.
  ConfigReader with_values(const nlohmann::json& config) const {
    return {config, source_, prefix_, read_};
  }

  // Throws Error{config}: "config.json: KEY must be WANTED, not VALUE".
  [[noreturn]] void fail(std::string_view key, const std::string& wanted) const;

  // The fields that no getter of this reader (or of the readers made from it)
  // was asked for, sorted; of objects that were entered, their fields.
  std::vector<std::string> unread() const;

 private:
  using ReadFields = std::set<std::string, std::less<>>;

  ConfigReader(const nlohmann::json& config,
               std::string source,
               std::string prefix,
               std::shared_ptr<ReadFields> read);

  std::string path_of(std::string_view key) const;
  const nlohmann::json& require(std::string_view key,
                                const std::string& wanted) const;
  int to_int(std::string_view key,
             const nlohmann::json& value,
             int min,
             int max) const;

  const nlohmann::json* config_;
  std::string source_;
  std::string prefix_;  // "" or "rope_scaling."
  std::shared_ptr<ReadFields> read_;
};

// config.json of a folder as the reference's load_config: an eos_token_id of
// generation_config.json replaces its own. Throws Error{file, config}.
struct ModelConfig {
  nlohmann::json config;
  nlohmann::json generation_config;  // null if missing or not JSON
};
ModelConfig load_config(const std::filesystem::path& folder);

// Replaces top-level fields by those of a JSON object ("": nothing to do).
// Throws Error{argument}.
void merge_config_overrides(nlohmann::json& config,
                            const std::string& overrides);

}  // namespace mlxlm
