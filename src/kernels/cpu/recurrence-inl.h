// Single steps of the recurrences.
#pragma once

#include "kernels/cpu/elementwise-inl.h"

namespace mlxlm::kernels::cpu {
namespace MLXLM_ISA {

static void convolve(const float* const* taps,
                     const float* weights,
                     const float* bias,
                     int num_taps,
                     int size,
                     bool silu,
                     float* y) {
  for_each_vector(size, [&](int i, int count) {
    Floats sum = bias != nullptr ? load_some(bias + i, count) : Floats{};
    for (int k = 0; k < num_taps; ++k) {
      sum += load_some(taps[k] + i, count) *
             load_some(weights + static_cast<std::size_t>(k) * size + i, count);
    }
    store_some(silu ? sum * sigmoid(sum) : sum, y + i, count);
  });
}

static float dot(const float* x, const float* y, int size) {
  Floats sum = {};
  for_each_vector(size, [&](int i, int count) {
    sum += load_some(x + i, count) * load_some(y + i, count);
  });
  return sum_of(sum);
}

static void matrix_step(const MatrixStep& step) {
  const int size = step.key_size;
  for (int row = 0; row < step.num_rows; ++row) {
    const std::size_t at = static_cast<std::size_t>(row) * size;
    const float* s = step.before + at;
    const float v = step.v[row];
    const float old = step.erase != nullptr ? dot(s, step.erase, size) : 0.0f;
    Floats sum = {};
    for_each_vector(size, [&](int i, int count) {
      Floats next = load_some(s + i, count) * load_some(step.decay + i, count) +
                    load_some(step.k + i, count) * v;
      if (step.erase != nullptr) {
        next += load_some(step.write + i, count) * old;
      }
      store_some(next, step.after + at + i, count);
      sum += next * load_some(step.q + i, count);
    });
    step.y[row] = sum_of(sum);
  }
}

static void selective_step(const SelectiveStep& step) {
  const int size = step.state_size;
  for (int channel = 0; channel < step.num_channels; ++channel) {
    const std::size_t at = static_cast<std::size_t>(channel) * size;
    const float x = step.x[channel];
    const float delta = step.step[channel];
    const float fed = delta * x;
    Floats sum = {};
    for_each_vector(size, [&](int i, int count) {
      Floats next = load_some(step.before + at + i, count) *
                        exponential(load_some(step.a + at + i, count) * delta) +
                    load_some(step.b + i, count) * fed;
      store_some(next, step.after + at + i, count);
      sum += next * load_some(step.c + i, count);
    });
    step.y[channel] = sum_of(sum) + step.skip[channel] * x;
  }
}

static void decay_and_add(const float* before,
                          const float* decay,
                          const float* x,
                          int size,
                          float* y) {
  for_each_vector(size, [&](int i, int count) {
    store_some(load_some(before + i, count) * load_some(decay + i, count) +
                   load_some(x + i, count),
               y + i,
               count);
  });
}

}  // namespace MLXLM_ISA
}  // namespace mlxlm::kernels::cpu
