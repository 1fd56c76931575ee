#include "cache/quantized_cache.h"

#include <algorithm>
#include <climits>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/rows.h"
#include "cache/state_reader.h"

namespace mlxlm {
namespace {

std::optional<std::string> fault_of(int group_size, int bits) {
  if (group_size != 32 && group_size != 64 && group_size != 128) {
    return "the KV cache's group size is " + std::to_string(group_size) +
           "; it can be 32, 64 or 128";
  }
  if (bits < 2 || bits == 7 || bits > 8) {
    return "the KV cache's number of bits is " + std::to_string(bits) +
           "; it can be 2, 3, 4, 5, 6 or 8";
  }
  return std::nullopt;
}

std::vector<mx::array> quantize_rows(const mx::array& rows,
                                     int group_size,
                                     int bits) {
  if (rows.shape(-1) % group_size != 0) {
    throw Error(ErrorKind::argument,
                "the KV cache can't be quantized in groups of " +
                    std::to_string(group_size) + ": the model's heads have " +
                    std::to_string(rows.shape(-1)) +
                    " numbers, which is not a multiple; choose another "
                    "kv-group-size or turn kv-bits off");
  }
  return mx::quantize(rows, group_size, bits);
}

void append_quantized(QuantizedRows& held,
                      const std::vector<mx::array>& rows,
                      int used) {
  for (std::size_t i = 0; i < held.size(); ++i) {
    append_rows(held[i], rows[i], used);
  }
}

kernels::QuantizedTensor first_rows(const QuantizedRows& held, int count) {
  return {rows_of(*held[0], 0, count),
          rows_of(*held[1], 0, count),
          rows_of(*held[2], 0, count)};
}

CacheState rows_state(const QuantizedRows& rows) {
  if (!rows[0]) {
    return {};
  }
  return state_list(rows[0], rows[1], rows[2]);
}

// Reads keys or values and checks that the three arrays fit each other.
QuantizedRows read_rows(const StateReader& parent,
                        std::size_t index,
                        int group_size,
                        int bits) {
  QuantizedRows rows;
  const CacheState& state = parent.list()[index];
  if (std::holds_alternative<std::monostate>(state.value)) {
    return rows;
  }
  StateReader reader("QuantizedKVCache", state);
  reader.expect_size(3);
  for (std::size_t i = 0; i < 3; ++i) {
    rows[i] = reader.array(i);
    if (!rows[i] || rows[i]->ndim() != 4) {
      reader.fail("an array is missing or doesn't have four axes");
    }
    for (int axis : {0, 1, 2}) {
      if (rows[i]->shape(axis) != rows[0]->shape(axis)) {
        reader.fail("data, scales and biases have different shapes");
      }
    }
  }
  std::int64_t numbers = std::int64_t{rows[1]->shape(3)} * group_size;
  if (rows[0]->dtype() != mx::uint32 ||
      !mx::issubdtype(rows[1]->dtype(), mx::floating) ||
      rows[2]->dtype() != rows[1]->dtype() ||
      rows[2]->shape(3) != rows[1]->shape(3) ||
      std::int64_t{rows[0]->shape(3)} * 32 != numbers * bits) {
    reader.fail("data, scales and biases don't fit " + std::to_string(bits) +
                " bits in groups of " + std::to_string(group_size));
  }
  return rows;
}

}  // namespace

QuantizedKVCache::QuantizedKVCache(int group_size, int bits) {
  if (auto fault = fault_of(group_size, bits)) {
    throw Error(ErrorKind::argument, *fault);
  }
  content_.group_size = group_size;
  content_.bits = bits;
}

std::shared_ptr<QuantizedKVCache> QuantizedKVCache::from(
    const std::optional<mx::array>& keys,
    const std::optional<mx::array>& values,
    int offset,
    int group_size,
    int bits) {
  auto copy = std::make_shared<QuantizedKVCache>(group_size, bits);
  if (keys) {
    auto k = quantize_rows(*keys, group_size, bits);
    auto v = quantize_rows(*values, group_size, bits);
    for (std::size_t i = 0; i < 3; ++i) {
      copy->content_.keys[i] = k[i];
      copy->content_.values[i] = v[i];
    }
  }
  copy->content_.offset = offset;
  return copy;
}

std::size_t QuantizedKVCache::nbytes() const {
  std::size_t sum = 0;
  for (const QuantizedRows* rows : {&content_.keys, &content_.values}) {
    for (const auto& array : *rows) {
      sum += nbytes_of(array);
    }
  }
  return sum;
}

Mask QuantizedKVCache::make_mask(int num_queries,
                                 int window_tokens,
                                 bool want_array) const {
  return attention_mask(
      num_queries, content_.offset, window_tokens, want_array);
}

std::pair<kernels::QuantizedTensor, kernels::QuantizedTensor>
QuantizedKVCache::update(const mx::array& keys, const mx::array& values) {
  // Both first: nothing has changed if one fails.
  auto k = quantize_rows(keys, content_.group_size, content_.bits);
  auto v = quantize_rows(values, content_.group_size, content_.bits);
  append_quantized(content_.keys, k, content_.offset);
  append_quantized(content_.values, v, content_.offset);
  content_.offset += keys.shape(2);
  return keys_and_values();
}

std::pair<kernels::QuantizedTensor, kernels::QuantizedTensor>
QuantizedKVCache::keys_and_values() const {
  return {first_rows(content_.keys, content_.offset),
          first_rows(content_.values, content_.offset)};
}

mx::array QuantizedKVCache::attend(const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const AttendSpec& spec) {
  if (spec.sinks) {
    throw Error(ErrorKind::unsupported,
                "a quantized KV cache does not support attention sinks; turn "
                "kv-bits off for this model");
  }
  Mask mask =
      spec.causal ? make_mask(q.shape(2), spec.window_tokens) : Mask::none();
  auto [keys, values] = update(k, v);
  return kernels::table().quantized_attention(q,
                                              keys,
                                              values,
                                              attention_parameters(spec, mask),
                                              content_.group_size,
                                              content_.bits);
}

int QuantizedKVCache::trim(int num_tokens) {
  int trimmed = std::clamp(num_tokens, 0, content_.offset);
  content_.offset -= trimmed;
  return trimmed;
}

std::unique_ptr<CacheCheckpoint> QuantizedKVCache::checkpoint() const {
  return make_checkpoint(content_);
}

void QuantizedKVCache::rollback(const CacheCheckpoint& checkpoint) {
  content_ = content_of<Content>(checkpoint, kind());
}

CacheState QuantizedKVCache::state() const {
  CacheState::List list{rows_state(content_.keys),
                        rows_state(content_.values),
                        state_of(content_.offset),
                        state_of(content_.group_size),
                        state_of(content_.bits)};
  return {std::move(list)};
}

void QuantizedKVCache::set_state(const CacheState& state) {
  StateReader reader(kind(), state);
  reader.expect_size(5);
  Content content;
  content.group_size = reader.integer(3, 0, INT_MAX);
  content.bits = reader.integer(4, 0, INT_MAX);
  if (auto fault = fault_of(content.group_size, content.bits)) {
    reader.fail(*fault);
  }
  content.keys = read_rows(reader, 0, content.group_size, content.bits);
  content.values = read_rows(reader, 1, content.group_size, content.bits);
  const auto& k = content.keys[0];
  const auto& v = content.values[0];
  if (k.has_value() != v.has_value()) {
    reader.fail("it has keys or values, but not both");
  }
  for (int axis : {0, 1, 2}) {
    if (k && k->shape(axis) != v->shape(axis)) {
      reader.fail("keys and values have different shapes");
    }
  }
  content.offset = reader.integer(2, 0, k ? k->shape(2) : 0);
  content_ = std::move(content);
}

void QuantizedKVCache::append_arrays_to(std::vector<mx::array>& out) const {
  for (const QuantizedRows* rows : {&content_.keys, &content_.values}) {
    for (const auto& array : *rows) {
      if (array) {
        out.push_back(*array);
      }
    }
  }
}

CachePtr make_quantized_cache(int group_size, int bits) {
  return std::make_shared<QuantizedKVCache>(group_size, bits);
}

}  // namespace mlxlm
