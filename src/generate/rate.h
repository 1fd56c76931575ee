// Times and speeds of what is given out.
#pragma once

#include <chrono>

namespace mlxlm {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
      .count();
}

// Per second; 0 where no time has passed.
inline double rate(double count, double seconds) {
  return seconds > 0 ? count / seconds : 0;
}

}  // namespace mlxlm
