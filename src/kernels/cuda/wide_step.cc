#include "kernels/cuda/wide_step.h"

#include <algorithm>
#include <string>
#include <utility>

#include <mlx/mlx.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/sources.h"
#include "kernels/cuda/wide.h"

namespace mlxlm::kernels::cuda {
namespace {

constexpr int kHopper = 9;
constexpr int kBlockThreads = 640;  // kWideBlockThreads
constexpr int kOutputs = 256;       // of a tile
constexpr int kStage = 256;         // kWideStage
constexpr int kSlab = 64;           // kWideSlab
constexpr int kTeams = 2;
constexpr int kTeamWarps = 8;
constexpr int kRecords = 8;

// How the kernel's blocks share out a product.
void plan(OperationRecord& op, int num_blocks) {
  const bool gated = op.kind == kGated;
  const int outputs = gated ? kOutputs / 2 : kOutputs;
  op.num_tiles = 0;
  for (int i = 0; i < (gated ? 1 : op.num_matrices); ++i) {
    op.num_tiles += (op.matrices[i].num_rows + outputs - 1) / outputs;
  }
  const int waves = (op.num_tiles + num_blocks - 1) / num_blocks;
  // Adding up parts costs more than a quarter of the blocks idle. What goes
  // into the state is added up by blocks together in any case.
  const bool whole =
      (op.output == kOutputHidden || op.output == kOutputLogits) &&
      op.num_tiles * 4 >= waves * num_blocks * 3;
  op.num_slots = whole ? 0 : waves + 1;
}

// Those of a single row's program, attention as a part of the product before
// it. A product into the state has the norm of the one that reads it next.
std::vector<OperationRecord> wide_operations(
    const std::vector<OperationRecord>& from, int num_blocks) {
  std::vector<OperationRecord> result;
  for (std::size_t i = 0; i < from.size(); ++i) {
    OperationRecord op = from[i];
    if (op.kind == kAttention) continue;
    op.norm = 0;
    if (op.kind == kEmbed) {
      op.output = kOutputState;
      op.norm = from[i + 1].norm;
    } else if (op.output == kOutputHeads) {
      const auto& attention = from[i + 1];
      op.layer = attention.layer;
      op.scale = attention.scale;
      op.softcap = attention.softcap;
      op.window = attention.window;
      op.q_norm = attention.q_norm;
      op.k_norm = attention.k_norm;
      op.sinks = from[i + 2].sinks;
    } else if (op.output == kOutputState) {
      op.norm = from[i + 1].norm;
    }
    plan(op, num_blocks);
    result.push_back(op);
  }
  return result;
}

std::string body() {
  return R"(
  WideStepArguments<T> a{};
  a.operations = reinterpret_cast<const StepOperation<T>*>(operations);
  a.num_operations = NUM_OPERATIONS;
  a.num_layers = LAYERS;
  a.tables = tables;
  a.tokens = reinterpret_cast<const int*>(token);
  a.positions = position;
  a.num_rows = num_rows;
  a.num_heads = HEADS;
  a.num_kv_heads = KV_HEADS;
  a.most_shares = most_shares;
  a.vocabulary_size = VOCABULARY;
  a.logits = logits;
  a.barrier = const_cast<unsigned long long*>(barrier);
  a.frequencies = frequencies;
  a.state = state;
  a.squares = squares;
  a.state_x = state_x;
  a.other_x = other_x;
  a.parts = parts;
  a.heads = heads;
  a.answers = answers;
  a.angles = angles;
  if (blockIdx.x == 0 && threadIdx.x < num_rows) {
    next[threadIdx.x] = position[threadIdx.x] + 1;
  }
  using Kernel =
      WideStep<T, BITS, GROUP, N, D, ROTATED, TRADITIONAL, HEADS / KV_HEADS>;
  static_assert(sizeof(typename Kernel::Shared) <= SHARED_BYTES);
  Kernel::run(a);
)";
}

bool suits(const StepSpec& spec, const StepProgram& program) {
  const StepFormat format(*spec.embedding);
  const auto& operations = program.operations();
  return device_limits().compute_capability_major == kHopper &&
         // In float16 the state times a norm's weight might overflow.
         !format.dense() && !format.floats && program.dtype() == mx::bfloat16 &&
         !program.has_experts() &&
         (format.group_size == 32 || format.group_size == 64 ||
          format.group_size == 128) &&
         std::ranges::all_of(operations, [](const OperationRecord& op) {
           return op.kind == kAttention || op.size % kStage == 0;
         });
}

}  // namespace

std::optional<WideStep> WideStep::make(const StepSpec& spec,
                                       const StepProgram& program) {
  if (!suits(spec, program)) return std::nullopt;
  WideStep made(
      spec,
      program,
      wide_operations(program.operations(), device_limits().num_processors));
  for (int row_tile = 8; row_tile <= kMostRows; row_tile *= 2) {
    if (made.shared_bytes(row_tile) > device_limits().shared_bytes_per_block) {
      return std::nullopt;
    }
  }
  return made;
}

WideStep::WideStep(const StepSpec& spec,
                   const StepProgram& program,
                   std::vector<OperationRecord> operations)
    : operations_(array_of(operations)),
      barrier_(on_device(mx::zeros({2}, mx::uint64))),
      frequencies_(on_device(frequencies_of(spec.rope))),
      dtype_(program.dtype()),
      bits_(StepFormat(*spec.embedding).bits),
      group_size_(StepFormat(*spec.embedding).group_size),
      num_layers_(static_cast<int>(spec.layers.size())),
      num_operations_(static_cast<int>(operations.size())),
      num_heads_(spec.num_heads),
      num_kv_heads_(spec.num_kv_heads),
      head_size_(spec.head_size),
      rotated_(spec.rope.dimensions),
      traditional_(spec.rope.traditional),
      size_(columns_of(*spec.embedding)),
      largest_input_(program.largest_size()),
      vocabulary_(spec.head->weight.shape(0)) {
  for (const auto& op : operations) {
    most_slots_ = std::max(most_slots_, op.num_slots);
  }
}

// Of WideStep::Shared.
int WideStep::shared_bytes(int row_tile) const {
  const WideRings rings(bits_, row_tile);
  // Of x, WideStep::kSlabs of kSlabParts each.
  const int slabs = row_tile > 64 ? 4 : row_tile > 16 ? 8 : 16;
  const int queries = num_heads_ / num_kv_heads_;
  const int x = std::max(slabs * kSlab * row_tile * 2,
                         kTeams * kTeamWarps * queries * head_size_ * 4);
  const int stage =
      kOutputs * kStage / 8 * bits_ + kOutputs * 2 * (kStage / group_size_ * 2);
  const int attention = (queries * (head_size_ + 8) * 2 + 15) / 16 * 16 +
                        kTeamWarps * (head_size_ + 2 * queries) * 4 + 16;
  const int records = kRecords * static_cast<int>(sizeof(OperationRecord));
  const int results = row_tile * 4 + kBlockThreads / 32 * 8 * 4;
  const int barriers = slabs * 2 * 8 + 32;
  return (x + rings.stages * stage + kTeams * attention + records + results +
          barriers + 127) /
         128 * 128;
}

Launch WideStep::call(int num_rows) const {
  static const std::string kText =
      std::string(k_async) + k_step_stream + k_step_input + k_step_sources +
      k_step_linear + k_step_attention + k_wgmma + k_wide_input +
      k_wide_matmul + k_wide_output + k_wide_step_results + k_wide_step;
  int row_tile = 8;
  while (row_tile < num_rows) row_tile *= 2;
  const int blocks = device_limits().num_processors;
  const int shares = std::max(2 * blocks / (num_rows * num_kv_heads_), 1);
  const int heads = (num_heads_ + 2 * num_kv_heads_) * head_size_;
  return {.name = "wide_step",
          .header = kText.c_str(),
          .body = &body,
          .inputs = {{"operations", operations_},
                     {"barrier", barrier_},
                     {"frequencies", frequencies_}},
          .output_names = {"logits",
                           "next",
                           "state",
                           "squares",
                           "state_x",
                           "other_x",
                           "parts",
                           "heads",
                           "answers",
                           "angles"},
          .output_shapes = {{1, num_rows, vocabulary_},
                            {kPositionCopies, num_rows},
                            {row_tile, size_},
                            {size_ / kOutputs, row_tile},
                            {row_tile, size_},
                            {row_tile, largest_input_},
                            {blocks, most_slots_, kOutputs * row_tile},
                            {num_rows, heads},
                            {num_rows, num_heads_, shares, head_size_ + 8},
                            {num_rows, rotated_}},
          .output_dtypes = {mx::float32,
                            mx::int32,
                            mx::float32,
                            mx::float32,
                            dtype_,
                            dtype_,
                            mx::float32,
                            mx::float32,
                            dtype_,
                            mx::float32},
          .scalars = {{"num_rows", num_rows}, {"most_shares", shares}},
          .constants = {{"T", dtype_},
                        {"BITS", bits_},
                        {"GROUP", group_size_},
                        {"N", row_tile},
                        {"D", head_size_},
                        {"ROTATED", rotated_},
                        {"TRADITIONAL", traditional_},
                        {"HEADS", num_heads_},
                        {"KV_HEADS", num_kv_heads_},
                        {"LAYERS", num_layers_},
                        {"NUM_OPERATIONS", num_operations_},
                        {"VOCABULARY", vocabulary_},
                        {"SHARED_BYTES", shared_bytes(row_tile)}},
          .blocks_x = blocks,
          .threads = kBlockThreads,
          .shared_bytes = shared_bytes(row_tile),
          .copy_strided_inputs = false};
}

}  // namespace mlxlm::kernels::cuda
