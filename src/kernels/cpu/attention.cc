// Attention as operations of MLX's graph.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/composite.h"
#include "kernels/cpu/attention_run.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

bool suits(const mx::array& x) {
  return x.dtype() == mx::float32 && x.ndim() == 4;
}

// Keys and values of a cache.
bool suit_as_held(const mx::array& k, const mx::array& v) {
  return (k.dtype() == mx::float32 || k.dtype() == mx::float16) &&
         v.dtype() == k.dtype() && k.ndim() == 4 && v.ndim() == 4;
}

// Mask and sinks as inputs of an operation, and the rest.
struct Extras {
  AttentionParameters parameters;
  bool has_mask;
  bool has_sinks;

  Extras(const AttentionParameters& all,
         const mx::array& q,
         int num_keys,
         std::vector<mx::array>& inputs)
      : parameters(all),
        has_mask(all.mask.has_value()),
        has_sinks(all.sinks.has_value()) {
    if (has_mask) {
      auto mask = *all.mask;
      if (mask.dtype() != mx::bool_) mask = mx::astype(mask, mx::float32);
      inputs.push_back(mx::broadcast_to(
          mask, {q.shape(0), q.shape(1), q.shape(2), num_keys}));
    }
    if (has_sinks) {
      inputs.push_back(mx::contiguous(mx::astype(*all.sinks, mx::float32)));
    }
    parameters.mask.reset();
    parameters.sinks.reset();
  }

  const mx::array* mask(std::span<const mx::array> rest) const {
    return has_mask ? &rest[0] : nullptr;
  }

  const float* sinks(std::span<const mx::array> rest) const {
    return has_sinks ? rest.back().data<float>() : nullptr;
  }

  // `rest`: the inputs from the first extra one on.
  void attend(const mx::array& q,
              const mx::array& k,
              const mx::array& v,
              int num_keys,
              std::span<const mx::array> rest,
              mx::array& out) const {
    AttentionProblem problem(
        q, k, v, num_keys, mask(rest), sinks(rest), parameters, out);
    kernels::cpu::attend({&problem, 1});
  }
};

}  // namespace

mx::array to_half(const mx::array& x) {
  return host_op(
      "cpu_to_half", {{x.shape(), mx::float16}}, {x}, [](auto in, auto out) {
        const Written all{.first = 0, .count = in[0].shape(2), .at = 0};
        write_rows(in[0], all, out[0]);
      })[0];
}

mx::array attention(const mx::array& q,
                    const mx::array& k,
                    const mx::array& v,
                    const AttentionParameters& parameters) {
  if (!suits(q) || !suit_as_held(k, v)) {
    return reference_table().attention(q, k, v, parameters);
  }
  std::vector<mx::array> inputs{q, k, v};
  Extras extras(parameters, q, k.shape(2), inputs);
  return host_op(
      "cpu_attention",
      {{{q.shape(0), q.shape(1), q.shape(2), v.shape(3)}, mx::float32}},
      std::move(inputs),
      [extras](auto in, auto out) {
        extras.attend(
            in[0], in[1], in[2], in[1].shape(2), in.subspan(3), out[0]);
      })[0];
}

AppendedAttention append_attention(const mx::array& q,
                                   const mx::array& k,
                                   const mx::array& v,
                                   const mx::array& keys,
                                   const mx::array& values,
                                   int at,
                                   int num_keys,
                                   const AttentionParameters& parameters) {
  std::vector<mx::array> inputs{q, k, v, keys, values};
  if (!suits(q) || !suits(k) || !suits(v) || !suit_as_held(keys, values)) {
    return composite::append_attention(
        cpu_table(), q, k, v, keys, values, at, num_keys, parameters);
  }
  Extras extras(parameters, q, num_keys, inputs);
  auto made = host_op(
      "cpu_append_attention",
      {{{q.shape(0), q.shape(1), q.shape(2), v.shape(3)}, mx::float32},
       {keys.shape(), keys.dtype(), /*takes_over=*/3},
       {values.shape(), values.dtype(), /*takes_over=*/4}},
      std::move(inputs),
      [extras, at, num_keys](auto in, auto out) {
        const Written all{.first = 0, .count = in[1].shape(2), .at = at};
        write_rows(in[1], all, out[1]);
        write_rows(in[2], all, out[2]);
        extras.attend(in[0], out[1], out[2], num_keys, in.subspan(5), out[0]);
      });
  return {made[0], made[1], made[2]};
}

std::optional<AppendedRows> append_rows(const mx::array& q,
                                        const mx::array& k,
                                        const mx::array& v,
                                        std::span<const BatchRow> rows,
                                        const AttentionParameters& parameters) {
  struct Part {
    Written written;
    int num_keys;
  };
  std::vector<mx::array> inputs{q, k, v};
  bool suitable = suits(q) && suits(k) && suits(v) && !parameters.mask;
  std::vector<Part> parts;
  int first = 0;
  for (const BatchRow& row : rows) {
    suitable = suitable && suit_as_held(row.keys, row.values);
    inputs.push_back(row.keys);
    inputs.push_back(row.values);
    parts.push_back({{first, row.num_tokens, row.at}, row.num_keys});
    first += row.num_tokens;
  }
  if (!suitable) return std::nullopt;
  Extras extras(parameters, q, /*num_keys=*/0, inputs);
  const mx::array* latest = nullptr;
  for (const BatchRow& row : rows) {
    if (!row.after || (latest && latest->id() == row.after->id())) continue;
    latest = &*row.after;
    inputs.push_back(*latest);
  }
  auto made = host_op("cpu_append_rows",
                      {{{1, q.shape(1), q.shape(2), v.shape(3)}, mx::float32},
                       {{1}, mx::uint8}},
                      std::move(inputs),
                      [extras, parts = std::move(parts)](auto in, auto out) {
                        const std::size_t end = 3 + 2 * parts.size();
                        std::vector<AttentionProblem> problems;
                        problems.reserve(parts.size());
                        for (std::size_t i = 0; i < parts.size(); ++i) {
                          const auto& [written, num_keys] = parts[i];
                          const mx::array& keys = in[3 + 2 * i];
                          const mx::array& values = in[4 + 2 * i];
                          write_rows(in[1], written, keys);
                          write_rows(in[2], written, values);
                          problems
                              .emplace_back(in[0],
                                            keys,
                                            values,
                                            num_keys,
                                            nullptr,
                                            extras.has_sinks
                                                ? in[end].template data<float>()
                                                : nullptr,
                                            extras.parameters,
                                            out[0])
                              .narrow(written.first, written.count);
                        }
                        kernels::cpu::attend(problems);
                        *out[1].template data<std::uint8_t>() = 0;
                      });
  return AppendedRows{made[0], made[1]};
}

mx::array quantized_attention(const mx::array& q,
                              const QuantizedTensor& k,
                              const QuantizedTensor& v,
                              const AttentionParameters& parameters) {
  const mx::Dtype dtypes[] = {
      k.scales.dtype(), k.zeros.dtype(), v.scales.dtype(), v.zeros.dtype()};
  const bool floats = std::all_of(std::begin(dtypes),
                                  std::end(dtypes),
                                  [](mx::Dtype d) { return d == mx::float32; });
  if (!suits(q)) {
    return reference_table().quantized_attention(q, k, v, parameters);
  }
  if (!floats) {
    auto widened = [](QuantizedTensor t) {
      t.scales = mx::astype(t.scales, mx::float32);
      t.zeros = mx::astype(t.zeros, mx::float32);
      return t;
    };
    return quantized_attention(q, widened(k), widened(v), parameters);
  }
  std::vector<mx::array> inputs{
      q, k.data, k.scales, k.zeros, v.data, v.scales, v.zeros};
  Extras extras(parameters, q, k.data.shape(2), inputs);
  return host_op(
      "cpu_quantized_attention",
      {{{q.shape(0), q.shape(1), q.shape(2), v.scales.shape(3) * v.group_size},
        mx::float32}},
      std::move(inputs),
      [extras,
       k_format = std::pair(k.group_size, k.bits),
       v_format = std::pair(v.group_size, v.bits)](auto in, auto out) {
        AttentionProblem problem(
            in[0],
            QuantizedHeads(
                in[1], in[2], in[3], k_format.first, k_format.second),
            QuantizedHeads(
                in[4], in[5], in[6], v_format.first, v_format.second),
            extras.mask(in.subspan(7)),
            extras.sinks(in.subspan(7)),
            extras.parameters,
            out[0]);
        attend({&problem, 1});
      })[0];
}

}  // namespace mlxlm::kernels::cpu
