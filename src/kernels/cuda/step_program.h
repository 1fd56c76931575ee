// A decoding step's operations as the step kernel reads them.
#pragma once

#include <cstdint>
#include <vector>

#include <mlx/array.h>

#include "kernels/step.h"

namespace mlxlm::kernels::cuda {

enum Kind { kEmbed, kLinear, kGated, kAttention, kRoute };
enum Input { kInputState, kInputAttention, kInputHidden, kInputKept };
enum Output { kOutputHeads, kOutputState, kOutputHidden, kOutputLogits };

// Steps' tokens and positions lie in arrays so many times as large as they
// need: MLX puts small ones into pages that it shares with the CPU.
inline constexpr int kPositionCopies = 16;

// How the kernel reads matrices: weights of 4 or 8 bits in groups that have a
// scale, or 16, for those that aren't quantized. Floats of 4 bits have scales
// of a byte (mxfp4, nvfp4).
struct StepFormat {
  int bits, group_size;
  bool floats;

  explicit StepFormat(const Linear& linear)
      : bits(linear.quantized() ? linear.bits : 16),
        group_size(linear.quantized() ? linear.group_size : 64),
        floats(linear.quantized() && linear.mode != "affine") {}
  bool operator==(const StepFormat&) const = default;

  bool dense() const { return bits == 16; }
  int scale_bytes() const { return floats ? 1 : 2; }
};

// StepMatrix and StepOperation as the kernel reads them.
struct MatrixRecord {
  std::uint64_t words = 0, scales = 0, zeros = 0, bias = 0;
  std::int32_t num_rows = 0, first_output = 0;
};

struct alignas(16) OperationRecord {
  std::int32_t kind = 0, size = 0, input = 0, output = 0;
  std::int32_t num_matrices = 0, num_tiles = 0, first_block = 0, layer = 0;
  float eps = 0, scale = 0, softcap = 0;
  std::int32_t window = 0;
  std::int32_t num_experts = 0, num_chosen = 0, expert_size = 0, normalizes = 0;
  std::uint64_t norm = 0, q_norm = 0, k_norm = 0, sinks = 0;
  MatrixRecord matrices[3];
  std::int32_t num_slots = 0;
};
static_assert(sizeof(OperationRecord) == 224);

// Collects the arrays that operations point to, which get their addresses
// together at the end.
class StepProgram {
 public:
  StepProgram(const StepSpec& spec, int num_blocks);

  const std::vector<OperationRecord>& operations() const { return operations_; }
  // Must outlive the use of the operations.
  const std::vector<mx::array>& arrays() const { return arrays_; }
  // Of affine scales and zeros or dense weights, norms and caches.
  mx::Dtype dtype() const { return dtype_; }
  // Whether all arrays lie as the kernel reads them.
  bool usable() const { return usable_; }
  int largest_size() const { return largest_size_; }
  int hidden_size() const { return hidden_size_; }  // the largest
  bool has_experts() const { return has_experts_; }

 private:
  struct Place {
    std::size_t operation, offset;
  };

  // Remembers to write the array's address there.
  void point(std::size_t operation,
             std::size_t offset,
             const mx::array& array,
             mx::Dtype dtype);
  void add_matrix(std::size_t operation, int i, const Linear& linear, int at);
  std::size_t add(OperationRecord record,
                  const Norm* norm,
                  const std::vector<const Linear*>& matrices);
  void add_attention(const StepLayer& layer, int index);
  void add_layer(const StepLayer& layer, int index);
  OperationRecord add_router(const StepLayer& layer);
  void place_pointers();

  const StepSpec& spec_;
  int num_blocks_;
  mx::Dtype dtype_;
  std::vector<OperationRecord> operations_;
  std::vector<mx::array> arrays_;
  std::vector<Place> places_;
  int num_tiles_ = 0;
  int largest_size_ = 0;
  int hidden_size_ = 0;
  bool has_experts_ = false;
  bool usable_ = true;
};

// Whether the step kernel does this decoder.
bool suits_step(const StepSpec& spec);

// The records as an array on the GPU.
mx::array array_of(const std::vector<OperationRecord>& operations);

// The angle that each pair of dimensions turns by from one token to the next,
// float32 [dimensions / 2].
mx::array frequencies_of(const Rope& rope);

// A copy in memory of the GPU's own.
mx::array on_device(const mx::array& x);

}  // namespace mlxlm::kernels::cuda
