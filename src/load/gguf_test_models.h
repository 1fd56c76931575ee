// Small GGUF files for the tests of loading them.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include <mlxlm/error.h>

#include "load/gguf_checkpoint.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm::gguf_test {

using Shape = std::vector<std::uint64_t>;

constexpr std::uint32_t kQ80 = 8;
constexpr std::uint32_t kQ6K = 14;

// Width 8, two heads of 4, one for keys, one layer, 6 tokens.
inline GgufWriter metadata(const std::string& architecture) {
  GgufWriter writer;
  std::string prefix = architecture + ".";
  writer.add("general.architecture", architecture)
      .add(prefix + "embedding_length", 8u)
      .add(prefix + "block_count", 1u)
      .add(prefix + "context_length", 64u)
      .add(prefix + "feed_forward_length", 12u)
      .add(prefix + "attention.head_count", 2u)
      .add(prefix + "attention.head_count_kv", 1u)
      .add(prefix + "attention.layer_norm_rms_epsilon", 0.5f);
  return writer;
}

// Every row holds its own number.
inline void add_rows(GgufWriter& writer, const std::string& name, Shape shape) {
  std::uint64_t length = shape.back();
  std::uint64_t count = 1;
  for (auto size : shape) {
    count *= size;
  }
  std::vector<float> values(count);
  for (std::uint64_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(shape.size() == 1 ? i : i / length);
  }
  writer.add_tensor(name, shape, values);
}

using Tensors = std::vector<std::pair<std::string, Shape>>;

inline const Tensors kOuter = {{"token_embd.weight", {6, 8}},
                               {"output_norm.weight", {8}}};
inline const Tensors kAttention = {{"blk.0.attn_norm.weight", {8}},
                                   {"blk.0.attn_q.weight", {8, 8}},
                                   {"blk.0.attn_k.weight", {4, 8}},
                                   {"blk.0.attn_v.weight", {4, 8}},
                                   {"blk.0.attn_output.weight", {8, 8}}};
inline const Tensors kMlp = {{"blk.0.ffn_norm.weight", {8}},
                             {"blk.0.ffn_gate.weight", {12, 8}},
                             {"blk.0.ffn_up.weight", {12, 8}},
                             {"blk.0.ffn_down.weight", {8, 12}}};

inline void add_all(GgufWriter& writer, std::initializer_list<Tensors> groups) {
  for (const auto& group : groups) {
    for (const auto& [name, shape] : group) {
      add_rows(writer, name, shape);
    }
  }
}

inline GgufWriter tiny_llama() {
  auto writer = metadata("llama");
  add_all(writer, {kOuter, kAttention, kMlp});
  return writer;
}

inline Checkpoint load(const GgufWriter& writer,
                       const LoadOptions& options = {}) {
  TemporaryFolder folder;
  writer.write(folder / "model.gguf");
  return load_gguf_checkpoint(folder / "model.gguf", options);
}

inline Error error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorKind::internal, "no error");
}

inline Error error_of(const GgufWriter& writer) {
  return error_of([&] { load(writer); });
}

}  // namespace mlxlm::gguf_test
