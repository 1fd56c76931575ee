#include "nn/recurrent_state.h"

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/arrays_cache.h"
#include "cache/batch_cache.h"
#include "load/faults.h"

namespace mlxlm::nn {
namespace {

ArraysCache* arrays_of(Cache* cache) {
  auto* arrays = dynamic_cast<ArraysCache*>(cache);
  if (arrays != nullptr) return arrays;
  throw Error(ErrorKind::argument,
              "a recurrent layer needs an ArraysCache, not a " +
                  std::string(cache->kind()));
}

const std::optional<mx::array>& held_in(const ArraysCache& cache,
                                        std::size_t index,
                                        const mx::Shape& shape) {
  if (index >= cache.count()) {
    throw Error(ErrorKind::argument,
                "a recurrent layer's cache has " +
                    std::to_string(cache.count()) +
                    " arrays, fewer than the model needs");
  }
  const auto& held = cache[index];
  if (held && held->shape() != shape) {
    throw Error(
        ErrorKind::argument,
        "array " + std::to_string(index) + " of a recurrent layer's cache is " +
            to_text(held->shape()) + ", but the model needs " + to_text(shape));
  }
  return held;
}

}  // namespace

RecurrentState::RecurrentState(Cache* cache) {
  if (cache == nullptr) return;
  auto* batch = dynamic_cast<BatchCache*>(cache);
  if (batch == nullptr) {
    rows_ = {arrays_of(cache)};
    return;
  }
  num_tokens_ = batch->num_tokens();
  for (std::size_t i = 0; i < batch->count(); ++i) {
    rows_.push_back(arrays_of((*batch)[i].get()));
  }
}

mx::array RecurrentState::carry(std::size_t index,
                                const mx::Shape& shape,
                                const std::vector<mx::array>& inputs,
                                const Carry& carry,
                                mx::Dtype dtype) const {
  const auto nothing = [&] { return mx::zeros(shape, dtype); };
  if (rows_.empty()) return carry(inputs, nothing(), true).y;
  auto carry_row = [&](ArraysCache& row, std::span<const mx::array> part) {
    const auto& held = held_in(row, index, shape);
    auto [y, after] = carry(part, held ? *held : nothing(), !held);
    row.set(index, mx::astype(after, dtype));
    return y;
  };
  if (num_tokens_.empty()) return carry_row(*rows_[0], inputs);
  std::vector<std::vector<mx::array>> by_row(rows_.size());
  for (const auto& input : inputs) {
    auto parts = split_tokens(input, num_tokens_, 1);
    for (std::size_t i = 0; i < parts.size(); ++i)
      by_row[i].push_back(parts[i]);
  }
  std::vector<mx::array> ys;
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    ys.push_back(carry_row(*rows_[i], by_row[i]));
  }
  return join_tokens(std::move(ys), 1);
}

mx::array RecurrentState::convolve(std::size_t index,
                                   const mx::array& x,
                                   const kernels::CausalConv& conv) const {
  return carry(
      index,
      {x.shape(0), conv.num_taps() - 1, x.shape(2)},
      {x},
      [&](auto inputs, const mx::array& before, bool) {
        return kernels::table().causal_conv(inputs[0], conv, before);
      },
      x.dtype());
}

mx::array RecurrentState::scan(std::size_t index,
                               const kernels::MatrixScan& scan,
                               bool transposed) const {
  mx::Shape shape{
      scan.v.shape(0), scan.v.shape(2), scan.v.shape(3), scan.k.shape(3)};
  if (transposed) std::swap(shape[2], shape[3]);
  auto turned = [&](const mx::array& state) {
    return transposed ? mx::swapaxes(state, 2, 3) : state;
  };
  std::vector<mx::array> inputs{scan.q, scan.k, scan.v, scan.decay};
  for (const auto* each : {&scan.beta, &scan.erase, &scan.write}) {
    if (*each) inputs.push_back(**each);
  }
  return carry(
      index, shape, inputs, [&](auto parts, const mx::array& before, bool) {
        kernels::MatrixScan part{
            .q = parts[0], .k = parts[1], .v = parts[2], .decay = parts[3]};
        auto next = parts.begin() + 4;
        if (scan.beta) part.beta = *next++;
        if (scan.erase) part.erase = *next++;
        if (scan.write) part.write = *next++;
        auto [y, after] = kernels::table().matrix_scan(part, turned(before));
        return kernels::Scanned{y, turned(after)};
      });
}

mx::array RecurrentState::scan(std::size_t index,
                               const kernels::SelectiveScan& scan) const {
  return carry(index,
               {scan.x.shape(0), scan.a.shape(0), scan.a.shape(1)},
               {scan.x, scan.step, scan.b, scan.c},
               [&](auto parts, const mx::array& before, bool) {
                 return kernels::table().selective_scan({.x = parts[0],
                                                         .step = parts[1],
                                                         .a = scan.a,
                                                         .b = parts[2],
                                                         .c = parts[3],
                                                         .skip = scan.skip},
                                                        before);
               });
}

}  // namespace mlxlm::nn
