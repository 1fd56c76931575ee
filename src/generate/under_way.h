// Waits for the step that still runs when a generation ends.
#pragma once

#include <optional>

#include <mlx/mlx.h>

namespace mlxlm {

namespace mx = mlx::core;

// A step is dispatched before the one before it is read, to the stream of the
// thread that asks for it; another thread may end the generation. A step that
// still ran when the program ends would write to memory that MLX's allocator
// has released.
class StepsUnderWay {
 public:
  StepsUnderWay() = default;
  StepsUnderWay(const StepsUnderWay&) = delete;
  StepsUnderWay& operator=(const StepsUnderWay&) = delete;
  ~StepsUnderWay() { wait(); }

  // Before anything is dispatched.
  void go_on_here() {
    auto here = mx::default_stream(mx::default_device());
    if (stream_ != here) {
      wait();
      stream_ = here;
    }
  }

 private:
  void wait() {
    try {
      if (stream_) {
        mx::synchronize(*stream_);
      }
    } catch (...) {
      // The stream is gone with its thread, or nobody is left to tell of the
      // step's fault.
    }
  }

  std::optional<mx::Stream> stream_;
};

}  // namespace mlxlm
