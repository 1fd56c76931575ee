// Memory that one thread's kernels use again and again.
#pragma once

#include <cstddef>
#include <vector>

namespace mlxlm::kernels::cpu {

// At least `size` floats of undefined content, valid until the next call on the
// same thread with the same Tag.
template <class Tag>
float* scratch(std::size_t size) {
  thread_local std::vector<float> buffer;
  if (buffer.size() < size) {
    buffer.clear();  // nothing to keep: spares the copy
    buffer.resize(size);
  }
  return buffer.data();
}

}  // namespace mlxlm::kernels::cpu
