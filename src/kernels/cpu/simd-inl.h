// Vectors of the instruction set that this file is compiled for. GCC's and
// Clang's vector types carry the arithmetic; only the loads that convert
// differ.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr bool kHas32Registers = true;
#else
inline constexpr bool kHas32Registers = false;
#endif

// Vectors that make up a panel's 16 rows.
inline constexpr int kParts = kPanelRows / kLanes;

// Calls f.template operator()<0>() ... <kCount - 1>().
template <int kCount, int i = 0, class F>
static inline __attribute__((always_inline)) void unroll(F&& f) {
  if constexpr (i < kCount) {
    f.template operator()<i>();
    unroll<kCount, i + 1>(f);
  }
}

typedef float Floats __attribute__((vector_size(4 * kLanes), may_alias));
typedef std::uint32_t Words __attribute__((vector_size(4 * kLanes), may_alias));
typedef std::int32_t Ints __attribute__((vector_size(4 * kLanes), may_alias));
typedef std::uint16_t Halves
    __attribute__((vector_size(2 * kLanes), may_alias));

static inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// v, loaded once for all its uses: compilers read it from memory for each,
// where the instruction can, and loads are what such loops wait for.
static inline Floats in_register(Floats v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

static inline Words load_words(const void* p) {
  Words v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

static inline void store(Floats v, float* p) { std::memcpy(p, &v, sizeof(v)); }

// Asks for weights that are read soon, into the second cache level: the first
// has a queue of 16 lines, which memory is too slow for. (Measured: docs/
// PERFORMANCE.md.)
inline constexpr std::size_t kAheadBytes = 6144;
// Always inlined: GCC takes a function that only prefetches for one without
// effect, and leaves calls of it out.
static inline __attribute__((always_inline)) void prefetch(const void* p) {
  __builtin_prefetch(p, 0, 2);
}

// Not a sum with 0, which would turn -0 into 0 and so cost an addition.
static inline Floats splat(float x) { return x - Floats{}; }

// a * b + c, rounded once where the machine has that: compilers fuse the two
// as they see fit, which would make a row's bits depend on the code around.
static inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

static inline Words bits_of(Floats v) { return (Words)v; }
static inline Floats floats_of(Words v) { return (Floats)v; }

static inline Floats load_bf16(const void* p) {
  Halves v;
  std::memcpy(&v, p, sizeof(v));
  return floats_of(__builtin_convertvector(v, Words) << 16);
}

static inline Floats load_f16(const void* p) {
#if defined(__AVX512F__)
  __m256i v;
  std::memcpy(&v, p, sizeof(v));
  return (Floats)_mm512_cvtph_ps(v);
#elif defined(__F16C__)
  __m128i v;
  std::memcpy(&v, p, sizeof(v));
  return (Floats)_mm256_cvtph_ps(v);
#elif defined(__aarch64__)
  float16x4_t v;
  std::memcpy(&v, p, sizeof(v));
  return (Floats)vcvt_f32_f16(v);
#else
  // Through the exponent: a half's bits in a float's place, times 2^112; this
  // is exact for subnormals too, and infinities are set apart.
  Halves v;
  std::memcpy(&v, p, sizeof(v));
  Words h = __builtin_convertvector(v, Words);
  Words magnitude = (h & 0x7fffu) << 13;
  Floats f = floats_of(magnitude) * 0x1p112f;
  Words special = (Words)(magnitude >= (0x7c00u << 13));
  return floats_of(bits_of(f) | (special & 0x7f800000u) |
                   ((h & 0x8000u) << 16));
#endif
}

// The nearest halves, of two equally near the even one; those too large for a
// half are the largest ones.
static inline void store_f16(Floats v, void* p) {
  constexpr float kLargest = 65504.0f;
  v = v > splat(kLargest) ? splat(kLargest) : v;  // what is no number stays so
  v = v < splat(-kLargest) ? splat(-kLargest) : v;
#if defined(__AVX512F__)
  const __m256i halves = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  const __m128i halves = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
  const float16x4_t halves = vcvt_f16_f32((float32x4_t)v);
#else
  const Words bits = bits_of(v);
  const Words magnitude = bits & 0x7fffffffu;
  // Half an even half less a bit is added, and what carries counts; below 2^-14
  // an addition of 0.5 rounds to where the last bit of such a half stands.
  const Words normal =
      ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  const Words small = bits_of(floats_of(magnitude) + 0.5f) - 0x3f000000u;
  Words half = magnitude < (113u << 23) ? small : normal;
  half = magnitude > 0x7f800000u ? half * 0u + 0x7e00u : half;
  const Halves halves =
      __builtin_convertvector(half | ((bits >> 16) & 0x8000u), Halves);
#endif
  std::memcpy(p, &halves, sizeof(halves));
}

static inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

static inline Floats minimum(Floats a, Floats b) { return a < b ? a : b; }

// v with lane i in place of lane i ^ distance.
template <int distance, int... i>
static inline Floats swap_these(Floats v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, (i ^ distance)...);
}
template <int distance>
static inline Floats swap_lanes(Floats v) {
  return swap_these<distance>(v, std::make_integer_sequence<int, kLanes>{});
}

static inline float sum_of(Floats v) {
  if constexpr (kLanes > 8) v += swap_lanes<8 % kLanes>(v);
  if constexpr (kLanes > 4) v += swap_lanes<4 % kLanes>(v);
  v += swap_lanes<2>(v);
  v += swap_lanes<1>(v);
  return v[0];
}

static inline float largest_of(Floats v) {
  if constexpr (kLanes > 8) v = maximum(v, swap_lanes<8 % kLanes>(v));
  if constexpr (kLanes > 4) v = maximum(v, swap_lanes<4 % kLanes>(v));
  v = maximum(v, swap_lanes<2>(v));
  v = maximum(v, swap_lanes<1>(v));
  return v[0];
}

// exp(x), to about one unit in the last place; 0 below -103 or so.
static inline Floats exponential(Floats x) {
  x = minimum(maximum(x, splat(-104.0f)), splat(88.7f));
  const Floats rounding = splat(12582912.0f);  // 1.5 * 2^23
  Floats n = (x * 1.44269504088896341f + rounding) - rounding;
  Floats r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);
#else
  // 2^n in two factors, so that results below 2^-126 stay right.
  Ints whole = __builtin_convertvector(n, Ints);
  Ints half = whole >> 1;
  Floats first = (Floats)((half + 127) << 23);
  Floats second = (Floats)((whole - half + 127) << 23);
  return p * first * second;
#endif
}

// Pairs of vectors exchange blocks of `distance` lanes: one step of
// transposing.
template <int distance, bool second, int... i>
static inline Floats mix_these(Floats a,
                               Floats b,
                               std::integer_sequence<int, i...>) {
  // Lanes of a where i's bit is 0 and of b where it is 1, of one half each.
  return __builtin_shufflevector(
      a,
      b,
      ((i & distance) != 0 ? kLanes + (second ? i : i - distance)
                           : (second ? i + distance : i))...);
}

// rows[i][j] -> rows[j][i]
template <int distance = kLanes / 2>
static inline __attribute__((always_inline)) void transpose(
    Floats (&rows)[kLanes]) {
  constexpr std::make_integer_sequence<int, kLanes> kAll;
  for (int i = 0; i < kLanes; ++i) {
    if (i & distance) continue;
    const Floats a = rows[i];
    const Floats b = rows[i + distance];
    rows[i] = mix_these<distance, false>(a, b, kAll);
    rows[i + distance] = mix_these<distance, true>(a, b, kAll);
  }
  if constexpr (distance > 1) transpose<distance / 2>(rows);
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
