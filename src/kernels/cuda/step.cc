// A whole decoding step as one kernel (step.cuh; wide_step.cuh for several
// rows). The operations are written down once, with the addresses of the
// weights; a step passes tokens, positions and where the caches' buffers lie.
#include <algorithm>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/cuda/cache_tables.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/peer_memory.h"
#include "kernels/cuda/sources.h"
#include "kernels/cuda/step_program.h"
#include "kernels/cuda/wide_step.h"
#include "kernels/mlx_compat/gpu_memory.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace cuda {
namespace {

// As in step_stream.cuh and step_linear.cuh.
constexpr int kComputeWarps = 8;
constexpr int kBlockThreads = (kComputeWarps + 1 + 2) * 32;
constexpr int kRowBytes = 1024;
constexpr int kMostChosen = 32;

// Shared memory of a block for so many rows, without the stages of the ring
// (Step::Shared).
int fixed_shared_bytes(const StepSpec& spec, int largest_size, int rows) {
  const int queries = spec.num_heads / spec.num_kv_heads;
  const int partials = 2 * 2 * kComputeWarps * 16 * 4;
  const StepFormat format(*spec.embedding);
  const int groups = largest_size / format.group_size * 8;
  const int router = 2 * kComputeWarps * 4 + kMostChosen * 8;
  const int attention = queries * (spec.head_size + 8) * 2 +
                        kComputeWarps * (spec.head_size + 2 * queries) * 4;
  const int x = std::max((format.dense() ? 4 : 2) * largest_size * rows,
                         kComputeWarps * queries * spec.head_size * 4);
  const int each =
      partials + groups + kComputeWarps * 4 + router + spec.rope.dimensions * 4;
  return 4 * static_cast<int>(sizeof(OperationRecord)) + attention + x +
         each * rows + 1024;
}

int stage_bytes(const Linear& linear) {
  const StepFormat format(linear);
  const int group_bytes = format.group_size * format.bits / 8;
  const int row =
      kRowBytes + (format.dense()                           ? 64
                   : group_bytes >= 16 && group_bytes <= 64 ? group_bytes
                                                            : 16);
  const int scales =
      format.dense() ? 1 : kRowBytes / group_bytes * format.scale_bytes() + 16;
  return 16 * (row + 2 * scales) + 2 * 8;
}

// Of the ranks' mailboxes (StepMail::boxes), whose words are of 8 bytes.
std::size_t mailbox_bytes(const StepSpec& spec) {
  const std::size_t size = columns_of(*spec.embedding);
  const std::size_t vocabulary =
      spec.ranks->splits_head ? spec.head->weight.shape(0) : 0;
  return (2 * size + vocabulary) * spec.ranks->count * 8;
}

// A variant of the kernel: for so many rows at most, with so many stages in a
// block's ring.
struct Variant {
  int rows, stages;
};

class CudaStep : public Step {
 public:
  // mail: with the other ranks; null for one alone. The first variant is for
  // one row.
  CudaStep(const StepSpec& spec,
           const StepProgram& program,
           const std::vector<Variant>& variants,
           std::optional<WideStep> wide,
           std::unique_ptr<PeerMemory> mail)
      : dtype_(program.dtype()),
        kept_(program.arrays()),
        mail_(std::move(mail)),
        frequencies_(on_device(frequencies_of(spec.rope))),
        barrier_(on_device(mx::zeros({2}, mx::uint64))),
        operations_(array_of(program.operations())),
        wide_(std::move(wide)),
        // Mixtures' rows don't share weights much: more of them are done in
        // several calls before going layer by layer pays.
        parts_(program.has_experts() && !spec.ranks ? 4 : 1) {
    for (const Variant& each : variants) {
      calls_.emplace_back(each.rows, start(spec, program, each));
    }
  }

  bool writes(mx::Dtype dtype) const override { return dtype == dtype_; }

  std::size_t most_rows() const override {
    return most_rows_of_call() * parts_.size();
  }

  Stepped operator()(const mx::array& tokens,
                     std::span<const StepRow> rows,
                     std::span<const mx::array> after) override {
    std::lock_guard lock(order_mutex());
    const std::size_t most = most_rows_of_call();
    const auto all = mx::flatten(tokens);
    std::vector<mx::array> logits;
    for (std::size_t first = 0; first < rows.size(); first += most) {
      const std::size_t end = std::min(first + most, rows.size());
      const auto own =
          mx::slice(all, {static_cast<int>(first)}, {static_cast<int>(end)});
      logits.push_back(run(
          own, rows.subspan(first, end - first), after, parts_[first / most]));
    }
    const auto joined =
        logits.size() == 1 ? logits[0] : mx::concatenate(std::move(logits), 1);
    // MLX doesn't know of the buffers otherwise, and may give their memory away
    // while the kernel still runs.
    return {mx::depends({joined}, {holder_of(buffers_of(rows))})[0],
            last_step()};
  }

 private:
  // Rows that one call does, and what the last such call left: positions, as
  // an array and what they are.
  struct Part {
    CacheTables tables;
    std::optional<mx::array> next_positions;
    std::vector<int> positions_of_next;

    // int32 [N]; those that the last step left on the GPU where they follow.
    mx::array on_gpu(const std::vector<int>& positions) const {
      if (next_positions && positions == positions_of_next) {
        return *next_positions;
      }
      return mx::array(
          positions.data(), {static_cast<int>(positions.size())}, mx::int32);
    }
  };

  std::size_t most_rows_of_call() const {
    return wide_ ? WideStep::kMostRows : calls_.back().first;
  }

  // Logits [1, N, V].
  mx::array run(const mx::array& tokens,
                std::span<const StepRow> rows,
                std::span<const mx::array> after,
                Part& part) {
    const auto tables = part.tables.of(rows, after);
    std::vector<int> positions;
    for (const auto& row : rows) positions.push_back(row.position);
    Launch call = call_for(static_cast<int>(rows.size()));
    call.inputs.insert(call.inputs.end(),
                       {{"token", kept_from_host(tokens)},
                        {"position", part.on_gpu(positions)},
                        {"order", last_step()},
                        {"tables", tables}});
    const auto made = launch(call);
    for (int& each : positions) ++each;
    part.positions_of_next = std::move(positions);
    part.next_positions = made[1];
    last_step() = made[1];
    return made[0];
  }

  Launch call_for(int num_rows) const {
    const auto found = std::ranges::find_if(
        calls_, [&](const auto& each) { return num_rows <= each.first; });
    if (found == calls_.end()) return wide_->call(num_rows);
    Launch call = found->second;
    call.output_shapes[0][1] = num_rows;
    call.scalars.emplace_back("num_rows", num_rows);
    return call;
  }

  // Each step comes after the one before, also of other decoders: two at a time
  // would wait for processors that the other has.
  static std::mutex& order_mutex() {
    static std::mutex mutex;
    return mutex;
  }
  static mx::array& last_step() {
    static mx::array last = mx::array({0});
    return last;
  }

  // [16, N], as often, in memory that the CPU never reads: a page that it
  // reads, as those of tokens, moves to it, and back while the kernel waits.
  static mx::array kept_from_host(const mx::array& tokens) {
    const int count = static_cast<int>(tokens.size());
    return mx::contiguous(mx::broadcast_to(mx::reshape(tokens, {1, count}),
                                           {kPositionCopies, count}));
  }

  static std::vector<mx::array> buffers_of(std::span<const StepRow> rows) {
    std::vector<mx::array> buffers;
    buffers.reserve(rows.size() * rows[0].layers.size() * 2);
    for (const auto& row : rows) {
      for (const auto& layer : row.layers) {
        buffers.push_back(layer.keys);
        buffers.push_back(layer.values);
      }
    }
    return buffers;
  }

  // Their addresses; more than 8 bytes (kPositionCopies).
  mx::array mailboxes() const {
    std::vector<std::uint64_t> addresses(2);
    if (mail_) addresses = mail_->addresses();
    return on_device(mx::array(
        addresses.data(), {static_cast<int>(addresses.size())}, mx::uint64));
  }

  // What all calls of a variant share.
  Launch start(const StepSpec& spec,
               const StepProgram& program,
               const Variant& variant) {
    static const std::string kText =
        std::string(k_async) + k_step_stream + k_step_input + k_step_sources +
        k_step_linear + k_step_attention + k_step_experts + k_step_ranks +
        k_step_arguments + k_step_results + k_step;
    const int blocks = device_limits().num_processors;
    const int size = columns_of(*spec.embedding);
    const int heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_size;
    const int hidden = program.hidden_size();
    const int rows = variant.rows;
    const int shares = std::max(blocks / spec.num_kv_heads, rows);
    const int vocabulary = spec.head->weight.shape(0);
    const auto dtype = program.dtype();
    const auto ranks = spec.ranks.value_or(StepRanks{});
    const int parts = ranks.splits_head ? ranks.count : 1;
    const int shared_bytes =
        fixed_shared_bytes(spec, program.largest_size(), rows) +
        variant.stages * stage_bytes(*spec.embedding);
    Launch call{
        .name = "decoding_step",
        .header = kText.c_str(),
        .body = &body,
        .inputs = {{"operations", operations_},
                   {"barrier", barrier_},
                   {"frequencies", frequencies_},
                   {"mailboxes", mailboxes()}},
        .output_names =
            {"logits", "next", "state", "heads", "answers", "hidden"},
        .output_shapes = {{1, 1, vocabulary * parts},
                          {kPositionCopies, rows},
                          {rows, size},
                          {rows, heads},
                          {spec.num_heads * shares, spec.head_size + 8},
                          {rows, hidden}},
        .output_dtypes =
            {mx::float32, mx::int32, mx::float32, mx::float32, dtype, dtype},
        .scalars = {{"rank", ranks.rank}},
        .constants = {{"T", dtype},
                      {"BITS", StepFormat(*spec.embedding).bits},
                      {"GROUP", StepFormat(*spec.embedding).group_size},
                      {"FLOATS", StepFormat(*spec.embedding).floats},
                      {"D", spec.head_size},
                      {"ROTATED", spec.rope.dimensions},
                      {"TRADITIONAL", spec.rope.traditional},
                      {"HEADS", spec.num_heads},
                      {"KV_HEADS", spec.num_kv_heads},
                      {"ROWS", rows},
                      {"STAGES", variant.stages},
                      {"MAX_SIZE", program.largest_size()},
                      {"EXPERTS", program.has_experts()},
                      {"LAYERS", static_cast<int>(spec.layers.size())},
                      {"NUM_OPERATIONS",
                       static_cast<int>(program.operations().size())},
                      {"SIZE", size},
                      {"HIDDEN", hidden},
                      {"VOCABULARY", vocabulary},
                      {"RANKS", ranks.count},
                      {"SPLITS_HEAD", ranks.splits_head},
                      {"SHARED_BYTES", shared_bytes}},
        .blocks_x = blocks,
        .threads = kBlockThreads,
        .shared_bytes = shared_bytes,
        .copy_strided_inputs = false};
    return call;
  }

  static std::string body() {
    return R"(
  __shared__ StepKeys<T> caches[LAYERS * ROWS];
  for (int i = threadIdx.x; i < LAYERS * num_rows; i += blockDim.x) {
    const int layer = i / num_rows;
    const int m = i - layer * num_rows;
    const auto* table = tables + m * (2 * LAYERS + 1);
    caches[layer * ROWS + m] = {reinterpret_cast<T*>(table[2 * layer]),
                                reinterpret_cast<T*>(table[2 * layer + 1]),
                                static_cast<long long>(table[2 * LAYERS])};
  }
  __shared__ Word* boxes[RANKS];
  for (int i = threadIdx.x; i < RANKS; i += blockDim.x) {
    boxes[i] = reinterpret_cast<Word*>(mailboxes[i]);
  }
  StepArguments<T, ROWS, RANKS> a{};
  a.operations = reinterpret_cast<const StepOperation<T>*>(operations);
  a.num_operations = NUM_OPERATIONS;
  a.caches = caches;
  a.tokens = reinterpret_cast<const int*>(token);
  a.positions = position;
  a.num_rows = num_rows;
  a.num_heads = HEADS;
  a.num_kv_heads = KV_HEADS;
  a.size = SIZE;
  a.hidden_size = HIDDEN;
  a.vocabulary_size = VOCABULARY;
  a.logits = logits;
  a.barrier = const_cast<unsigned long long*>(barrier);
  a.frequencies = frequencies;
  a.state = state;
  a.heads = heads;
  a.answers = answers;
  a.hidden = hidden;
  a.mail = {boxes, rank, SPLITS_HEAD};
  if (blockIdx.x == 0 && threadIdx.x < num_rows) {
    next[threadIdx.x] = position[threadIdx.x] + 1;
  }
  using Kernel = Step<T, BITS, GROUP, FLOATS, ROWS, D, ROTATED, TRADITIONAL,
                      HEADS / KV_HEADS, STAGES, MAX_SIZE, EXPERTS, RANKS>;
  static_assert(sizeof(typename Kernel::Shared) <= SHARED_BYTES);
  Kernel::run(a);
)";
  }

  mx::Dtype dtype_;
  std::vector<mx::array> kept_;  // that the operations point to
  std::unique_ptr<PeerMemory> mail_;
  mx::array frequencies_;
  mx::array barrier_;
  mx::array operations_;
  std::vector<std::pair<int, Launch>> calls_;  // by rows, fewest first
  std::optional<WideStep> wide_;
  std::vector<Part> parts_;
};

}  // namespace
}  // namespace cuda

namespace cuda {
namespace {

// How many stages the ring of a block has room for; 0: too few.
int num_stages(const StepSpec& spec, const StepProgram& program, int rows) {
  // With several rows, the kernel for many is the better one then.
  const int fewest = rows == 1 ? 2 : 4;
  const int most = StepFormat(*spec.embedding).dense() ? 9 : 8;
  constexpr int kAlignment = 128;
  const int num_ranks = spec.ranks ? spec.ranks->count : 1;
  // Caches and mailboxes.
  const int others =
      24 * static_cast<int>(spec.layers.size()) * rows + 8 * num_ranks;
  const int room = device_limits().shared_bytes_per_block -
                   (others + kAlignment - 1) / kAlignment * kAlignment -
                   fixed_shared_bytes(spec, program.largest_size(), rows);
  const int stages = std::min(room / stage_bytes(*spec.embedding), most);
  return stages < fewest ? 0 : stages;
}

std::vector<Variant> variants_of(const StepSpec& spec,
                                 const StepProgram& program,
                                 bool has_wide) {
  const int most_rows = spec.ranks ? 1 : has_wide ? 4 : 8;
  std::vector<Variant> found;
  for (int rows = 1; rows <= most_rows; rows *= 2) {
    const int stages = num_stages(spec, program, rows);
    if (stages == 0) break;
    found.push_back({rows, stages});
  }
  return found;
}

}  // namespace
}  // namespace cuda

std::unique_ptr<Step> make_cuda_step(const StepSpec& spec) {
  constexpr int kAmpere = 8;
  const auto& limits = cuda::device_limits();
  std::optional<cuda::StepProgram> program;
  std::vector<cuda::Variant> variants;
  std::optional<cuda::WideStep> wide;
  if (limits.compute_capability_major >= kAmpere && limits.num_processors > 0 &&
      cuda::suits_step(spec)) {
    program.emplace(spec, limits.num_processors);
    if (program->usable()) {
      if (!spec.ranks) wide = cuda::WideStep::make(spec, *program);
      variants = cuda::variants_of(spec, *program, wide.has_value());
    }
  }
  std::unique_ptr<cuda::PeerMemory> mail;
  if (spec.ranks) {
    mail = cuda::PeerMemory::make(
        *spec.ranks, variants.empty() ? 0 : cuda::mailbox_bytes(spec));
    if (!mail) return nullptr;
  }
  if (variants.empty()) return nullptr;
  return std::make_unique<cuda::CudaStep>(
      spec, *program, variants, std::move(wide), std::move(mail));
}

}  // namespace mlxlm::kernels
