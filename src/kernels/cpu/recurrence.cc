// Recurrences: one node of the graph for a chunk. What is independent (rows of
// the batch, heads, rows of a state, channels) is spread over the threads; each
// part goes through all tokens.
#include <algorithm>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"

namespace mlxlm::kernels::cpu {
namespace {

// Multiplications below which handing them out doesn't pay.
constexpr std::size_t kManyProducts = 1 << 15;

// Calls part(i) for each of `num_parts`, on the threads if `num_products` in
// all is worth it.
template <class Part>
void for_each_part(int num_parts, std::size_t num_products, Part&& part) {
  if (num_products >= kManyProducts) return parallel_for(num_parts, part);
  for (int i = 0; i < num_parts; ++i) part(i);
}

mx::array in_float32(const mx::array& x) { return mx::astype(x, mx::float32); }

// The outputs of a host_op as Scanned, y in the dtype that x has.
Scanned scanned(std::vector<mx::array> outputs, const mx::array& x) {
  return {mx::astype(outputs[0], x.dtype()), outputs[1]};
}

// The i-th range of `total` things in ranges of `size`.
std::pair<int, int> range(int i, int size, int total) {
  return {i * size, std::min((i + 1) * size, total)};
}

int num_ranges(int size, int total) { return (total + size - 1) / size; }

constexpr int kTokensPerPart = 32;
constexpr int kStateRowsPerPart = 32;
constexpr int kChannelsPerPart = 64;

void run_conv(const mx::array& x,
              const mx::array& state,
              const mx::array& weight,
              const mx::array* bias,
              bool silu,
              float* y,
              float* new_state) {
  const Rows tokens(x);
  const Rows before(state);
  const Rows taps(weight);
  std::optional<Rows> added;
  if (bias != nullptr) added.emplace(*bias);
  const int num_tokens = x.shape(1);
  const int num_taps = weight.shape(0);
  const int held = num_taps - 1;
  const int size = x.shape(2);
  auto row = [&](int b, int t) {  // token t of row b; those before are < 0
    return t < 0 ? before.data() +
                       (static_cast<std::size_t>(b) * held + held + t) * size
                 : tokens.data() +
                       (static_cast<std::size_t>(b) * num_tokens + t) * size;
  };
  const int per_row = num_ranges(kTokensPerPart, num_tokens);
  for_each_part(x.shape(0) * per_row, x.size() * num_taps, [&](int part) {
    const int b = part / per_row;
    const auto [begin, end] = range(part % per_row, kTokensPerPart, num_tokens);
    std::vector<const float*> rows(num_taps);
    for (int t = begin; t < end; ++t) {
      for (int k = 0; k < num_taps; ++k) rows[k] = row(b, t - held + k);
      isa_kernels().convolve(
          rows.data(),
          taps.data(),
          added ? added->data() : nullptr,
          num_taps,
          size,
          silu,
          y + (static_cast<std::size_t>(b) * num_tokens + t) * size);
    }
  });
  for (int b = 0; b < x.shape(0); ++b) {
    for (int k = 0; k < held; ++k) {
      const float* from = row(b, num_tokens - held + k);
      std::copy(from,
                from + size,
                new_state + (static_cast<std::size_t>(b) * held + k) * size);
    }
  }
}

struct EraseTag {};
struct WriteTag {};
struct DecayTag {};
struct FedTag {};

// The arrays of a MatrixScan when they have values.
struct MatrixInputs {
  Rows state, q, k, v, decay;
  std::optional<Rows> beta, erase, write;
  int num_tokens, num_heads, num_key_heads, key_size, value_size;
  bool decay_per_key;

  // One head of one row of the batch, rows [begin, end) of its state.
  void run(
      int b, int head, int begin, int end, float* y, float* new_state) const {
    const int key_head = head / (num_heads / num_key_heads);
    const std::size_t state_at =
        ((static_cast<std::size_t>(b) * num_heads + head) * value_size +
         begin) *
        key_size;
    MatrixStep step;
    step.before = state.data() + state_at;
    step.after = new_state + state_at;
    step.num_rows = end - begin;
    step.key_size = key_size;
    for (int t = 0; t < num_tokens; ++t) {
      const std::size_t token = static_cast<std::size_t>(b) * num_tokens + t;
      const std::size_t at = token * num_heads + head;
      const std::size_t key_at = (token * num_key_heads + key_head) * key_size;
      step.q = q.data() + key_at;
      step.k = k.data() + key_at;
      step.v = v.data() + at * value_size + begin;
      step.y = y + at * value_size + begin;
      set_decay(at, step);
      set_erasure(at, step);
      isa_kernels().matrix_step(step);
      step.before = step.after;
    }
  }

  void set_decay(std::size_t at, MatrixStep& step) const {
    if (decay_per_key) {
      step.decay = decay.data() + at * key_size;
      return;
    }
    float* same = scratch<DecayTag>(key_size);
    std::fill(same, same + key_size, decay.data()[at]);
    step.decay = same;
  }

  void set_erasure(std::size_t at, MatrixStep& step) const {
    if (erase) {
      step.erase = erase->data() + at * key_size;
      step.write = write->data() + at * key_size;
    } else if (beta) {
      const float factor = beta->data()[at];
      float* erased = scratch<EraseTag>(key_size);
      float* written = scratch<WriteTag>(key_size);
      float* fed = scratch<FedTag>(step.num_rows);
      for (int i = 0; i < key_size; ++i) {
        erased[i] = step.decay[i] * step.k[i];
        written[i] = -factor * step.k[i];
      }
      for (int i = 0; i < step.num_rows; ++i) fed[i] = step.v[i] * factor;
      step.erase = erased;
      step.write = written;
      step.v = fed;
    }
  }
};

}  // namespace

Scanned causal_conv(const mx::array& x,
                    const CausalConv& conv,
                    const mx::array& state) {
  std::vector<mx::array> inputs{
      in_float32(x), in_float32(state), mx::transpose(in_float32(conv.weight))};
  if (conv.bias) inputs.push_back(in_float32(*conv.bias));
  return scanned(
      host_op("cpu_causal_conv",
              {{x.shape(), mx::float32}, {state.shape(), mx::float32}},
              std::move(inputs),
              [silu = conv.silu](auto in, auto out) {
                run_conv(in[0],
                         in[1],
                         in[2],
                         in.size() > 3 ? &in[3] : nullptr,
                         silu,
                         out[0].template data<float>(),
                         out[1].template data<float>());
              }),
      x);
}

Scanned matrix_scan(const MatrixScan& scan, const mx::array& state) {
  std::vector<mx::array> inputs;
  for (const auto* each : {&state, &scan.q, &scan.k, &scan.v, &scan.decay}) {
    inputs.push_back(in_float32(*each));
  }
  const bool has_beta = scan.beta.has_value();
  const bool has_erase = !has_beta && scan.erase.has_value();
  if (has_beta) inputs.push_back(in_float32(*scan.beta));
  if (has_erase) {
    inputs.push_back(in_float32(*scan.erase));
    inputs.push_back(in_float32(*scan.write));
  }
  auto run = [has_beta, has_erase](auto in, auto out) {
    MatrixInputs all{.state = Rows(in[0]),
                     .q = Rows(in[1]),
                     .k = Rows(in[2]),
                     .v = Rows(in[3]),
                     .decay = Rows(in[4]),
                     .num_tokens = in[3].shape(1),
                     .num_heads = in[3].shape(2),
                     .num_key_heads = in[1].shape(2),
                     .key_size = in[1].shape(3),
                     .value_size = in[3].shape(3),
                     .decay_per_key = in[4].ndim() == 4};
    if (has_beta) all.beta.emplace(in[5]);
    if (has_erase) {
      all.erase.emplace(in[5]);
      all.write.emplace(in[6]);
    }
    const int per_head = num_ranges(kStateRowsPerPart, all.value_size);
    for_each_part(in[3].shape(0) * all.num_heads * per_head,
                  in[3].size() * all.key_size,
                  [&](int part) {
                    const auto [begin, end] = range(
                        part % per_head, kStateRowsPerPart, all.value_size);
                    all.run(part / per_head / all.num_heads,
                            part / per_head % all.num_heads,
                            begin,
                            end,
                            out[0].template data<float>(),
                            out[1].template data<float>());
                  });
  };
  return scanned(
      host_op("cpu_matrix_scan",
              {{scan.v.shape(), mx::float32}, {state.shape(), mx::float32}},
              std::move(inputs),
              run),
      scan.v);
}

Scanned selective_scan(const SelectiveScan& scan, const mx::array& state) {
  std::vector<mx::array> inputs;
  for (const auto* each :
       {&state, &scan.x, &scan.step, &scan.a, &scan.b, &scan.c, &scan.skip}) {
    inputs.push_back(in_float32(*each));
  }
  auto run = [](auto in, auto out) {
    const Rows state(in[0]), x(in[1]), step(in[2]), a(in[3]), b(in[4]),
        c(in[5]), skip(in[6]);
    const int num_tokens = in[1].shape(1);
    const int num_channels = in[1].shape(2);
    const int state_size = in[3].shape(1);
    const int per_row = num_ranges(kChannelsPerPart, num_channels);
    for_each_part(
        in[1].shape(0) * per_row, in[1].size() * state_size, [&](int part) {
          const int row = part / per_row;
          const auto [begin, end] =
              range(part % per_row, kChannelsPerPart, num_channels);
          const std::size_t state_at =
              (static_cast<std::size_t>(row) * num_channels + begin) *
              state_size;
          SelectiveStep one;
          one.before = state.data() + state_at;
          one.after = out[1].template data<float>() + state_at;
          one.a = a.data() + static_cast<std::size_t>(begin) * state_size;
          one.skip = skip.data() + begin;
          one.num_channels = end - begin;
          one.state_size = state_size;
          for (int t = 0; t < num_tokens; ++t) {
            const std::size_t token =
                static_cast<std::size_t>(row) * num_tokens + t;
            one.x = x.data() + token * num_channels + begin;
            one.step = step.data() + token * num_channels + begin;
            one.b = b.data() + token * state_size;
            one.c = c.data() + token * state_size;
            one.y =
                out[0].template data<float>() + token * num_channels + begin;
            isa_kernels().selective_step(one);
            one.before = one.after;
          }
        });
  };
  return scanned(
      host_op("cpu_selective_scan",
              {{scan.x.shape(), mx::float32}, {state.shape(), mx::float32}},
              std::move(inputs),
              run),
      scan.x);
}

Scanned decayed_sum(const mx::array& x,
                    const mx::array& decay,
                    const mx::array& state) {
  auto run = [](auto in, auto out) {
    const Rows x(in[0]), decay(in[1]), state(in[2]);
    const int num_tokens = in[0].shape(1);
    const int size = in[0].shape(2);
    float* y = out[0].template data<float>();
    for (int row = 0; row < in[0].shape(0); ++row) {
      const float* before = state.data() + static_cast<std::size_t>(row) * size;
      for (int t = 0; t < num_tokens; ++t) {
        const std::size_t at =
            (static_cast<std::size_t>(row) * num_tokens + t) * size;
        isa_kernels().decay_and_add(
            before, decay.data() + at, x.data() + at, size, y + at);
        before = y + at;
      }
      std::copy(
          before,
          before + size,
          out[1].template data<float>() + static_cast<std::size_t>(row) * size);
    }
  };
  return scanned(
      host_op("cpu_decayed_sum",
              {{x.shape(), mx::float32}, {state.shape(), mx::float32}},
              {in_float32(x), in_float32(decay), in_float32(state)},
              run),
      x);
}

}  // namespace mlxlm::kernels::cpu
