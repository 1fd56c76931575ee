// Heads and runs of queries are tasks, or, where those are few or long, runs of
// keys, whose results are added.
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
  t.q = p.q.floats(p.first_row + b, head, p.first_query + first_query);
  t.k = p.k ? p.k->head(b, kv_head) : p.quantized_k->head(b, kv_head);
  t.v = p.v ? p.v->head(b, kv_head) : p.quantized_v->head(b, kv_head);
  t.head_stride = p.q.head_stride();
  t.query_stride = p.q.token_stride();
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
  const float factor = weight / total;
  for (int d = 0; d < size; ++d) y[d] = x[d] * factor;
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
// share a key head, is a task, or each of its splits.
class Run {
 public:
  explicit Run(const AttentionProblem& problem)
      : p_(problem),
        starts_(split_keys(problem.keys)),
        splits_(static_cast<int>(starts_.size()) - 1),
        run_size_(std::clamp(kRowsPerTask / p_.group(), 1, p_.queries)),
        runs_((p_.queries + run_size_ - 1) / run_size_),
        places_(p_.batch * p_.kv_heads * runs_),
        part_floats_(static_cast<std::size_t>(run_size_) * p_.group() *
                     (2 + p_.value_size)) {}

  std::size_t num_products() const {
    return static_cast<std::size_t>(p_.batch) * p_.heads * p_.queries *
           p_.keys * p_.head_size;
  }
  int num_places() const { return places_; }

  // Makes tasks of the splits, if there are several, of places with more than
  // so many multiplications.
  void split_if_above(std::size_t num_products) {
    side_by_side_ =
        splits_ > 1 && this->num_products() > places_ * num_products;
  }
  bool side_by_side() const { return side_by_side_; }
  int num_tasks() const { return places_ * parts_per_place(); }
  std::size_t num_floats() const { return num_tasks() * part_floats_; }
  void use(float* memory) { parts_ = memory; }

  // If not side_by_side(), finishes the place, too.
  void run_task(int i) const {
    if (side_by_side_) return attend_split(i / splits_, i % splits_);
    attend_all(i);
    finish(i);
  }

  // Adds up a place's splits.
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
                p_.y + head * p_.y_head_stride +
                    static_cast<std::size_t>(query) * p_.value_size);
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
    attend(split, task, part(place, split, task.num_rows()));
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
      attend(split, task, split == 0 ? all : one);
      if (split == 0) continue;
      for (int row = 0; row < task.num_rows(); ++row) {
        fold(one, row, p_.value_size, all);
      }
    }
  }

  void attend(int split, AttentionTask task, const Part& to) const {
    task.first_key = starts_[split];
    task.end_key = starts_[split + 1];
    task.largest = to.largest;
    task.sum = to.sum;
    task.out = to.out;
    isa_kernels().attention(
        task, scratch<WorkTag>(isa_kernels().attention_scratch_floats(task)));
  }

  const AttentionProblem& p_;
  std::vector<int> starts_;
  int splits_;
  int run_size_;
  int runs_;
  int places_;
  std::size_t part_floats_;
  bool side_by_side_ = false;
  float* parts_ = nullptr;
};

}  // namespace

void write_rows(const mx::array& rows,
                const Written& written,
                const mx::array& buffer) {
  const Heads from(rows);
  const Heads to(buffer);
  const int size = rows.shape(3);
  auto write = [&](int b, int h, int i) {
    const float* x = from.floats(written.row + b, h, written.first + i);
    void* y = const_cast<void*>(to.head(b, h, written.at + i).data);
    if (to.half()) {
      isa_kernels().to_half(x, size, static_cast<std::uint16_t*>(y));
    } else {
      std::copy(x, x + size, static_cast<float*>(y));
    }
  };
  for (int b = 0; b < buffer.shape(0); ++b) {
    for (int h = 0; h < rows.shape(1); ++h) {
      for (int i = 0; i < written.count; ++i) write(b, h, i);
    }
  }
}

void attend(std::span<const AttentionProblem> problems) {
  std::vector<Run> runs(problems.begin(), problems.end());
  std::size_t num_products = 0;
  for (const Run& run : runs) num_products += run.num_products();
  struct Piece {
    const Run* run;
    int index;
  };
  std::vector<Piece> tasks;
  std::vector<Piece> ends;  // places to finish
  std::size_t num_floats = 0;
  for (Run& run : runs) {
    // Quarters of a thread's share are small enough to keep all busy.
    run.split_if_above(num_products / (4 * num_threads()));
    num_floats += run.num_floats();
    for (int i = 0; i < run.num_tasks(); ++i) tasks.push_back({&run, i});
    if (!run.side_by_side()) continue;
    for (int i = 0; i < run.num_places(); ++i) ends.push_back({&run, i});
  }
  float* memory = scratch<PartsTag>(num_floats);
  for (Run& run : runs) {
    run.use(memory);
    memory += run.num_floats();
  }
  auto each = [](const std::vector<Piece>& pieces, bool few, const auto& f) {
    const int count = static_cast<int>(pieces.size());
    if (!few) return parallel_for(count, [&](int i) { f(pieces[i]); });
    for (int i = 0; i < count; ++i) f(pieces[i]);
  };
  each(tasks, num_products < kSmallWork, [](const Piece& task) {
    task.run->run_task(task.index);
  });
  const bool few_ends = std::ranges::all_of(
      problems, [](const auto& p) { return p.queries == 1; });
  each(ends, few_ends || num_products < kSmallWork, [](const Piece& end) {
    end.run->finish(end.index);
  });
}

}  // namespace mlxlm::kernels::cpu
