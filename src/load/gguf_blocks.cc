#include "load/gguf_blocks.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include <mlx/types/half_types.h>

namespace mlxlm {
namespace {

using Bytes = const std::uint8_t*;

Bytes as_bytes(const std::byte* block) {
  return reinterpret_cast<Bytes>(block);
}

float read_half(Bytes at) {
  mlx::core::float16_t value;
  std::memcpy(&value, at, sizeof(value));
  return static_cast<float>(value);
}

void set_scale(GgufGroup& out, float scale, float bias) {
  out.scale = {scale, scale};
  out.bias = {bias, bias};
}

// 16 bytes hold 32 values: the low halves first, then the high ones.
void unpack_nibbles(Bytes from, GgufGroup& out) {
  for (int i = 0; i < 16; ++i) {
    out.q[i] = from[i] & 15;
    out.q[i + 16] = from[i] >> 4;
  }
}

// 4 bytes hold the fifth bits of 32 values.
void add_fifth_bits(Bytes from, GgufGroup& out) {
  std::uint32_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  for (int i = 0; i < 32; ++i) {
    out.q[i] |= static_cast<std::uint8_t>((bits >> i & 1) << 4);
  }
}

void unpack_q4_0(const std::byte* block, std::uint32_t, GgufGroup& out) {
  Bytes at = as_bytes(block);
  float d = read_half(at);
  set_scale(out, d, -8 * d);
  unpack_nibbles(at + 2, out);
}

void unpack_q4_1(const std::byte* block, std::uint32_t, GgufGroup& out) {
  Bytes at = as_bytes(block);
  set_scale(out, read_half(at), read_half(at + 2));
  unpack_nibbles(at + 4, out);
}

void unpack_q5_0(const std::byte* block, std::uint32_t, GgufGroup& out) {
  Bytes at = as_bytes(block);
  float d = read_half(at);
  set_scale(out, d, -16 * d);
  unpack_nibbles(at + 6, out);
  add_fifth_bits(at + 2, out);
}

void unpack_q5_1(const std::byte* block, std::uint32_t, GgufGroup& out) {
  Bytes at = as_bytes(block);
  set_scale(out, read_half(at), read_half(at + 2));
  unpack_nibbles(at + 8, out);
  add_fifth_bits(at + 4, out);
}

void unpack_q8_0(const std::byte* block, std::uint32_t, GgufGroup& out) {
  Bytes at = as_bytes(block);
  float d = read_half(at);
  set_scale(out, d, -128 * d);
  for (int i = 0; i < 32; ++i) {
    out.q[i] = at[2 + i] ^ 0x80;  // from signed
  }
}

// The K formats: 256 values to a block. Two bits of 32 values lie in 32 bytes,
// four groups to them.
void unpack_two_bits(Bytes from, std::uint32_t index, GgufGroup& out) {
  Bytes at = from + index / 4 * 32;
  std::uint32_t shift = index % 4 * 2;
  for (int i = 0; i < 32; ++i) {
    out.q[i] = at[i] >> shift & 3;
  }
}

// Four bits of 32 values lie in 32 bytes, two groups to them.
void unpack_four_bits(Bytes from, std::uint32_t index, GgufGroup& out) {
  Bytes at = from + index / 2 * 32;
  std::uint32_t shift = index % 2 * 4;
  for (int i = 0; i < 32; ++i) {
    out.q[i] = at[i] >> shift & 15;
  }
}

// 16 scales (4 bits) with 16 minima (4 bits), values, d, dmin.
void unpack_q2_k(const std::byte* block, std::uint32_t index, GgufGroup& out) {
  Bytes at = as_bytes(block);
  float d = read_half(at + 80);
  float dmin = read_half(at + 82);
  for (int half = 0; half < 2; ++half) {
    std::uint8_t packed = at[index * 2 + half];
    out.scale[half] = d * static_cast<float>(packed & 15);
    out.bias[half] = -dmin * static_cast<float>(packed >> 4);
  }
  unpack_two_bits(at + 16, index, out);
}

// Each half of the group is unit * steps * (q + zero).
void set_units(GgufGroup& out, float unit, std::array<int, 2> steps, int zero) {
  out.unit = unit;
  out.steps = steps;
  out.zero = zero;
  for (int half = 0; half < 2; ++half) {
    out.scale[half] = unit * static_cast<float>(steps[half]);
    out.bias[half] = out.scale[half] * static_cast<float>(zero);
  }
}

// Third bits, values, 16 scales (6 bits, signed), d.
void unpack_q3_k(const std::byte* block, std::uint32_t index, GgufGroup& out) {
  Bytes at = as_bytes(block);
  Bytes scales = at + 96;
  auto scale_of = [&](std::uint32_t i) {
    int low = i < 8 ? scales[i] & 15 : scales[i - 8] >> 4;
    int high = scales[8 + i % 4] >> (i / 4 * 2) & 3;
    return (low | high << 4) - 32;
  };
  set_units(out,
            read_half(at + 108),
            {scale_of(index * 2), scale_of(index * 2 + 1)},
            -4);
  unpack_two_bits(at + 32, index, out);
  for (int i = 0; i < 32; ++i) {
    out.q[i] |= static_cast<std::uint8_t>((at[i] >> index & 1) << 2);
  }
}

// 8 scales and 8 minima of 6 bits in 12 bytes.
void set_k_scale(Bytes at, std::uint32_t index, GgufGroup& out) {
  Bytes packed = at + 4;
  int scale;
  int minimum;
  if (index < 4) {
    scale = packed[index] & 63;
    minimum = packed[index + 4] & 63;
  } else {
    scale = (packed[index + 4] & 15) | packed[index - 4] >> 6 << 4;
    minimum = packed[index + 4] >> 4 | packed[index] >> 6 << 4;
  }
  set_scale(out,
            read_half(at) * static_cast<float>(scale),
            -read_half(at + 2) * static_cast<float>(minimum));
}

// d, dmin, scales, values.
void unpack_q4_k(const std::byte* block, std::uint32_t index, GgufGroup& out) {
  Bytes at = as_bytes(block);
  set_k_scale(at, index, out);
  unpack_four_bits(at + 16, index, out);
}

// d, dmin, scales, fifth bits, values.
void unpack_q5_k(const std::byte* block, std::uint32_t index, GgufGroup& out) {
  Bytes at = as_bytes(block);
  set_k_scale(at, index, out);
  unpack_four_bits(at + 48, index, out);
  for (int i = 0; i < 32; ++i) {
    out.q[i] |= static_cast<std::uint8_t>((at[16 + i] >> index & 1) << 4);
  }
}

// Low four bits, high two bits, 16 scales (8 bits, signed), d.
void unpack_q6_k(const std::byte* block, std::uint32_t index, GgufGroup& out) {
  Bytes at = as_bytes(block);
  auto scale_of = [&](std::uint32_t i) {
    return static_cast<int>(static_cast<std::int8_t>(at[192 + i]));
  };
  set_units(out,
            read_half(at + 208),
            {scale_of(index * 2), scale_of(index * 2 + 1)},
            -32);
  Bytes low = at + index / 4 * 64 + index % 2 * 32;
  std::uint32_t low_shift = index % 4 / 2 * 4;
  Bytes high = at + 128 + index / 4 * 32;
  std::uint32_t high_shift = index % 4 * 2;
  for (int i = 0; i < 32; ++i) {
    out.q[i] = static_cast<std::uint8_t>((low[i] >> low_shift & 15) |
                                         (high[i] >> high_shift & 3) << 4);
  }
}

// The 16 values that the IQ4 formats choose from, plus 127.
constexpr std::array<std::uint8_t, 16> kIq4Values = {
    0, 23, 44, 62, 78, 92, 105, 117, 128, 140, 152, 165, 180, 196, 216, 240};

void look_up(const std::array<std::uint8_t, 16>& values, GgufGroup& out) {
  for (auto& q : out.q) {
    q = values[q];
  }
}

void unpack_iq4_nl(const std::byte* block, std::uint32_t, GgufGroup& out) {
  Bytes at = as_bytes(block);
  float d = read_half(at);
  set_scale(out, d, -127 * d);
  unpack_nibbles(at + 2, out);
  look_up(kIq4Values, out);
}

// d, high two bits of 8 scales, low four bits of them, values.
void unpack_iq4_xs(const std::byte* block,
                   std::uint32_t index,
                   GgufGroup& out) {
  Bytes at = as_bytes(block);
  std::uint16_t high;
  std::memcpy(&high, at + 2, sizeof(high));
  int scale = (at[4 + index / 2] >> (index % 2 * 4) & 15) |
              (high >> (index * 2) & 3) << 4;
  float d = read_half(at) * static_cast<float>(scale - 32);
  set_scale(out, d, -127 * d);
  unpack_nibbles(at + 8 + index * 16, out);
  look_up(kIq4Values, out);
}

// A power of two in a byte, then 4-bit floats; their values are doubled here
// and the power halved, plus 12.
void unpack_mxfp4(const std::byte* block, std::uint32_t, GgufGroup& out) {
  constexpr std::array<std::uint8_t, 16> kValues = {
      12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
  Bytes at = as_bytes(block);
  std::uint32_t bits = at[0] < 2 ? 0x00200000u << at[0]
                                 : static_cast<std::uint32_t>(at[0] - 1) << 23;
  float d = std::bit_cast<float>(bits);
  set_scale(out, d, -12 * d);
  unpack_nibbles(at + 1, out);
  look_up(kValues, out);
}

struct NamedFormat {
  std::string_view name;
  GgufBlockFormat format;
};

constexpr std::array kFormats = {
    NamedFormat{"Q4_0", {unpack_q4_0, 4, false}},
    NamedFormat{"Q4_1", {unpack_q4_1, 4, false}},
    NamedFormat{"Q5_0", {unpack_q5_0, 5, false}},
    NamedFormat{"Q5_1", {unpack_q5_1, 5, false}},
    NamedFormat{"Q8_0", {unpack_q8_0, 8, false}},
    NamedFormat{"Q2_K", {unpack_q2_k, 2, true}},
    NamedFormat{"Q3_K", {unpack_q3_k, 3, true}},
    NamedFormat{"Q4_K", {unpack_q4_k, 4, false}},
    NamedFormat{"Q5_K", {unpack_q5_k, 5, false}},
    NamedFormat{"Q6_K", {unpack_q6_k, 6, true}},
    NamedFormat{"IQ4_NL", {unpack_iq4_nl, 8, false}},
    NamedFormat{"IQ4_XS", {unpack_iq4_xs, 8, false}},
    NamedFormat{"MXFP4", {unpack_mxfp4, 5, false}},
};

}  // namespace

const GgufBlockFormat* find_block_format(const GgufType& type) {
  auto found = std::ranges::find(kFormats, type.name, &NamedFormat::name);
  return found == kFormats.end() ? nullptr : &found->format;
}

void dequantize_blocks(const GgufType& type,
                       const GgufBlockFormat& format,
                       std::span<const std::byte> blocks,
                       float* out) {
  GgufGroup group;
  for (std::size_t at = 0; at < blocks.size(); at += type.block_bytes) {
    for (std::uint32_t index = 0;
         index < type.block_elements / kGgufGroupElements;
         ++index) {
      format.unpack(blocks.data() + at, index, group);
      for (std::uint32_t i = 0; i < kGgufGroupElements; ++i) {
        *out++ = group.scale[i / 16] * static_cast<float>(group.q[i]) +
                 group.bias[i / 16];
      }
    }
  }
}

}  // namespace mlxlm
