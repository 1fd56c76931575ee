#include "core/parallel.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mlxlm {

void parallel_for(std::size_t count,
                  std::size_t min_part,
                  const std::function<void(std::size_t, std::size_t)>& body) {
  std::size_t num_parts = std::clamp<std::size_t>(
      count / std::max<std::size_t>(min_part, 1),
      1,
      std::max(1u, std::thread::hardware_concurrency()));
  std::mutex mutex;
  std::exception_ptr failure;
  auto run = [&](std::size_t part) {
    try {
      std::size_t begin = count / num_parts * part;
      std::size_t end =
          part + 1 == num_parts ? count : count / num_parts * (part + 1);
      body(begin, end);
    } catch (...) {
      std::lock_guard lock(mutex);
      if (!failure) {
        failure = std::current_exception();
      }
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(num_parts);
  std::size_t next = 1;
  try {
    for (; next < num_parts; ++next) {
      threads.emplace_back(run, next);
    }
  } catch (const std::system_error&) {
    // No more threads to be had: this one does the rest.
    for (; next < num_parts; ++next) {
      run(next);
    }
  }
  run(0);
  for (auto& thread : threads) {
    thread.join();
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

}  // namespace mlxlm
