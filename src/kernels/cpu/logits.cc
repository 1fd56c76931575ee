// What is done with logits over a vocabulary.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <mlx/mlx.h>

#include "kernels/cpu/bind.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/mlx_compat/host_op.h"
#include "kernels/tables.h"

namespace mlxlm::kernels::cpu {
namespace {

// Elements per task.
constexpr std::size_t kPart = 8192;

// Calls task(part, begin, size) for each part of a row.
template <class Task>
void for_parts(std::size_t size, const Task& task) {
  parallel_for(static_cast<int>((size + kPart - 1) / kPart), [&](int i) {
    const std::size_t begin = i * kPart;
    task(i, begin, std::min(kPart, size - begin));
  });
}

void log_softmax_of(const float* x, std::size_t size, float* y) {
  const IsaKernels& isa = isa_kernels();
  std::vector<float> parts((size + kPart - 1) / kPart);
  for_parts(size, [&](int part, std::size_t begin, std::size_t count) {
    parts[part] = isa.largest(x + begin, count);
  });
  const float most = *std::max_element(parts.begin(), parts.end());
  for_parts(size, [&](int part, std::size_t begin, std::size_t count) {
    parts[part] = isa.sum_of_exponentials(x + begin, count, most);
  });
  double sum = 0;
  for (float part : parts) sum += part;
  const float shift = most + static_cast<float>(std::log(sum));
  for_parts(size, [&](int, std::size_t begin, std::size_t count) {
    isa.subtract(x + begin, count, shift, y + begin);
  });
}

std::uint32_t argmax_of(const float* x, std::size_t size) {
  std::vector<float> parts((size + kPart - 1) / kPart);
  for_parts(size, [&](int part, std::size_t begin, std::size_t count) {
    parts[part] = isa_kernels().largest(x + begin, count);
  });
  const std::size_t part =
      std::max_element(parts.begin(), parts.end()) - parts.begin();
  const float* end = x + std::min(size, (part + 1) * kPart);
  const float* found = std::find(x + part * kPart, end, parts[part]);
  return found == end ? 0 : static_cast<std::uint32_t>(found - x);
}

bool suits(const mx::array& x) {
  return x.dtype() == mx::float32 && x.ndim() > 0 && x.shape(-1) > 0;
}

}  // namespace

mx::array log_softmax(const mx::array& logits) {
  if (!suits(logits)) return reference_table().log_softmax(logits);
  return host_op("cpu_log_softmax",
                 {{logits.shape(), mx::float32}},
                 {logits},
                 [](auto in, auto out) {
                   Rows rows(in[0]);
                   const std::size_t size = in[0].shape(-1);
                   for (std::size_t i = 0; i < in[0].size(); i += size) {
                     log_softmax_of(rows.data() + i,
                                    size,
                                    out[0].template data<float>() + i);
                   }
                 })[0];
}

mx::array argmax(const mx::array& x) {
  if (!suits(x)) return reference_table().argmax(x);
  mx::Shape shape = x.shape();
  shape.pop_back();
  return host_op(
      "cpu_argmax", {{shape, mx::uint32}}, {x}, [](auto in, auto out) {
        Rows rows(in[0]);
        const std::size_t size = in[0].shape(-1);
        for (std::size_t i = 0; i < out[0].size(); ++i) {
          out[0].template data<std::uint32_t>()[i] =
              argmax_of(rows.data() + i * size, size);
        }
      })[0];
}

}  // namespace mlxlm::kernels::cpu
