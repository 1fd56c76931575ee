// A decoding step as one operation, for any number of rows: the same functions
// as the layers' own operations, without a graph around them. MLX takes as long
// to build, evaluate and clear away a small model's graph as half of its
// products take.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
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

ProductsAfter products_of(const BoundHeads& layer) {
  ProductsAfter products;
  for (const BoundHead& head : layer.heads) {
    products.push_back({&head.weights->matrix()});
  }
  return products;
}

std::vector<mx::array> evaluated(std::vector<mx::array> arrays) {
  mx::eval(arrays);
  return arrays;
}

// A decoder's weights, and what its steps make one after the other on MLX's
// stream thread.
class Decoding {
 public:
  explicit Decoding(const StepSpec& spec)
      : embedding_(packed(*spec.embedding)),
        embedding_scale_(spec.embedding_scale),
        head_(packed(*spec.head)),
        num_heads_(spec.num_heads),
        norm_in_{mx::array(0.0f)},
        norm_(*bind(spec.norm, norm_in_)) {
    norm_in_ = evaluated(std::move(norm_in_));
    for (const StepLayer& layer : spec.layers) bind_layer(spec, layer);
    first_ = products_of(layers_[0].heads);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].heads.after = {Product{&layers_[i].end.out->matrix()}};
      layers_[i].end.after = i + 1 < layers_.size()
                                 ? products_of(layers_[i + 1].heads)
                                 : ProductsAfter{Product{&head_->matrix()}};
    }
    make_room(1);
  }

  int vocabulary_size() const { return head_->matrix().num_rows; }

  // in: tokens [1, N], and of each row keys and values of each layer; out:
  // logits. rope: of the rows' positions.
  void run(const std::shared_ptr<const RopeTable>& rope,
           const std::vector<int>& positions,
           std::span<const mx::array> in,
           mx::array& out) {
    // A step that nobody waited for can still run when another thread goes on.
    std::lock_guard lock(mutex_);
    const int num_rows = static_cast<int>(positions.size());
    make_room(num_rows);
    float* x = x_[0]->data<float>();
    for (int i = 0; i < num_rows; ++i) {
      read_token(*embedding_, in[0].data<int>()[i], x + i * width());
    }
    if (embedding_scale_ != 1.0f) {
      for (int i = 0; i < num_rows * width(); ++i) x[i] *= embedding_scale_;
    }
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      BoundLayer& layer = layers_[i];
      layer.heads.heads[0].rope = layer.heads.heads[1].rope = rope;
      run_norm_heads(layer.heads, layer.heads_in, projected_);
      append_and_attend(i, positions, in.subspan(1));
      run_finish_layer(layer.end, layer.end_in, *x_[(i + 1) % 2]);
    }
    float* normed = normed_->data<float>();
    norm_.apply(norm_in_, norm_in_[0].data<float>(), num_rows, width(), normed);
    const Product logits{&head_->matrix(), head_->bias(), out.data<float>()};
    project_later(first_);
    project(normed, num_rows, width(), {&logits, 1});
  }

 private:
  int width() const { return embedding_->matrix().num_columns; }

  void bind_layer(const StepSpec& spec, const StepLayer& layer) {
    const HeadProjection projections[] = {
        {layer.q, spec.num_heads, layer.q_norm, nullptr},
        {layer.k, spec.num_kv_heads, layer.k_norm, nullptr},
        {layer.v, spec.num_kv_heads, nullptr, nullptr}};
    // In front come what make_room() makes.
    std::vector<mx::array> heads_in{mx::array(0.0f)};
    auto heads = bind_heads(layer.attention_norm, projections, heads_in);
    std::vector<mx::array> end_in(2, mx::array(0.0f));
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

  // What a step makes, for so many rows.
  void make_room(int num_rows) {
    if (normed_ && normed_->shape(0) == num_rows) return;
    for (auto* each : {&x_[0], &x_[1], &normed_}) {
      *each = buffer({num_rows, 1, width()});
    }
    projected_.clear();
    for (const auto& head : layers_[0].heads.heads) {
      const int size = head.weights->matrix().num_rows / head.num_heads;
      projected_.push_back(buffer({num_rows, head.num_heads, 1, size}));
    }
    attended_ = buffer({num_rows, num_heads_, 1, projected_[2].shape(3)});
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].heads_in[0] = *x_[i % 2];
      layers_[i].end_in[0] = *attended_;
      layers_[i].end_in[1] = *x_[i % 2];
    }
    norm_in_[0] = *x_[layers_.size() % 2];
  }

  // buffers: of each row keys and values of each layer.
  void append_and_attend(std::size_t layer,
                         const std::vector<int>& positions,
                         std::span<const mx::array> buffers) {
    const BoundLayer& bound = layers_[layer];
    std::vector<AttentionProblem> problems;
    problems.reserve(positions.size());
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const int row = static_cast<int>(i);
      const std::size_t at = 2 * (i * layers_.size() + layer);
      const Written written{
          .first = 0, .count = 1, .at = positions[i], .row = row};
      write_rows(projected_[1], written, buffers[at]);
      write_rows(projected_[2], written, buffers[at + 1]);
      problems
          .emplace_back(projected_[0],
                        buffers[at],
                        buffers[at + 1],
                        positions[i] + 1,
                        nullptr,
                        bound.sinks ? bound.sinks->data<float>() : nullptr,
                        bound.attention,
                        *attended_)
          .narrow_to_row(row);
    }
    attend(problems);
  }

  std::mutex mutex_;
  Weights embedding_;
  float embedding_scale_;
  Weights head_;
  int num_heads_;
  std::vector<mx::array> norm_in_;
  BoundNorm norm_;
  std::vector<BoundLayer> layers_;
  ProductsAfter first_;            // of the next step
  std::optional<mx::array> x_[2];  // what layers read and make, in turn
  std::optional<mx::array> normed_;
  std::vector<mx::array> projected_;  // queries, keys, values
  std::optional<mx::array> attended_;
};

class CpuStep : public Step {
 public:
  explicit CpuStep(const StepSpec& spec)
      : rope_(spec.rope), decoding_(std::make_shared<Decoding>(spec)) {}

  Stepped operator()(const mx::array& tokens,
                     std::span<const StepRow> rows,
                     std::span<const mx::array> after) override {
    std::vector<mx::array> inputs{
        mx::contiguous(mx::astype(tokens, mx::int32))};
    std::vector<int> positions;
    std::vector<TokenRun> runs;
    for (const StepRow& row : rows) {
      positions.push_back(row.position);
      runs.push_back({1, row.position});
      for (const auto& each : row.layers) {
        inputs.push_back(each.keys);
        inputs.push_back(each.values);
      }
    }
    inputs.insert(inputs.end(), after.begin(), after.end());
    const int num_rows = static_cast<int>(rows.size());
    auto made =
        host_op("cpu_step",
                {{{1, num_rows, decoding_->vocabulary_size()}, mx::float32},
                 {{1}, mx::uint8}},
                std::move(inputs),
                [decoding = decoding_,
                 rope = rope_table(&rope_, Positions(runs), num_rows),
                 positions = std::move(positions)](auto in, auto out) {
                  decoding->run(rope, positions, in, out[0]);
                  *out[1].template data<std::uint8_t>() = 0;
                });
    return {made[0], made[1]};
  }

  std::size_t most_rows() const override {
    return std::numeric_limits<std::size_t>::max();
  }
  bool writes(mx::Dtype dtype) const override {
    return dtype == mx::float32 || dtype == mx::float16;
  }

 private:
  Rope rope_;
  std::shared_ptr<Decoding> decoding_;
};

// The other operations' way for those that differ in what they do with weights
// or in what a query sees.
bool can_do(const StepLayer& layer) {
  const Linear* linears[] = {
      layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down};
  return layer.window_tokens == 0 && !layer.experts &&
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
