#include "kernels/cpu/layer_run.h"

#include <algorithm>
#include <cstddef>

#include "kernels/cpu/project.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"

namespace mlxlm::kernels::cpu {
namespace {

struct NormedTag {};
struct HeadsTag {};
struct RowsTag {};
struct MiddleTag {};
struct GateTag {};
struct UpTag {};

// Rows from which element by element work is spread over the threads.
constexpr int kManyRows = 8;
// Tokens that an operation takes through all its steps at a time.
constexpr int kRowsAtATime = 512;
// The same where a thread does all steps of its rows: then what one step makes
// is in the thread's own cache when the next one reads it.
constexpr int kBlockRows = 64;
// Weights that each block may read anew: more would cost more than they save.
constexpr std::size_t kMostBlockWeightBytes = std::size_t{8} << 20;

// Calls task(first, count) for runs of rows.
template <class Task>
void for_blocks(int num_rows, std::size_t weight_bytes, const Task& task) {
  const int blocks = (num_rows + kBlockRows - 1) / kBlockRows;
  if (weight_bytes <= kMostBlockWeightBytes && blocks >= 3 * num_threads()) {
    parallel_for(blocks, [&](int i) {
      task(i * kBlockRows, std::min(kBlockRows, num_rows - i * kBlockRows));
    });
    return;
  }
  for (int first = 0; first < num_rows; first += kRowsAtATime) {
    task(first, std::min(kRowsAtATime, num_rows - first));
  }
}

// Calls task(row) for each row, over the threads where there are many.
template <class Task>
void for_rows(int num_rows, const Task& task) {
  if (num_rows < kManyRows) {
    for (int row = 0; row < num_rows; ++row) task(row);
  } else {
    parallel_for(num_rows, task);
  }
}

// Rows [first, first + count) of x [B * L, D] through norm, projections, ropes.
void norm_heads_of(const BoundHeads& layer,
                   std::span<const mx::array> in,
                   const float* x,
                   int first,
                   int count,
                   std::span<mx::array> out) {
  const int size = in[0].shape(2);
  const int tokens = in[0].shape(1);
  x += static_cast<std::size_t>(first) * size;
  const auto& heads = layer.heads;
  if (layer.norm) {
    float* normed = scratch<NormedTag>(static_cast<std::size_t>(count) * size);
    layer.norm->apply(in, x, count, size, normed);
    x = normed;
  }
  // One token's heads lie in the output's order already.
  const bool in_place = tokens == 1;
  auto floats_of = [&](const BoundHead& head) {
    return static_cast<std::size_t>(count) * head.weights->matrix().num_rows;
  };
  std::size_t floats = 0;
  for (const auto& head : heads) floats += in_place ? 0 : floats_of(head);
  float* y = scratch<HeadsTag>(floats);
  std::vector<Product> products;
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const PanelMatrix& matrix = heads[i].weights->matrix();
    float* to = in_place ? out[i].data<float>() +
                               static_cast<std::size_t>(first) * matrix.num_rows
                         : y;
    products.push_back({&matrix, heads[i].weights->bias(), to});
    if (!in_place) y += floats_of(heads[i]);
  }
  if (count < kManyRows) project_later(layer.after);
  project(x, count, size, products);
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const auto& head = heads[i];
    const int head_size = out[i].shape(3);
    float* z = products[i].y;
    if (head.norm) {
      const int width =
          head.over_all_heads ? head.num_heads * head_size : head_size;
      head.norm->apply(in, z, floats_of(head) / width, width, z);
    }
    if (!in_place || head.rope) {
      turn(z,
           first,
           count,
           tokens,
           head.num_heads,
           head_size,
           head.rope.get(),
           out[i].data<float>());
    }
  }
}

// heads [B, H, L, D], of which tokens [first, first + count) of all B * L,
// -> [count, H * D].
const float* gather_heads(const mx::array& heads, int first, int count) {
  const int batch = heads.shape(0);
  const int num_heads = heads.shape(1);
  const int tokens = heads.shape(2);
  const int size = heads.shape(3);
  const float* from = heads.data<float>();
  const std::size_t width = static_cast<std::size_t>(num_heads) * size;
  if (tokens == 1 || (num_heads == 1 && batch == 1)) {
    return from + first * width;
  }
  float* to = scratch<RowsTag>(count * width);
  for_rows(count, [&](int row) {
    const int b = (first + row) / tokens;
    const int token = (first + row) % tokens;
    for (int h = 0; h < num_heads; ++h) {
      const float* head =
          from +
          ((static_cast<std::size_t>(b) * num_heads + h) * tokens + token) *
              size;
      std::copy(head, head + size, to + row * width + h * size);
    }
  });
  return to;
}

// y = residual + norm(y) * scale for one row.
void finish_row(const std::optional<BoundNorm>& norm,
                std::span<const mx::array> in,
                float scale,
                const float* residual,
                int size,
                float* y) {
  if (norm) norm->apply(in, y, 1, size, y);
  isa_kernels().scale_add(residual, size, scale, y);
}

// Rows [first, first + count) of x [B * L, D] and their heads.
void finish_rows(const BoundEnd& end,
                 std::span<const mx::array> in,
                 const float* all_x,
                 int first,
                 int count,
                 float* all_y) {
  const int width = end.out->matrix().num_rows;
  const int hidden = end.up->matrix().num_rows;
  const int heads_width = end.out->matrix().num_columns;
  auto at = [&](auto* p, int row) {
    return p + static_cast<std::size_t>(row) * width;
  };
  const float* x = at(all_x, first);
  float* y = at(all_y, first);
  const std::size_t wide = static_cast<std::size_t>(count) * hidden;
  float* middle = scratch<MiddleTag>(static_cast<std::size_t>(count) * width);
  float* normed = scratch<NormedTag>(static_cast<std::size_t>(count) * width);
  float* gate = scratch<GateTag>(wide);
  float* up = end.gate ? scratch<UpTag>(wide) : nullptr;

  const Product output{&end.out->matrix(), end.out->bias(), middle};
  Product products[2] = {{&end.up->matrix(), end.up->bias(), gate}};
  if (end.gate) {
    products[1] = {&end.up->matrix(), end.up->bias(), up};
    products[0] = {&end.gate->matrix(), end.gate->bias(), gate};
  }
  const std::span<const Product> wide_products(products, end.gate ? 2 : 1);
  const Product down{&end.down->matrix(), end.down->bias(), y};
  const bool few = count < kManyRows;
  if (few) project_later(wide_products);
  project(gather_heads(in[0], first, count), count, heads_width, {&output, 1});
  for_rows(count, [&](int row) {
    float* h = at(middle, row);
    finish_row(end.out_norm, in, end.scale, at(x, row), width, h);
    if (end.mlp_norm) {
      end.mlp_norm->apply(in, h, 1, width, at(normed, row));
    }
  });

  if (few) project_later({&down, 1});
  project(end.mlp_norm ? normed : middle, count, width, wide_products);
  for_rows(count, [&](int row) {
    const std::size_t i = static_cast<std::size_t>(row) * hidden;
    isa_kernels().gate(
        gate + i, up != nullptr ? up + i : nullptr, hidden, end.function);
  });

  if (few) project_later(end.after);
  project(gate, count, hidden, {&down, 1});
  for_rows(count, [&](int row) {
    finish_row(
        end.down_norm, in, end.scale, at(middle, row), width, at(y, row));
  });
}

}  // namespace

BoundHeads bind_heads(const Norm* norm,
                      std::span<const HeadProjection> projections,
                      std::vector<mx::array>& inputs) {
  BoundHeads layer{bind(norm, inputs), {}, {}};
  for (const auto& each : projections) {
    auto weights = packed(*each.linear);
    const bool over_all_heads =
        each.norm != nullptr && each.norm->weight &&
        each.norm->weight->shape(0) == weights->matrix().num_rows;
    layer.heads.push_back({std::move(weights),
                           each.num_heads,
                           bind(each.norm, inputs),
                           over_all_heads,
                           nullptr});
  }
  return layer;
}

void run_norm_heads(const BoundHeads& layer,
                    std::span<const mx::array> in,
                    std::span<mx::array> out) {
  Rows rows(in[0]);
  std::size_t bytes = 0;
  for (const auto& head : layer.heads) bytes += head.weights->nbytes();
  for_blocks(in[0].shape(0) * in[0].shape(1), bytes, [&](int first, int count) {
    norm_heads_of(layer, in, rows.data(), first, count, out);
  });
}

BoundEnd bind_end(const LayerEnd& end, std::vector<mx::array>& inputs) {
  return {packed(*end.out),
          end.gate != nullptr ? packed(*end.gate) : nullptr,
          packed(*end.up),
          packed(*end.down),
          bind(end.out_norm, inputs),
          bind(end.mlp_norm, inputs),
          bind(end.down_norm, inputs),
          gate_function(end.activation),
          end.scale,
          {}};
}

void run_finish_layer(const BoundEnd& end,
                      std::span<const mx::array> in,
                      mx::array& out) {
  Rows rows(in[1]);
  std::size_t bytes = end.out->nbytes() + end.up->nbytes() + end.down->nbytes();
  if (end.gate) bytes += end.gate->nbytes();
  for_blocks(in[0].shape(0) * in[0].shape(2), bytes, [&](int first, int count) {
    finish_rows(end, in, rows.data(), first, count, out.data<float>());
  });
}

}  // namespace mlxlm::kernels::cpu
