// A whole decoding step as one kernel (step.cuh). The operations are written
// down once, with the addresses of the weights; a step passes the token, its
// position and the caches' buffers.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include <mlx/mlx.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/sources.h"
#include "kernels/cuda/step_program.h"
#include "kernels/tables.h"

namespace mlxlm::kernels {
namespace cuda {
namespace {

// As in step_stream.cuh and step_linear.cuh.
constexpr int kComputeWarps = 8;
constexpr int kBlockThreads = (kComputeWarps + 1 + 2) * 32;
constexpr int kRowBytes = 1024;

// The angle that a pair of dimensions turns by from one token to the next.
mx::array frequencies_of(const Rope& rope) {
  std::vector<float> values(rope.dimensions / 2);
  if (rope.freqs) {
    auto freqs = mx::astype(*rope.freqs, mx::float32);
    mx::eval(freqs);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = rope.scale / freqs.data<float>()[i];
    }
  } else {
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(
          rope.scale *
          std::pow(static_cast<double>(rope.base),
                   -2.0 * static_cast<double>(i) / rope.dimensions));
    }
  }
  return mx::array(values.data(), {static_cast<int>(values.size())});
}

// In memory of the GPU's own.
mx::array on_device(const mx::array& x) {
  auto copy = mx::add(x, mx::array(0, x.dtype()));
  mx::eval(copy);
  return copy;
}

// Shared memory of a block without the stages of the ring (Step::Shared).
int fixed_shared_bytes(const StepSpec& spec, int largest_size) {
  const int queries = spec.num_heads / spec.num_kv_heads;
  const int partials = 2 * 2 * kComputeWarps * 16 * 4;
  const StepFormat format(*spec.embedding);
  const int groups = largest_size / format.group_size * 8;
  const int attention = queries * (spec.head_size + 8) * 2 +
                        kComputeWarps * (spec.head_size + 2 * queries) * 4;
  const int x = std::max((format.dense() ? 4 : 2) * largest_size,
                         kComputeWarps * queries * spec.head_size * 4);
  return 4 * static_cast<int>(sizeof(OperationRecord)) + partials + groups +
         attention + spec.rope.dimensions * 4 + x + 1536;
}

int stage_bytes(const Linear& linear) {
  const StepFormat format(linear);
  const int group_bytes = format.group_size * format.bits / 8;
  const int row = kRowBytes + (format.dense()      ? 64
                               : group_bytes <= 64 ? group_bytes
                                                   : 16);
  const int scales = format.dense() ? 1 : kRowBytes / group_bytes * 2 + 16;
  return 16 * (row + 2 * scales) + 2 * 8;
}

class CudaStep : public Step {
 public:
  CudaStep(const StepSpec& spec, const StepProgram& program, int num_stages)
      : dtype_(program.dtype()),
        kept_(program.arrays()),
        frequencies_(on_device(frequencies_of(spec.rope))),
        barrier_(on_device(mx::zeros({2}, mx::uint64))),
        operations_(on_device(records(program.operations()))),
        call_(start(spec, program, num_stages)) {}

  mx::Dtype dtype() const override { return dtype_; }

  bool takes_batches() const override { return false; }

  Stepped operator()(const mx::array& tokens,
                     std::span<const StepRow> rows,
                     std::span<const mx::array> after) override {
    const auto& [position, layers] = rows[0];
    if (position_of_next_ != position || !position_) {
      position_ = mx::array({position});
    }
    Launch call = call_;
    call.inputs.emplace_back("token", tokens);
    call.inputs.emplace_back("position", *position_);
    std::lock_guard lock(order_mutex());
    call.inputs.emplace_back("order", last_step());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto number = std::to_string(i);
      auto ready = mx::depends({layers[i].keys, layers[i].values},
                               {after.begin(), after.end()});
      call.inputs.emplace_back("k" + number, ready[0]);
      call.inputs.emplace_back("v" + number, ready[1]);
    }
    call.scalars = {{"capacity_tokens", layers[0].keys.shape(2)}};
    auto made = launch(call);
    position_ = made[1];
    last_step() = made[1];
    position_of_next_ = position + 1;
    return {made[0], made[1]};
  }

 private:
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

  static mx::array records(const std::vector<OperationRecord>& operations) {
    const auto* words =
        reinterpret_cast<const std::uint32_t*>(operations.data());
    constexpr int kWords = sizeof(OperationRecord) / sizeof(std::uint32_t);
    return mx::array(
        words, {static_cast<int>(operations.size()) * kWords}, mx::uint32);
  }

  // What all calls share.
  Launch start(const StepSpec& spec,
               const StepProgram& program,
               int num_stages) {
    static const std::string kText = std::string(k_async) + k_step_stream +
                                     k_step_input + k_step_linear +
                                     k_step_attention + k_step_experts + k_step;
    const int blocks = device_limits().num_processors;
    const int size = columns_of(*spec.embedding);
    const int heads = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_size;
    const int hidden = program.hidden_size();
    const int shares = std::max(blocks / spec.num_kv_heads, 1);
    const int vocabulary = spec.head->weight.shape(0);
    const auto dtype = program.dtype();
    Launch call{
        .name = "decoding_step",
        .header = kText.c_str(),
        .body = [count = static_cast<int>(
                     spec.layers.size())] { return body_of(count); },
        .inputs = {{"operations", operations_},
                   {"barrier", barrier_},
                   {"frequencies", frequencies_}},
        .output_names =
            {"logits", "next", "state", "heads", "answers", "hidden"},
        .output_shapes = {{1, 1, vocabulary},
                          {1},
                          {size},
                          {heads},
                          {spec.num_heads * shares, spec.head_size + 8},
                          {hidden}},
        .output_dtypes =
            {mx::float32, mx::int32, mx::float32, mx::float32, dtype, dtype},
        .constants = {{"T", dtype},
                      {"BITS", StepFormat(*spec.embedding).bits},
                      {"GROUP", StepFormat(*spec.embedding).group_size},
                      {"D", spec.head_size},
                      {"ROTATED", spec.rope.dimensions},
                      {"TRADITIONAL", spec.rope.traditional},
                      {"HEADS", spec.num_heads},
                      {"KV_HEADS", spec.num_kv_heads},
                      {"STAGES", num_stages},
                      {"MAX_SIZE", program.largest_size()},
                      {"EXPERTS", program.has_experts()},
                      {"LAYERS", static_cast<int>(spec.layers.size())},
                      {"NUM_OPERATIONS",
                       static_cast<int>(program.operations().size())},
                      {"SIZE", size},
                      {"HIDDEN", hidden},
                      {"VOCABULARY", vocabulary}},
        .blocks_x = blocks,
        .threads = kBlockThreads,
        .shared_bytes = fixed_shared_bytes(spec, program.largest_size()) +
                        num_stages * stage_bytes(*spec.embedding),
        .copy_strided_inputs = false};
    return call;
  }

  static std::string body_of(int num_layers) {
    std::string body =
        "  __shared__ StepKeys<T> caches[LAYERS];\n"
        "  if (threadIdx.x == 0) {\n";
    for (int i = 0; i < num_layers; ++i) {
      const auto n = std::to_string(i);
      body += "    caches[" + n + "] = {const_cast<T*>(k" + n +
              "), const_cast<T*>(v" + n + "), capacity_tokens};\n";
    }
    return body + R"(  }
  StepArguments<T> a{};
  a.operations = reinterpret_cast<const StepOperation<T>*>(operations);
  a.num_operations = NUM_OPERATIONS;
  a.caches = caches;
  a.tokens = reinterpret_cast<const int*>(token);
  a.positions = position;
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
  if (blockIdx.x == 0 && threadIdx.x == 0) next[0] = position[0] + 1;
  Step<T, BITS, GROUP, 1, D, ROTATED, TRADITIONAL, HEADS / KV_HEADS, STAGES,
       MAX_SIZE, EXPERTS>::run(a);
)";
  }

  mx::Dtype dtype_;
  std::vector<mx::array> kept_;  // that the operations point to
  mx::array frequencies_;
  mx::array barrier_;
  mx::array operations_;
  Launch call_;
  // On the GPU: that of the next step, if it follows the last one.
  std::optional<mx::array> position_;
  int position_of_next_ = -1;
};

}  // namespace
}  // namespace cuda

std::unique_ptr<Step> make_cuda_step(const StepSpec& spec) {
  constexpr int kHopper = 9;
  constexpr int kFewestStages = 4;
  constexpr int kMostStages = 9;
  constexpr int kStaticShared = 24;  // of a layer: caches
  const auto& limits = cuda::device_limits();
  if (limits.compute_capability_major < kHopper || limits.num_processors == 0 ||
      !cuda::suits_step(spec)) {
    return nullptr;
  }
  const cuda::StepProgram program(spec, limits.num_processors);
  const int room = limits.shared_bytes_per_block -
                   static_cast<int>(spec.layers.size()) * kStaticShared -
                   cuda::fixed_shared_bytes(spec, program.largest_size());
  const int stages =
      std::min(room / cuda::stage_bytes(*spec.embedding), kMostStages);
  if (!program.usable() || stages < kFewestStages) return nullptr;
  return std::make_unique<cuda::CudaStep>(spec, program, stages);
}

}  // namespace mlxlm::kernels
