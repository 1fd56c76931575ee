// Norms, gates and rotations of single rows.
#pragma once

#include "kernels/cpu/simd-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

// The last, incomplete vector of a row, filled up with zeros.
static inline Floats load_rest(const float* p, int count) {
  float lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) {
    lanes[i] = p[i];
  }
  return load(lanes);
}

static inline void store_rest(Floats v, float* p, int count) {
  float lanes[kLanes];
  store(v, lanes);
  for (int i = 0; i < count; ++i) {
    p[i] = lanes[i];
  }
}

// Calls f(i, count) for each vector of a row; count is kLanes but at the end.
template <class F>
static inline __attribute__((always_inline)) void for_each_vector(int size,
                                                                  F&& f) {
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    f(i, kLanes);
  }
  if (i < size) {
    f(i, size - i);
  }
}

static inline Floats load_some(const float* p, int count) {
  return count == kLanes ? load(p) : load_rest(p, count);
}

static inline void store_some(Floats v, float* p, int count) {
  count == kLanes ? store(v, p) : store_rest(v, p, count);
}

// Rows side by side: out[c * width + i] = row i's element c, for the rows
// [0, num_rows), and 0 for the others. load(i, c, count): a vector of them from
// c on, a multiple of kLanes. `width` is 1, 2, or made of vectors and half
// ones.
template <class Load>
static inline __attribute__((always_inline)) void interleave_rows(
    int num_rows, int width, int size, float* out, const Load& load) {
  constexpr int kHalf = kLanes / 2;
  if (width < kHalf) {
    for (int i = 0; i < width; ++i) {
      for_each_vector(size, [&](int c, int columns) {
        const Floats v = i < num_rows ? load(i, c, columns) : Floats{};
        for (int k = 0; k < columns; ++k) out[(c + k) * width + i] = v[k];
      });
    }
    return;
  }
  for (int i = 0; i < width; i += kLanes) {
    const int left = num_rows - i;
    const int count = left < kLanes ? left : kLanes;
    const bool is_half = width - i < kLanes;
    for_each_vector(size, [&](int c, int columns) {
      Floats rows[kLanes] = {};
      for (int j = 0; j < count; ++j) rows[j] = load(i + j, c, columns);
      transpose(rows);
      for (int k = 0; k < columns; ++k) {
        float* to = out + (c + k) * width + i;
        if (is_half) {
          std::memcpy(to, &rows[k], kHalf * sizeof(float));
        } else {
          store(rows[k], to);
        }
      }
    });
  }
}

static void to_half(const float* x, int size, std::uint16_t* y) {
  for_each_vector(size, [&](int i, int count) {
    if (count == kLanes) return store_f16(load(x + i), y + i);
    std::uint16_t rest[kLanes];
    store_f16(load_rest(x + i, count), rest);
    std::memcpy(y + i, rest, count * sizeof(*y));
  });
}

static void rms_norm(
    const float* x, int size, const float* weight, float eps, float* y) {
  Floats squares = {};
  for_each_vector(size, [&](int i, int count) {
    Floats v = load_some(x + i, count);
    squares += v * v;
  });
  const float factor =
      1.0f / __builtin_sqrtf(sum_of(squares) / static_cast<float>(size) + eps);
  for_each_vector(size, [&](int i, int count) {
    Floats v = load_some(x + i, count) * factor;
    if (weight != nullptr) {
      v *= load_some(weight + i, count);
    }
    store_some(v, y + i, count);
  });
}

static void layer_norm(const float* x,
                       int size,
                       const float* weight,
                       const float* bias,
                       float eps,
                       float* y) {
  Floats sum = {};
  for_each_vector(size,
                  [&](int i, int count) { sum += load_some(x + i, count); });
  const float mean = sum_of(sum) / static_cast<float>(size);
  Floats squares = {};
  for_each_vector(size, [&](int i, int count) {
    Floats v = load_some(x + i, count) - mean;
    if (count < kLanes) {
      v = load_rest(reinterpret_cast<const float*>(&v), count);
    }
    squares += v * v;
  });
  const float factor =
      1.0f / __builtin_sqrtf(sum_of(squares) / static_cast<float>(size) + eps);
  for_each_vector(size, [&](int i, int count) {
    Floats v = (load_some(x + i, count) - mean) * factor;
    if (weight != nullptr) {
      v *= load_some(weight + i, count);
    }
    if (bias != nullptr) {
      v += load_some(bias + i, count);
    }
    store_some(v, y + i, count);
  });
}

static inline Floats sigmoid(Floats x) {
  return 1.0f / (1.0f + exponential(-x));
}

static inline Floats tanh_of(Floats x) {
  return 1.0f - 2.0f / (1.0f + exponential(x * 2.0f));
}

static inline Floats erf_of(Floats x) {
  float lanes[kLanes];
  store(x, lanes);
  for (float& lane : lanes) {
    lane = __builtin_erff(lane);
  }
  return load(lanes);
}

static inline Floats apply(Floats x, GateFunction function) {
  switch (function) {
    case GateFunction::silu:
      return x * sigmoid(x);
    case GateFunction::gelu:
      return x * 0.5f * (1.0f + erf_of(x * 0.70710678118654752f));
    case GateFunction::gelu_tanh:
      return x * 0.5f *
             (1.0f +
              tanh_of(0.79788456080286536f * (x + x * x * x * 0.044715f)));
    case GateFunction::gelu_fast:
      return x * sigmoid(x * 1.702f);
    case GateFunction::relu:
      return maximum(x, Floats{});
    case GateFunction::relu_squared: {
      Floats positive = maximum(x, Floats{});
      return positive * positive;
    }
  }
  return x;
}

static void gate(float* gate,
                 const float* up,
                 int size,
                 GateFunction function) {
  for_each_vector(size, [&](int i, int count) {
    Floats v = apply(load_some(gate + i, count), function);
    if (up != nullptr) {
      v *= load_some(up + i, count);
    }
    store_some(v, gate + i, count);
  });
}

static float largest(const float* x, std::size_t size) {
  Floats most = splat(-__builtin_inff());
  std::size_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    most = maximum(most, load(x + i));
  }
  float result = largest_of(most);
  for (; i < size; ++i) {
    result = x[i] > result ? x[i] : result;
  }
  return result;
}

static float sum_of_exponentials(const float* x,
                                 std::size_t size,
                                 float shift) {
  Floats sum = {};
  std::size_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    sum += exponential(load(x + i) - shift);
  }
  float result = sum_of(sum);
  for (; i < size; ++i) {
    result += __builtin_expf(x[i] - shift);
  }
  return result;
}

static void subtract(const float* x, std::size_t size, float shift, float* y) {
  for (std::size_t i = 0; i < size; ++i) {
    y[i] = x[i] - shift;
  }
}

static void scale_add(const float* x, int size, float factor, float* y) {
  for_each_vector(size, [&](int i, int count) {
    store_some(load_some(x + i, count) + load_some(y + i, count) * factor,
               y + i,
               count);
  });
}

static void add_scaled(const float* x, int size, float factor, float* y) {
  for_each_vector(size, [&](int i, int count) {
    store_some(load_some(y + i, count) + load_some(x + i, count) * factor,
               y + i,
               count);
  });
}

static void rotate(float* x,
                   const float* cosines,
                   const float* sines,
                   int size,
                   bool interleaved) {
  if (interleaved) {
    for (int i = 0; i < size; ++i) {
      const float a = x[2 * i];
      const float b = x[2 * i + 1];
      x[2 * i] = a * cosines[i] - b * sines[i];
      x[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
    return;
  }
  for_each_vector(size, [&](int i, int count) {
    const Floats a = load_some(x + i, count);
    const Floats b = load_some(x + size + i, count);
    const Floats c = load_some(cosines + i, count);
    const Floats s = load_some(sines + i, count);
    store_some(a * c - b * s, x + i, count);
    store_some(a * s + b * c, x + size + i, count);
  });
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
