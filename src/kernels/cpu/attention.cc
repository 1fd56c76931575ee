// Attention over the threads: heads and runs of queries, or, for few queries,
// runs of keys whose results are merged.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

struct WorkTag {};
struct PartsTag {};

// Queries per task, and keys per task where the keys are split.
constexpr int kQueriesPerTask = 64;
constexpr int kLeastKeys = 256;

// An array [B, H, L, D] with the elements of a head side by side; copied if
// they lie otherwise.
struct Heads {
  std::optional<Rows> copy;
  const float* data = nullptr;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t head_stride = 0;
  std::ptrdiff_t token_stride = 0;

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
  Heads k;
  Heads v;
  int batch, heads, kv_heads, queries, keys, head_size, value_size;
  const mx::array* mask;  // [B, H, L, T], or null
  const float* sinks;     // [H], or null
  const AttentionParameters& parameters;

  Problem(std::span<const mx::array> in,
          const mx::array* mask,
          const float* sinks,
          const AttentionParameters& parameters)
      : q(in[0]),
        k(in[1]),
        v(in[2]),
        batch(in[0].shape(0)),
        heads(in[0].shape(1)),
        kv_heads(in[1].shape(1)),
        queries(in[0].shape(2)),
        keys(in[1].shape(2)),
        head_size(in[0].shape(3)),
        value_size(in[2].shape(3)),
        mask(mask),
        sinks(sinks),
        parameters(parameters) {}
};

AttentionTask make_task(
    const Problem& p, int b, int h, int first_query, int num_queries) {
  const int kv_head = h / (p.heads / p.kv_heads);
  AttentionTask t;
  t.q = p.q.head(b, h) + first_query * p.q.token_stride;
  t.k = p.k.head(b, kv_head);
  t.v = p.v.head(b, kv_head);
  t.query_stride = p.q.token_stride;
  t.key_stride = p.k.token_stride;
  t.value_stride = p.v.token_stride;
  t.num_queries = num_queries;
  t.head_size = p.head_size;
  t.value_size = p.value_size;
  t.end_key = p.keys;
  t.scale = p.parameters.scale;
  t.softcap = p.parameters.softcap;
  if (p.mask != nullptr) {
    const mx::array& mask = *p.mask;
    const std::ptrdiff_t offset = b * mask.strides(0) + h * mask.strides(1) +
                                  first_query * mask.strides(2);
    t.mask_query_stride = mask.strides(2);
    t.mask_key_stride = mask.strides(3);
    if (mask.dtype() == mx::bool_) {
      t.mask_bool = mask.data<bool>() + offset;
    } else {
      t.mask_add = mask.data<float>() + offset;
    }
  } else if (p.parameters.causal) {
    t.causal = true;
    t.causal_end = p.keys - p.queries + first_query + 1;
  }
  return t;
}

// Merges the parts of one query and divides by the sum of all weights.
// Part i: largest[i], sum[i], out + i * part_stride.
void merge(const float* largest,
           const float* sum,
           const float* out,
           std::size_t part_stride,
           std::size_t value_stride,
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
      isa_kernels().add_scaled(out + i * value_stride, size, weight, y);
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

void run(const Problem& p, float* y) {
  const IsaKernels& isa = isa_kernels();
  const int rows = p.batch * p.heads;
  const int run_size = std::min(kQueriesPerTask, p.queries);
  const int runs = (p.queries + run_size - 1) / run_size;
  int splits = 1;
  if (rows * runs < 4 * num_threads()) {
    splits = std::clamp(4 * num_threads() / std::max(rows * runs, 1),
                        1,
                        std::max(p.keys / kLeastKeys, 1));
  }
  const int keys_per_split = (p.keys + splits - 1) / splits;
  // One part: run_size x (largest, sum, values).
  const std::size_t part_floats =
      static_cast<std::size_t>(run_size) * (2 + p.value_size);
  const int tasks = rows * runs * splits;
  float* parts = scratch<PartsTag>(tasks * part_floats);
  auto part = [&](int i) {
    float* base = parts + i * part_floats;
    return Part{base, base + run_size, base + 2 * run_size};
  };
  auto queries_in = [&](int run) {
    return std::min(run_size, p.queries - run * run_size);
  };
  parallel_for(tasks, [&](int i) {
    const int split = i % splits;
    const int run = i / splits % runs;
    const int row = i / splits / runs;
    AttentionTask task = make_task(
        p, row / p.heads, row % p.heads, run * run_size, queries_in(run));
    task.first_key = std::min(split * keys_per_split, p.keys);
    task.end_key = std::min(task.first_key + keys_per_split, p.keys);
    task.largest = part(i).largest;
    task.sum = part(i).sum;
    task.out = part(i).out;
    isa.attention(task,
                  scratch<WorkTag>(isa.attention_scratch_floats(
                      task.head_size, task.value_size)));
  });
  parallel_for(rows * runs, [&](int i) {
    const int row = i / runs;
    const int run = i % runs;
    const Part first = part(i * splits);
    for (int query = 0; query < queries_in(run); ++query) {
      merge(first.largest + query,
            first.sum + query,
            first.out + static_cast<std::size_t>(query) * p.value_size,
            part_floats,
            part_floats,
            splits,
            p.sinks != nullptr ? p.sinks + row % p.heads : nullptr,
            p.value_size,
            y + (static_cast<std::size_t>(row) * p.queries + run * run_size +
                 query) *
                    p.value_size);
    }
  });
}

bool suits(const mx::array& x) {
  return x.dtype() == mx::float32 && x.ndim() == 4;
}

}  // namespace

mx::array attention(const mx::array& q,
                    const mx::array& k,
                    const mx::array& v,
                    const AttentionParameters& parameters) {
  if (!suits(q) || !suits(k) || !suits(v)) {
    return reference_table().attention(q, k, v, parameters);
  }
  const mx::Shape shape{q.shape(0), q.shape(1), q.shape(2), v.shape(3)};
  std::vector<mx::array> inputs{q, k, v};
  const bool has_mask = parameters.mask.has_value();
  if (has_mask) {
    auto mask = *parameters.mask;
    if (mask.dtype() != mx::bool_) mask = mx::astype(mask, mx::float32);
    inputs.push_back(mx::broadcast_to(
        mask, {q.shape(0), q.shape(1), q.shape(2), k.shape(2)}));
  }
  if (parameters.sinks) {
    inputs.push_back(
        mx::contiguous(mx::astype(*parameters.sinks, mx::float32)));
  }
  AttentionParameters plain = parameters;
  plain.mask.reset();
  plain.sinks.reset();
  return host_op("cpu_attention",
                 {{shape, mx::float32}},
                 std::move(inputs),
                 [plain, has_mask, has_sinks = parameters.sinks.has_value()](
                     auto in, auto out) {
                   Problem problem(
                       in,
                       has_mask ? &in[3] : nullptr,
                       has_sinks ? in.back().template data<float>() : nullptr,
                       plain);
                   run(problem, out[0].template data<float>());
                 })[0];
}

}  // namespace mlxlm::kernels::cpu
