// Heads and runs of queries are tasks, or, where those are few, runs of keys,
// whose results are added.
#include "kernels/cpu/attention_run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"

namespace mlxlm::kernels::cpu {
namespace {

struct WorkTag {};
struct PartsTag {};
struct SplitTag {};
struct KeysTag {};
struct ValuesTag {};

// Rows (queries of all heads that share a key head) per task.
constexpr int kRowsPerTask = 192;

// Multiplications below which handing out costs more than it brings.
constexpr std::size_t kSmallWork = 32 * 1024;

AttentionTask make_task(const AttentionProblem& p,
                        int b,
                        int kv_head,
                        int first_query,
                        int num_queries) {
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
void read_quantized(const AttentionProblem& p,
                    int b,
                    int kv_head,
                    AttentionTask& t) {
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

// Where a piece of work leaves its results (AttentionTask), row by row.
struct Part {
  float* largest;
  float* sum;
  float* out;  // [rows, value_size]

  Part(float* base, int num_rows)
      : largest(base), sum(base + num_rows), out(base + 2 * num_rows) {}

  static std::size_t floats(const AttentionTask& t) {
    return static_cast<std::size_t>(t.num_rows()) * (2 + t.value_size);
  }
};

// Adds what a row has of later keys.
void fold(const Part& later, int row, int size, const Part& into) {
  const float most = into.largest[row];
  const float other = later.largest[row];
  if (other == -std::numeric_limits<float>::infinity()) return;  // masked
  const float* x = later.out + static_cast<std::size_t>(row) * size;
  float* y = into.out + static_cast<std::size_t>(row) * size;
  if (other <= most) {
    const float weight = std::exp(other - most);
    into.sum[row] += later.sum[row] * weight;
    isa_kernels().add_scaled(x, size, weight, y);
  } else {
    const float weight = std::exp(most - other);
    into.sum[row] = later.sum[row] + into.sum[row] * weight;
    isa_kernels().scale_add(x, size, weight, y);
    into.largest[row] = other;
  }
}

// Divides by the sum of all weights.
void normalize(
    const Part& part, int row, const float* sink, int size, float* y) {
  const float* x = part.out + static_cast<std::size_t>(row) * size;
  const float largest = part.largest[row];
  float most = largest;
  if (sink != nullptr) most = std::max(most, *sink);
  if (largest == -std::numeric_limits<float>::infinity()) {
    std::fill(y, y + size, 0.0f);  // everything is masked
    return;
  }
  const float weight = std::exp(largest - most);
  float total = part.sum[row] * weight;
  if (sink != nullptr) total += std::exp(*sink - most);
  for (int d = 0; d < size; ++d) {
    y[d] = x[d] * weight / total;
  }
}

// The keys' splits: at first short, so that few keys are enough work for all
// threads, then longer, so that many don't make many parts. Their places depend
// on nothing else, and are added in order: neither the number of queries nor
// that of threads changes a bit of a result.
std::vector<int> split_keys(int num_keys) {
  constexpr int kShortest = 128;
  constexpr int kLongest = 512;
  constexpr int kOfEachSize = 8;
  std::vector<int> starts;
  int size = kShortest;
  int at = 0;
  do {
    if (at > 0 && starts.size() % kOfEachSize == 0) {
      size = std::min(2 * size, kLongest);
    }
    starts.push_back(at);
    at += size;
  } while (at < num_keys);
  starts.push_back(num_keys);
  return starts;
}

// Attention of one problem: each place, a run of queries of the heads that
// share a key head, is a task, or, where those are few, each of its splits.
class Run {
 public:
  Run(const AttentionProblem& problem, float* y)
      : p_(problem),
        y_(y),
        starts_(split_keys(problem.keys)),
        splits_(static_cast<int>(starts_.size()) - 1),
        run_size_(std::clamp(kRowsPerTask / p_.group(), 1, p_.queries)),
        runs_((p_.queries + run_size_ - 1) / run_size_),
        places_(p_.batch * p_.kv_heads * runs_),
        side_by_side_(splits_ > 1 && places_ < 4 * num_threads()),
        part_floats_(static_cast<std::size_t>(run_size_) * p_.group() *
                     (2 + p_.value_size)) {
    parts_ = scratch<PartsTag>(places_ * parts_per_place() * part_floats_);
  }

  void operator()() const {
    const std::size_t work = static_cast<std::size_t>(p_.batch) * p_.heads *
                             p_.queries * p_.keys * p_.head_size;
    const int tasks = places_ * parts_per_place();
    auto attend = [&](int i) {
      side_by_side_ ? attend_split(i / splits_, i % splits_) : attend_all(i);
    };
    auto finish = [&](int place) { this->finish(place); };
    if (work < kSmallWork) {
      for (int i = 0; i < tasks; ++i) attend(i);
      for (int i = 0; i < places_; ++i) finish(i);
      return;
    }
    parallel_for(tasks, attend);
    if (p_.queries == 1) {
      for (int i = 0; i < places_; ++i) finish(i);
    } else {
      parallel_for(places_, finish);
    }
  }

 private:
  int parts_per_place() const { return side_by_side_ ? splits_ : 1; }

  Part part(int place, int i, int num_rows) const {
    return {parts_ + (place * parts_per_place() + i) * part_floats_, num_rows};
  }

  AttentionTask task_of(int place) const {
    const int run = place % runs_;
    const int first = run * run_size_;
    return make_task(p_,
                     place / runs_ / p_.kv_heads,
                     place / runs_ % p_.kv_heads,
                     first,
                     std::min(run_size_, p_.queries - first));
  }

  void attend_split(int place, int split) const {
    AttentionTask task = task_of(place);
    attend(place, split, task, part(place, split, task.num_rows()));
  }

  void attend_all(int place) const {
    const AttentionTask task = task_of(place);
    const Part all = part(place, 0, task.num_rows());
    const Part one(scratch<SplitTag>(Part::floats(task)), task.num_rows());
    for (int split = 0; split < splits_; ++split) {
      if (split > 0 && task.causal &&
          starts_[split] >= task.causal_end + task.num_queries - 1) {
        break;
      }
      attend(place, split, task, split == 0 ? all : one);
      if (split == 0) continue;
      for (int row = 0; row < task.num_rows(); ++row) {
        fold(one, row, p_.value_size, all);
      }
    }
  }

  void attend(int place, int split, AttentionTask task, const Part& to) const {
    task.first_key = starts_[split];
    task.end_key = starts_[split + 1];
    if (p_.quantized_k) {
      read_quantized(
          p_, place / runs_ / p_.kv_heads, place / runs_ % p_.kv_heads, task);
    }
    task.largest = to.largest;
    task.sum = to.sum;
    task.out = to.out;
    isa_kernels().attention(
        task,
        scratch<WorkTag>(isa_kernels().attention_scratch_floats(
            task.head_size, task.num_rows())));
  }

  void finish(int place) const {
    const AttentionTask task = task_of(place);
    const int first_query = place % runs_ * run_size_;
    const int first_head = place / runs_ * p_.group();  // of all batch rows'
    const Part all = part(place, 0, task.num_rows());
    for (int row = 0; row < task.num_rows(); ++row) {
      for (int i = 1; i < parts_per_place(); ++i) {
        fold(part(place, i, task.num_rows()), row, p_.value_size, all);
      }
      const int head = first_head + row / task.num_queries;
      const int query = first_query + row % task.num_queries;
      normalize(all,
                row,
                p_.sinks != nullptr ? p_.sinks + head % p_.heads : nullptr,
                p_.value_size,
                y_ + (static_cast<std::size_t>(head) * p_.queries + query) *
                         p_.value_size);
    }
  }

  const AttentionProblem& p_;
  float* y_;
  std::vector<int> starts_;
  int splits_;
  int run_size_;
  int runs_;
  int places_;
  bool side_by_side_;
  std::size_t part_floats_;
  float* parts_;
};

}  // namespace

void attend(const AttentionProblem& problem, float* y) { Run(problem, y)(); }

}  // namespace mlxlm::kernels::cpu
