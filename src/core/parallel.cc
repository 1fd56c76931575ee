#include "core/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mlxlm {
namespace {

// Parts are handed out one by one, so that unequal ones even out.
constexpr std::size_t kPartsPerThread = 16;

}  // namespace

void parallel_for(std::size_t count,
                  std::size_t min_part,
                  const std::function<void(std::size_t, std::size_t)>& body) {
  const std::size_t most_threads =
      std::max(1u, std::thread::hardware_concurrency());
  const std::size_t num_parts =
      std::clamp<std::size_t>(count / std::max<std::size_t>(min_part, 1),
                              1,
                              most_threads * kPartsPerThread);
  auto begin_of = [&](std::size_t part) {
    return count / num_parts * part + std::min(part, count % num_parts);
  };
  std::atomic<std::size_t> next_part = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  auto run = [&] {
    try {
      std::size_t part;
      while ((part = next_part++) < num_parts) {
        body(begin_of(part), begin_of(part + 1));
      }
    } catch (...) {
      next_part = num_parts;
      std::lock_guard lock(mutex);
      if (!failure) {
        failure = std::current_exception();
      }
    }
  };
  std::vector<std::thread> threads;
  const std::size_t num_threads = std::min(most_threads, num_parts);
  threads.reserve(num_threads);
  try {
    while (threads.size() + 1 < num_threads) threads.emplace_back(run);
  } catch (const std::system_error&) {
    // No more threads to be had: these do all.
  }
  run();
  for (auto& thread : threads) {
    thread.join();
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

}  // namespace mlxlm
