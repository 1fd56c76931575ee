// The quantized block formats of GGUF, taken apart into integers and scales.
//
// Every format is seen as groups of 32 consecutive values of a row, in which
// value i = scale[i / 16] * q[i] + bias[i / 16]. The product is exact in
// float32, so the sum is rounded once, as in the format's own definition.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "load/gguf_types.h"

namespace mlxlm {

constexpr std::uint32_t kGgufGroupElements = 32;

struct GgufGroup {
  std::array<std::uint8_t, kGgufGroupElements> q;
  std::array<float, 2> scale;
  std::array<float, 2> bias;
  // Where scale and bias are multiples of one `unit`: scale = unit * steps and
  // bias = unit * steps * zero. 0 where they aren't.
  float unit = 0;
  std::array<int, 2> steps = {};
  int zero = 0;
};

// How a block format is taken apart; none for formats that aren't known, or
// aren't blocks (F32 and the like).
struct GgufBlockFormat {
  // Takes group `index` out of a block.
  void (*unpack)(const std::byte* block, std::uint32_t index, GgufGroup& out);
  int bits;             // of q
  bool has_two_scales;  // the halves of a group differ
};
const GgufBlockFormat* find_block_format(const GgufType& type);

// Whole blocks to float32; `out` has as many values as the blocks hold.
void dequantize_blocks(const GgufType& type,
                       const GgufBlockFormat& format,
                       std::span<const std::byte> blocks,
                       float* out);

}  // namespace mlxlm
