#include "load/config.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <mlxlm/error.h>

#include "core/file.h"
#include "core/json.h"
#include "core/log.h"

namespace mlxlm {
namespace {

using nlohmann::json;

std::string wanted_int(int min, int max) {
  if (max != ConfigReader::kMaxInt) {
    return "an integer from " + std::to_string(min) + " to " +
           std::to_string(max);
  }
  if (min == 1) {
    return "a positive integer";
  }
  if (min == 0) {
    return "a non-negative integer";
  }
  if (min == std::numeric_limits<int>::min()) {
    return "an integer";
  }
  return "an integer of at least " + std::to_string(min);
}

// The whole number a JSON value holds, if it holds one.
std::optional<std::int64_t> whole_number(const json& value) {
  if (value.is_number_unsigned()) {
    auto number = value.get<std::uint64_t>();
    return std::in_range<std::int64_t>(number)
               ? std::optional<std::int64_t>(static_cast<std::int64_t>(number))
               : std::nullopt;
  }
  if (value.is_number_integer()) {
    return value.get<std::int64_t>();
  }
  if (value.is_number_float()) {
    double number = value.get<double>();
    constexpr double kExact = 9007199254740992.0;  // 2^53
    if (std::abs(number) <= kExact && std::trunc(number) == number) {
      return static_cast<std::int64_t>(number);
    }
  }
  return std::nullopt;
}

}  // namespace

ConfigReader::ConfigReader(const nlohmann::json& config, std::string source)
    : ConfigReader(
          config, std::move(source), "", std::make_shared<ReadFields>()) {
  if (!config.is_object()) {
    throw Error(
        ErrorKind::config,
        source_ + " must hold a JSON object, not " + describe_json(config));
  }
}

ConfigReader::ConfigReader(const nlohmann::json& config,
                           std::string source,
                           std::string prefix,
                           std::shared_ptr<ReadFields> read)
    : config_(&config),
      source_(std::move(source)),
      prefix_(std::move(prefix)),
      read_(std::move(read)) {}

std::string ConfigReader::path_of(std::string_view key) const {
  return prefix_ + std::string(key);
}

void ConfigReader::fail(std::string_view key, const std::string& wanted) const {
  auto it = config_->find(std::string(key));
  if (it == config_->end() || it->is_null()) {
    throw Error(
        ErrorKind::config,
        source_ + ": " + path_of(key) + " is missing; it must be " + wanted);
  }
  throw Error(ErrorKind::config,
              source_ + ": " + path_of(key) + " must be " + wanted + ", not " +
                  describe_json(*it));
}

bool ConfigReader::has(std::string_view key) const {
  auto it = config_->find(std::string(key));
  return it != config_->end() && !it->is_null();
}

const nlohmann::json* ConfigReader::find(std::string_view key) const {
  read_->insert(path_of(key));
  auto it = config_->find(std::string(key));
  return it == config_->end() || it->is_null() ? nullptr : &*it;
}

const nlohmann::json& ConfigReader::require(std::string_view key,
                                            const std::string& wanted) const {
  const json* value = find(key);
  if (value == nullptr) {
    fail(key, wanted);
  }
  return *value;
}

int ConfigReader::to_int(std::string_view key,
                         const nlohmann::json& value,
                         int min,
                         int max) const {
  auto number = whole_number(value);
  if (!number || *number < min || *number > max) {
    fail(key, wanted_int(min, max));
  }
  return static_cast<int>(*number);
}

int ConfigReader::require_int(std::string_view key, int min, int max) const {
  return to_int(key, require(key, wanted_int(min, max)), min, max);
}

int ConfigReader::get_int(std::string_view key,
                          int fallback,
                          int min,
                          int max) const {
  return find_int(key, min, max).value_or(fallback);
}

std::optional<int> ConfigReader::find_int(std::string_view key,
                                          int min,
                                          int max) const {
  const json* value = find(key);
  return value == nullptr ? std::nullopt
                          : std::optional<int>(to_int(key, *value, min, max));
}

double ConfigReader::require_float(std::string_view key) const {
  require(key, "a number");
  return *find_float(key);
}

double ConfigReader::get_float(std::string_view key, double fallback) const {
  return find_float(key).value_or(fallback);
}

std::optional<double> ConfigReader::find_float(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    fail(key, "a number");
  }
  return value->get<double>();
}

bool ConfigReader::require_bool(std::string_view key) const {
  require(key, "true or false");
  return *find_bool(key);
}

bool ConfigReader::get_bool(std::string_view key, bool fallback) const {
  return find_bool(key).value_or(fallback);
}

std::optional<bool> ConfigReader::find_bool(std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_boolean()) {
    fail(key, "true or false");
  }
  return value->get<bool>();
}

std::string ConfigReader::require_string(std::string_view key) const {
  require(key, "text");
  return *find_string(key);
}

std::string ConfigReader::get_string(std::string_view key,
                                     const std::string& fallback) const {
  return find_string(key).value_or(fallback);
}

std::optional<std::string> ConfigReader::find_string(
    std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_string()) {
    fail(key, "text");
  }
  return value->get<std::string>();
}

std::optional<std::vector<int>> ConfigReader::find_ints(std::string_view key,
                                                        int min) const {
  const json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  std::string wanted = "a list of integers of at least " + std::to_string(min);
  std::vector<int> out;
  auto append = [&](const json& item) {
    auto number = whole_number(item);
    if (!number || *number < min || *number > kMaxInt) {
      fail(key, wanted);
    }
    out.push_back(static_cast<int>(*number));
  };
  if (value->is_number()) {
    append(*value);
    return out;
  }
  if (!value->is_array()) {
    fail(key, wanted);
  }
  for (const json& item : *value) {
    append(item);
  }
  return out;
}

std::optional<std::vector<double>> ConfigReader::find_floats(
    std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  std::vector<double> out;
  bool ok = value->is_array();
  for (std::size_t i = 0; ok && i < value->size(); ++i) {
    ok = (*value)[i].is_number();
    if (ok) {
      out.push_back((*value)[i].get<double>());
    }
  }
  if (!ok) {
    fail(key, "a list of numbers");
  }
  return out;
}

std::optional<std::vector<bool>> ConfigReader::find_bools(
    std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  std::vector<bool> out;
  bool ok = value->is_array();
  for (std::size_t i = 0; ok && i < value->size(); ++i) {
    const json& item = (*value)[i];
    // Lists such as no_rope_layers hold 0 and 1.
    ok = item.is_boolean() || item == 0 || item == 1;
    out.push_back(ok && (item == true || item == 1));
  }
  if (!ok) {
    fail(key, "a list of true and false");
  }
  return out;
}

std::optional<std::vector<std::string>> ConfigReader::find_strings(
    std::string_view key) const {
  const json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  std::vector<std::string> out;
  bool ok = value->is_array();
  for (std::size_t i = 0; ok && i < value->size(); ++i) {
    ok = (*value)[i].is_string();
    if (ok) {
      out.push_back((*value)[i].get<std::string>());
    }
  }
  if (!ok) {
    fail(key, "a list of texts");
  }
  return out;
}

ConfigReader ConfigReader::require_object(std::string_view key) const {
  require(key, "an object");
  return *find_object(key);
}

std::optional<ConfigReader> ConfigReader::find_object(
    std::string_view key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (!value->is_object()) {
    fail(key, "an object");
  }
  std::string prefix = path_of(key) + ".";
  read_->insert(prefix);  // its fields are accounted for one by one
  return ConfigReader(*value, source_, std::move(prefix), read_);
}

std::vector<std::string> ConfigReader::unread() const {
  std::vector<std::string> out;
  std::vector<std::pair<std::string, const nlohmann::json*>> open = {
      {prefix_, config_}};
  while (!open.empty()) {
    auto [prefix, object] = open.back();
    open.pop_back();
    for (const auto& [key, value] : object->items()) {
      std::string path = prefix + key;
      if (!read_->contains(path)) {
        out.push_back(path);
      } else if (value.is_object() && read_->contains(path + ".")) {
        open.emplace_back(path + ".", &value);
      }
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

namespace {

constexpr JsonLimits kConfigLimits = {
    .max_bytes = std::uint64_t{64} << 20, .max_depth = 64, .non_finite = true};

// What Python's `if value` makes of a JSON value.
bool is_truthy(const json& value) {
  switch (value.type()) {
    case json::value_t::boolean:
      return value.get<bool>();
    case json::value_t::number_integer:
    case json::value_t::number_unsigned:
    case json::value_t::number_float:
      return value.get<double>() != 0;
    case json::value_t::string:
      return !value.get_ref<const std::string&>().empty();
    default:
      return !value.empty();
  }
}

json load_generation_config(const std::filesystem::path& path) {
  if (!file_exists(path)) {
    return nullptr;
  }
  try {
    json value = read_json_file(path, kConfigLimits, ErrorKind::config);
    if (value.is_object()) {
      return value;
    }
    log_warning(path.string() + " is ignored: it must hold a JSON object");
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::config) {
      throw;
    }
    log_warning(std::string(error.what()) + " (ignored)");
  }
  return nullptr;
}

}  // namespace

ModelConfig load_config(const std::filesystem::path& folder) {
  std::filesystem::path path = folder / "config.json";
  ModelConfig out;
  out.config = read_json_file(path, kConfigLimits, ErrorKind::config);
  if (!out.config.is_object()) {
    throw Error(ErrorKind::config,
                path.string() + " must hold a JSON object, not " +
                    describe_json(out.config));
  }
  out.generation_config =
      load_generation_config(folder / "generation_config.json");
  if (out.generation_config.is_object()) {
    auto eos = out.generation_config.find("eos_token_id");
    if (eos != out.generation_config.end() && is_truthy(*eos)) {
      out.config["eos_token_id"] = *eos;
    }
  }
  return out;
}

void merge_config_overrides(nlohmann::json& config,
                            const std::string& overrides) {
  if (overrides.empty()) {
    return;
  }
  json changes = parse_json(overrides,
                            "the configuration override",
                            kConfigLimits,
                            ErrorKind::argument);
  if (!changes.is_object()) {
    throw Error(ErrorKind::argument,
                "the configuration override must be a JSON object, not " +
                    describe_json(changes));
  }
  config.update(changes);
}

}  // namespace mlxlm
