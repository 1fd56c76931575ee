// A decoding step as one operation: the same functions as the layers' own
// operations, without a graph around them. MLX takes as long to build, evaluate
// and clear away a small model's graph as half of its products take.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/cpu/attention_run.h"
#include "kernels/cpu/layer_run.h"
#include "kernels/cpu/project.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

struct BoundLayer {
  BoundHeads heads;
  BoundEnd end;
  std::vector<mx::array> heads_in;  // as run_norm_heads() has them
  std::vector<mx::array> end_in;    // as run_finish_layer() has them
  AttentionParameters attention;
  std::optional<mx::array> sinks;
};

mx::array buffer(mx::Shape shape) {
  std::size_t count = 1;
  for (auto size : shape) count *= static_cast<std::size_t>(size);
  return mx::array(mx::allocator::malloc(count * sizeof(float)),
                   std::move(shape),
                   mx::float32);
}

std::vector<mx::array> evaluated(std::vector<mx::array> arrays) {
  mx::eval(arrays);
  return arrays;
}

// row [1, H, 1, D] -> row `at` of rows [1, H, T, D].
void write_row(const mx::array& row, const mx::array& rows, int at) {
  const int size = row.shape(3);
  const float* from = row.data<float>();
  auto* to = const_cast<float*>(rows.data<float>()) + at * rows.strides(2);
  for (int h = 0; h < row.shape(1); ++h) {
    std::copy(from, from + size, to);
    from += size;
    to += rows.strides(1);
  }
}

// A decoder's weights, and what its steps make one after the other on MLX's
// stream thread.
class Decoding {
 public:
  explicit Decoding(const StepSpec& spec)
      : embedding_(packed(*spec.embedding)),
        embedding_scale_(spec.embedding_scale),
        head_(packed(*spec.head)),
        x_{buffer({1, 1, width()}), buffer({1, 1, width()})},
        norm_in_{x_[spec.layers.size() % 2]},
        norm_(*bind(spec.norm, norm_in_)),
        normed_(buffer({1, 1, width()})) {
    norm_in_ = evaluated(std::move(norm_in_));
    for (std::size_t i = 0; i < spec.layers.size(); ++i) {
      bind_layer(spec, spec.layers[i], x_[i % 2]);
    }
  }

  int vocabulary_size() const { return head_->matrix().num_rows; }

  // in: token, and keys and values of each layer; out: logits.
  void run(const std::shared_ptr<const RopeTable>& rope,
           int position,
           std::span<const mx::array> in,
           mx::array& out) {
    // A step that nobody waited for can still run when another thread goes on.
    std::lock_guard lock(mutex_);
    float* x = x_[0].data<float>();
    read_token(*embedding_, in[0].data<int>()[0], x);
    if (embedding_scale_ != 1.0f) {
      for (int i = 0; i < width(); ++i) x[i] *= embedding_scale_;
    }
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      BoundLayer& layer = layers_[i];
      layer.heads.heads[0].rope = layer.heads.heads[1].rope = rope;
      run_norm_heads(layer.heads, layer.heads_in, projected_);
      const mx::array& keys = in[1 + 2 * i];
      const mx::array& values = in[2 + 2 * i];
      write_row(projected_[1], keys, position);
      write_row(projected_[2], values, position);
      const AttentionProblem problem(
          projected_[0],
          keys,
          values,
          position + 1,
          nullptr,
          layer.sinks ? layer.sinks->data<float>() : nullptr,
          layer.attention,
          layer.end_in[0]);
      attend({&problem, 1});
      run_finish_layer(layer.end, layer.end_in, x_[(i + 1) % 2]);
    }
    float* normed = normed_.data<float>();
    norm_.apply(norm_in_, norm_in_[0].data<float>(), 1, width(), normed);
    const Product logits{&head_->matrix(), head_->bias(), out.data<float>()};
    project(normed, 1, width(), {&logits, 1});
  }

 private:
  int width() const { return embedding_->matrix().num_columns; }

  void bind_layer(const StepSpec& spec, const StepLayer& layer, mx::array x) {
    const HeadProjection projections[] = {
        {layer.q, spec.num_heads, layer.q_norm, nullptr},
        {layer.k, spec.num_kv_heads, layer.k_norm, nullptr},
        {layer.v, spec.num_kv_heads, nullptr, nullptr}};
    std::vector<mx::array> heads_in{x};
    auto heads = bind_heads(layer.attention_norm, projections, heads_in);
    if (projected_.empty()) {
      for (const auto& each : heads.heads) {
        const int size = each.weights->matrix().num_rows / each.num_heads;
        projected_.push_back(buffer({1, each.num_heads, 1, size}));
      }
      attended_ = buffer({1, spec.num_heads, 1, projected_[2].shape(3)});
    }
    std::vector<mx::array> end_in{*attended_, x};
    auto end = bind_end({.out = layer.o,
                         .mlp_norm = layer.mlp_norm,
                         .gate = layer.gate,
                         .up = layer.up,
                         .down = layer.down,
                         .scale = spec.residual_scale},
                        end_in);
    std::optional<mx::array> sinks;
    if (layer.sinks != nullptr) {
      sinks = mx::contiguous(mx::astype(*layer.sinks, mx::float32));
      sinks->eval();
    }
    layers_.push_back(
        {std::move(heads),
         std::move(end),
         evaluated(std::move(heads_in)),
         evaluated(std::move(end_in)),
         {.scale = layer.attention_scale, .softcap = layer.softcap},
         std::move(sinks)});
  }

  std::mutex mutex_;
  Weights embedding_;
  float embedding_scale_;
  Weights head_;
  mx::array x_[2];  // what layers read and make, in turn
  std::vector<mx::array> norm_in_;
  BoundNorm norm_;
  mx::array normed_;
  std::vector<mx::array> projected_;  // queries, key, value
  std::optional<mx::array> attended_;
  std::vector<BoundLayer> layers_;
};

class CpuStep : public Step {
 public:
  explicit CpuStep(const StepSpec& spec)
      : rope_(spec.rope), decoding_(std::make_shared<Decoding>(spec)) {}

  mx::array operator()(const mx::array& token,
                       std::span<const StepRows> rows,
                       int position) override {
    std::vector<mx::array> inputs{mx::contiguous(mx::astype(token, mx::int32))};
    for (const auto& each : rows) {
      inputs.push_back(each.keys);
      inputs.push_back(each.values);
    }
    return host_op("cpu_step",
                   {{{1, 1, decoding_->vocabulary_size()}, mx::float32}},
                   std::move(inputs),
                   [decoding = decoding_,
                    rope = rope_table(&rope_, position, 1),
                    position](auto in, auto out) {
                     decoding->run(rope, position, in, out[0]);
                   })[0];
  }

  mx::Dtype dtype() const override { return mx::float32; }

 private:
  Rope rope_;
  std::shared_ptr<Decoding> decoding_;
};

// The other operations' way for those that differ in what they do with weights
// or in what a query sees.
bool can_do(const StepLayer& layer) {
  const Linear* linears[] = {
      layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down};
  return layer.window_tokens == 0 &&
         std::all_of(std::begin(linears),
                     std::end(linears),
                     [](const Linear* each) { return each->plain(); });
}

}  // namespace
}  // namespace mlxlm::kernels::cpu

namespace mlxlm::kernels {

std::unique_ptr<Step> make_cpu_step(const StepSpec& spec) {
  if (spec.layers.empty() || !spec.embedding->plain() || !spec.head->plain() ||
      !std::all_of(spec.layers.begin(),
                   spec.layers.end(),
                   [](const StepLayer& layer) { return cpu::can_do(layer); })) {
    return nullptr;
  }
  return std::make_unique<cpu::CpuStep>(spec);
}

}  // namespace mlxlm::kernels
