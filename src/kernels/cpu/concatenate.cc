// Keys and values put together by runs of bytes over the threads, where MLX
// copies element by element.
#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

std::size_t head_bytes(const mx::array& x) {
  return x.itemsize() * x.shape(2) * x.shape(3);
}

// The i-th of all B * H heads of x [B, H, T, D].
void copy_head(const mx::array& x, int i, char* to) {
  if (x.size() == 0) return;
  const std::size_t size = x.itemsize();
  const int heads = x.shape(1);
  const char* from =
      x.data<char>() + (i / heads * x.strides(0) + i % heads * x.strides(1)) *
                           static_cast<std::ptrdiff_t>(size);
  if (x.strides(3) == 1 && x.strides(2) == x.shape(3)) {
    std::memcpy(to, from, head_bytes(x));
    return;
  }
  for (int t = 0; t < x.shape(2); ++t) {
    for (int d = 0; d < x.shape(3); ++d, to += size) {
      const std::ptrdiff_t element = t * x.strides(2) + d * x.strides(3);
      std::memcpy(to, from + element * static_cast<std::ptrdiff_t>(size), size);
    }
  }
}

}  // namespace

mx::array concatenate_tokens(const std::vector<mx::array>& parts) {
  const mx::Dtype dtype = parts.at(0).dtype();
  if (std::ranges::any_of(
          parts, [&](const mx::array& x) { return x.dtype() != dtype; })) {
    return mx::concatenate(parts, 2);
  }
  mx::Shape shape = parts[0].shape();
  shape[2] = 0;
  for (const auto& part : parts) shape[2] += part.shape(2);
  return host_op("cpu_concatenate_tokens",
                 {{std::move(shape), dtype}},
                 parts,
                 [](auto in, auto out) {
                   char* all = out[0].template data<char>();
                   const std::size_t bytes = head_bytes(out[0]);
                   parallel_for(out[0].shape(0) * out[0].shape(1), [&](int i) {
                     char* to = all + i * bytes;
                     for (const mx::array& part : in) {
                       copy_head(part, i, to);
                       to += head_bytes(part);
                     }
                   });
                 })[0];
}

}  // namespace mlxlm::kernels::cpu
