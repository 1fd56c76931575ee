#include "cli/kv_options.h"

#include <string>

#include <mlxlm/error.h>

namespace mlxlm::cli {
namespace {

void check_equal(const char* option, std::optional<int> wanted, int held) {
  if (wanted && *wanted != held) {
    throw Error(ErrorKind::argument,
                std::string(option) + " is " + std::to_string(*wanted) +
                    ", but the cache in --prompt-cache-file has " +
                    std::to_string(held));
  }
}

}  // namespace

void KvOptions::add_to(CLI::App& command, const char* group) {
  command
      .add_option("--kv-bits",
                  bits_,
                  "Quantize keys and values to N bits: 2, 3, 4, 5,\n6 or 8")
      ->type_name("N")
      ->group(group);
  command.add_option("--kv-key-bits", key_bits_, "Bits of keys alone")
      ->type_name("N")
      ->group(group);
  command.add_option("--kv-value-bits", value_bits_, "Bits of values alone")
      ->type_name("N")
      ->group(group);
  command
      .add_option("--kv-group-size",
                  group_size_,
                  "Numbers that share a scale with --kv-bits: 32,\n64 or 128")
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
  command
      .add_option(
          "--quantized-kv-start", start_, "Tokens before --kv-bits begins")
      ->capture_default_str()
      ->type_name("N")
      ->group(group);
}

void KvOptions::apply_to(GenerateOptions& options) const {
  if (!bits_ && key_bits_.has_value() != value_bits_.has_value()) {
    throw Error(ErrorKind::argument,
                key_bits_ ? "--kv-key-bits needs --kv-value-bits or --kv-bits"
                          : "--kv-value-bits needs --kv-key-bits or --kv-bits");
  }
  options.kv_bits = bits_;
  options.kv_key_bits = key_bits_;
  options.kv_value_bits = value_bits_;
  options.kv_group_size = group_size_;
  options.quantized_kv_start = start_;
}

void KvOptions::check_saved(const PromptCache& cache) const {
  for (const CachePtr& layer : cache) {
    if (auto held = layer->capabilities().quantization) {
      check_equal("--kv-group-size", group_size_, held->group_size);
      check_equal("--kv-key-bits", key_bits_, held->key_bits);
      check_equal("--kv-value-bits", value_bits_, held->value_bits);
      check_equal("--kv-bits", key_bits_ ? key_bits_ : bits_, held->key_bits);
      check_equal(
          "--kv-bits", value_bits_ ? value_bits_ : bits_, held->value_bits);
      return;
    }
  }
}

}  // namespace mlxlm::cli
