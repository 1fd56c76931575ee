#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include <sched.h>

namespace mlxlm::kernels::cpu {
namespace {

// Long enough to bridge the gap between two kernels of one step.
constexpr auto kSpin = std::chrono::microseconds(60);
constexpr int kMaxThreads = 256;

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int usable_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return CPU_COUNT(&set);
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

int threads_wanted() {
  if (const char* text = std::getenv("MLX_LM_THREADS")) {
    int wanted = std::atoi(text);
    if (wanted > 0) {
      return std::min(wanted, kMaxThreads);
    }
  }
  return std::clamp(usable_processors(), 1, kMaxThreads);
}

class Pool {
 public:
  explicit Pool(int num_threads) {
    for (int i = 1; i < num_threads; ++i) {
      workers_.emplace_back([this] { work(); });
    }
  }

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int num_tasks, const std::function<void(int)>& task) {
    std::lock_guard lock(mutex_);
    if (workers_.empty() || num_tasks <= 1) {
      for (int i = 0; i < num_tasks; ++i) {
        task(i);
      }
      return;
    }
    task_ = &task;
    num_tasks_ = num_tasks;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    generation_.fetch_add(1);
    if (sleeping_.load() > 0) {
      generation_.notify_all();
    }
    take_tasks();
    wait_until_idle();
  }

 private:
  void take_tasks() {
    while (true) {
      int i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= num_tasks_) {
        return;
      }
      (*task_)(i);
    }
  }

  void wait_until_idle() {
    auto limit = std::chrono::steady_clock::now() + kSpin;
    int busy;
    while ((busy = busy_.load(std::memory_order_acquire)) > 0) {
      if (std::chrono::steady_clock::now() < limit) {
        pause_briefly();
      } else {
        busy_.wait(busy);
      }
    }
  }

  void work() {
    std::uint32_t seen = 0;
    while (true) {
      seen = wait_for_work(seen);
      take_tasks();
      if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        busy_.notify_one();
      }
    }
  }

  std::uint32_t wait_for_work(std::uint32_t seen) {
    auto limit = std::chrono::steady_clock::now() + kSpin;
    while (true) {
      std::uint32_t now = generation_.load();
      if (now != seen) {
        return now;
      }
      if (std::chrono::steady_clock::now() < limit) {
        pause_briefly();
        continue;
      }
      sleeping_.fetch_add(1);
      generation_.wait(seen);
      sleeping_.fetch_sub(1);
    }
  }

  std::mutex mutex_;
  const std::function<void(int)>* task_ = nullptr;
  int num_tasks_ = 0;
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> busy_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<int> sleeping_{0};
  std::vector<std::thread> workers_;
};

Pool& pool() {
  // Never destroyed: MLX's stream threads may still run kernels while the
  // program's static objects go.
  static Pool* instance = new Pool(threads_wanted());
  return *instance;
}

}  // namespace

int num_threads() { return pool().num_threads(); }

void parallel_for(int num_tasks, const std::function<void(int)>& task) {
  pool().run(num_tasks, task);
}

}  // namespace mlxlm::kernels::cpu
