// Attention over the threads: heads and runs of queries, or, for few queries,
// runs of keys whose results are merged.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/composite.h"
#include "kernels/cpu/bind.h"
#include "kernels/cpu/quantized_heads.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

struct WorkTag {};
struct PartsTag {};
struct KeysTag {};
struct ValuesTag {};

// Rows (queries of all heads that share a key head) per task, and keys per task
// where the keys are split.
constexpr int kRowsPerTask = 192;
constexpr int kLeastKeys = 128;
// Keys of a quantized cache that are floats at a time.
constexpr int kQuantizedKeys = 512;

// Multiplications below which handing out costs more than it brings.
constexpr std::size_t kSmallWork = 32 * 1024;

// An array [B, H, L, D] with the elements of a head side by side; copied if
// they lie otherwise.
struct Heads {
  std::optional<Rows> copy;
  const float* data = nullptr;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t head_stride = 0;
  std::ptrdiff_t token_stride = 0;

  Heads() = default;
  explicit Heads(const mx::array& x) : data(x.data<float>()) {
    if (x.shape(3) == 1 || x.strides(3) == 1) {
      row_stride = x.strides(0);
      head_stride = x.strides(1);
      token_stride = x.strides(2);
      return;
    }
    copy.emplace(x);
    data = copy->data();
    token_stride = x.shape(3);
    head_stride = token_stride * x.shape(2);
    row_stride = head_stride * x.shape(1);
  }

  const float* head(int b, int h) const {
    return data + b * row_stride + h * head_stride;
  }
};

struct Problem {
  Heads q;
  Heads k;  // these or those
  Heads v;
  std::optional<QuantizedHeads> quantized_k;
  std::optional<QuantizedHeads> quantized_v;
  int batch, heads, kv_heads, queries, keys, head_size, value_size;
  const mx::array* mask;  // [B, H, L, T], or null
  const float* sinks;     // [H], or null
  const AttentionParameters& parameters;

  // Of k and v the first `num_keys` rows count.
  Problem(const mx::array& q,
          const mx::array& k,
          const mx::array& v,
          int num_keys,
          const mx::array* mask,
          const float* sinks,
          const AttentionParameters& parameters)
      : q(q),
        k(k),
        v(v),
        batch(q.shape(0)),
        heads(q.shape(1)),
        kv_heads(k.shape(1)),
        queries(q.shape(2)),
        keys(num_keys),
        head_size(q.shape(3)),
        value_size(v.shape(3)),
        mask(mask),
        sinks(sinks),
        parameters(parameters) {}

  Problem(const mx::array& q,
          QuantizedHeads k,
          QuantizedHeads v,
          const mx::array* mask,
          const float* sinks,
          const AttentionParameters& parameters)
      : q(q),
        quantized_k(std::move(k)),
        quantized_v(std::move(v)),
        batch(q.shape(0)),
        heads(q.shape(1)),
        kv_heads(quantized_k->num_heads()),
        queries(q.shape(2)),
        keys(quantized_k->num_rows()),
        head_size(q.shape(3)),
        value_size(quantized_v->row_size()),
        mask(mask),
        sinks(sinks),
        parameters(parameters) {}

  int group() const { return heads / kv_heads; }
};

AttentionTask make_task(
    const Problem& p, int b, int kv_head, int first_query, int num_queries) {
  const int head = kv_head * p.group();
  AttentionTask t;
  t.q = p.q.head(b, head) + first_query * p.q.token_stride;
  if (!p.quantized_k) {
    t.k = p.k.head(b, kv_head);
    t.v = p.v.head(b, kv_head);
  }
  t.head_stride = p.q.head_stride;
  t.query_stride = p.q.token_stride;
  t.key_stride = p.k.token_stride;
  t.value_stride = p.v.token_stride;
  t.num_heads = p.group();
  t.num_queries = num_queries;
  t.head_size = p.head_size;
  t.value_size = p.value_size;
  t.end_key = p.keys;
  t.scale = p.parameters.scale;
  t.softcap = p.parameters.softcap;
  if (p.mask != nullptr) {
    const mx::array& mask = *p.mask;
    const std::ptrdiff_t offset = b * mask.strides(0) + head * mask.strides(1) +
                                  first_query * mask.strides(2);
    t.mask_head_stride = mask.strides(1);
    t.mask_query_stride = mask.strides(2);
    t.mask_key_stride = mask.strides(3);
    if (mask.dtype() == mx::bool_) {
      t.mask_bool = mask.data<bool>() + offset;
    } else {
      t.mask_add = mask.data<float>() + offset;
    }
  } else if (p.parameters.causal && p.queries > 1) {
    t.causal = true;
    t.causal_end = p.keys - p.queries + first_query + 1;
  }
  return t;
}

// Puts the task's keys and values, as floats, in place of those of the cache.
void read_quantized(const Problem& p, int b, int kv_head, AttentionTask& t) {
  if (t.causal) {
    const int seen = std::max(t.causal_end + t.num_queries - 1, t.first_key);
    t.end_key = std::min(t.end_key, seen);
  }
  const int first = t.first_key;
  const int count = t.end_key - first;
  float* keys = scratch<KeysTag>(static_cast<std::size_t>(count) * p.head_size);
  float* values =
      scratch<ValuesTag>(static_cast<std::size_t>(count) * p.value_size);
  p.quantized_k->read(b, kv_head, first, count, keys);
  p.quantized_v->read(b, kv_head, first, count, values);
  t.k = keys;
  t.v = values;
  t.key_stride = p.head_size;
  t.value_stride = p.value_size;
  t.first_key = 0;
  t.end_key = count;
  t.causal_end -= first;
  if (t.mask_bool != nullptr) t.mask_bool += first * t.mask_key_stride;
  if (t.mask_add != nullptr) t.mask_add += first * t.mask_key_stride;
}

// Merges the parts of one query and divides by the sum of all weights.
// Part i: largest[i], sum[i], out + i * part_stride.
void merge(const float* largest,
           const float* sum,
           const float* out,
           std::size_t part_stride,
           int num_parts,
           const float* sink,
           int size,
           float* y) {
  float most =
      sink != nullptr ? *sink : -std::numeric_limits<float>::infinity();
  for (int i = 0; i < num_parts; ++i) {
    most = std::max(most, largest[i * part_stride]);
  }
  std::fill(y, y + size, 0.0f);
  if (most == -std::numeric_limits<float>::infinity()) {
    return;  // everything is masked
  }
  float total = sink != nullptr ? std::exp(*sink - most) : 0.0f;
  for (int i = 0; i < num_parts; ++i) {
    const float weight = std::exp(largest[i * part_stride] - most);
    if (weight > 0.0f) {
      total += sum[i * part_stride] * weight;
      isa_kernels().add_scaled(out + i * part_stride, size, weight, y);
    }
  }
  for (int d = 0; d < size; ++d) {
    y[d] /= total;
  }
}

// Where one task leaves its results, before they are merged.
struct Part {
  float* largest;
  float* sum;
  float* out;
};

// How the work is cut: `runs` of `run_size` queries, `splits` of the keys.
struct Cut {
  int run_size, runs, splits, keys_per_split;

  explicit Cut(const Problem& p) {
    run_size = std::clamp(kRowsPerTask / p.group(), 1, p.queries);
    runs = (p.queries + run_size - 1) / run_size;
    splits = 1;
    const int tasks = std::max(p.batch * p.kv_heads * runs, 1);
    if (tasks < 4 * num_threads()) {
      splits = std::clamp(
          4 * num_threads() / tasks, 1, std::max(p.keys / kLeastKeys, 1));
    }
    if (p.quantized_k) {
      splits = std::max(splits, (p.keys + kQuantizedKeys - 1) / kQuantizedKeys);
    }
    keys_per_split = (p.keys + splits - 1) / splits;
  }

  int queries_in(const Problem& p, int run) const {
    return std::min(run_size, p.queries - run * run_size);
  }
};

void run(const Problem& p, float* y) {
  const IsaKernels& isa = isa_kernels();
  const Cut cut(p);
  // One part: rows x (largest, sum, values).
  const int part_rows = cut.run_size * p.group();
  const std::size_t part_floats =
      static_cast<std::size_t>(part_rows) * (2 + p.value_size);
  const int places = p.batch * p.kv_heads * cut.runs;
  const int tasks = places * cut.splits;
  float* parts = scratch<PartsTag>(tasks * part_floats);
  auto part = [&](int i) {
    float* base = parts + i * part_floats;
    return Part{base, base + part_rows, base + 2 * part_rows};
  };
  auto attend = [&](int i) {
    const int split = i % cut.splits;
    const int place = i / cut.splits;
    const int run = place % cut.runs;
    const int kv_head = place / cut.runs % p.kv_heads;
    const int b = place / cut.runs / p.kv_heads;
    AttentionTask task =
        make_task(p, b, kv_head, run * cut.run_size, cut.queries_in(p, run));
    task.first_key = std::min(split * cut.keys_per_split, p.keys);
    task.end_key = std::min(task.first_key + cut.keys_per_split, p.keys);
    if (p.quantized_k) read_quantized(p, b, kv_head, task);
    task.largest = part(i).largest;
    task.sum = part(i).sum;
    task.out = part(i).out;
    isa.attention(task,
                  scratch<WorkTag>(isa.attention_scratch_floats(
                      task.head_size, task.num_rows())));
  };
  auto finish = [&](int place) {
    const int run = place % cut.runs;
    const int queries = cut.queries_in(p, run);
    const int first_head = place / cut.runs * p.group();
    const Part first = part(place * cut.splits);
    for (int row = 0; row < p.group() * queries; ++row) {
      const int head = first_head + row / queries;  // of all batch rows'
      const int query = run * cut.run_size + row % queries;
      merge(first.largest + row,
            first.sum + row,
            first.out + static_cast<std::size_t>(row) * p.value_size,
            part_floats,
            cut.splits,
            p.sinks != nullptr ? p.sinks + head % p.heads : nullptr,
            p.value_size,
            y + (static_cast<std::size_t>(head) * p.queries + query) *
                    p.value_size);
    }
  };
  const std::size_t work = static_cast<std::size_t>(p.batch) * p.heads *
                           p.queries * p.keys * p.head_size;
  if (work < kSmallWork) {
    for (int i = 0; i < tasks; ++i) attend(i);
    for (int i = 0; i < places; ++i) finish(i);
    return;
  }
  parallel_for(tasks, attend);
  if (p.queries == 1) {
    for (int i = 0; i < places; ++i) finish(i);
  } else {
    parallel_for(places, finish);
  }
}

bool suits(const mx::array& x) {
  return x.dtype() == mx::float32 && x.ndim() == 4;
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
    Problem problem(q, k, v, num_keys, mask(rest), sinks(rest), parameters);
    run(problem, out.data<float>());
  }
};

// Writes rows [B, H, L, D] into buffer [B, H, T, D] from row `at` on.
void write_rows(const mx::array& rows, mx::array& buffer, int at) {
  const Heads from(rows);
  const int size = rows.shape(3);
  for (int b = 0; b < rows.shape(0); ++b) {
    for (int h = 0; h < rows.shape(1); ++h) {
      for (int i = 0; i < rows.shape(2); ++i) {
        const float* row = from.head(b, h) + i * from.token_stride;
        std::copy(row,
                  row + size,
                  buffer.data<float>() + b * buffer.strides(0) +
                      h * buffer.strides(1) + (at + i) * buffer.strides(2));
      }
    }
  }
}

}  // namespace

mx::array attention(const mx::array& q,
                    const mx::array& k,
                    const mx::array& v,
                    const AttentionParameters& parameters) {
  if (!suits(q) || !suits(k) || !suits(v)) {
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
  if (!std::all_of(inputs.begin(), inputs.end(), [](const mx::array& x) {
        return suits(x);
      })) {
    return composite::append_attention(
        cpu_table(), q, k, v, keys, values, at, num_keys, parameters);
  }
  Extras extras(parameters, q, num_keys, inputs);
  auto made = host_op(
      "cpu_append_attention",
      {{{q.shape(0), q.shape(1), q.shape(2), v.shape(3)}, mx::float32},
       {keys.shape(), mx::float32, /*takes_over=*/3},
       {values.shape(), mx::float32, /*takes_over=*/4}},
      std::move(inputs),
      [extras, at, num_keys](auto in, auto out) {
        write_rows(in[1], out[1], at);
        write_rows(in[2], out[2], at);
        extras.attend(in[0], out[1], out[2], num_keys, in.subspan(5), out[0]);
      });
  return {made[0], made[1], made[2]};
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
    auto restored = [](const QuantizedTensor& t) {
      return mx::astype(
          mx::dequantize(t.data, t.scales, t.zeros, t.group_size, t.bits),
          mx::float32);
    };
    return attention(q, restored(k), restored(v), parameters);
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
        Problem problem(
            in[0],
            QuantizedHeads(
                in[1], in[2], in[3], k_format.first, k_format.second),
            QuantizedHeads(
                in[4], in[5], in[6], v_format.first, v_format.second),
            extras.mask(in.subspan(7)),
            extras.sinks(in.subspan(7)),
            extras.parameters);
        run(problem, out[0].template data<float>());
      })[0];
}

}  // namespace mlxlm::kernels::cpu
