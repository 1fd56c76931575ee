#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <sched.h>

namespace mlxlm::kernels::cpu {
namespace {

// Long enough to bridge the gap between two kernels of one step.
constexpr auto kSpin = std::chrono::microseconds(100);
// Checks between two looks at the clock, and those before a waiting thread
// first offers its processor to others.
constexpr int kChecksPerLook = 16;
constexpr int kEagerChecks = 64;
constexpr int kMaxThreads = 256;

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits for done() for some microseconds; whether it came true.
template <class Condition>
bool spin_until(Condition&& done) {
  for (int i = 0; i < kEagerChecks; ++i) {
    if (done()) return true;
    pause_briefly();
  }
  const auto limit = std::chrono::steady_clock::now() + kSpin;
  do {
    sched_yield();
    for (int i = 0; i < kChecksPerLook; ++i) {
      if (done()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < limit);
  return false;
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

// Threads take numbered tickets for the tasks of the current call. The call is
// over when all tasks are done, whether or not every thread took part: one that
// the system doesn't let run holds nobody up.
class Pool {
 public:
  explicit Pool(int num_threads) {
    try {
      for (int i = 1; i < num_threads; ++i) {
        workers_.emplace_back([this] { work(); });
      }
    } catch (const std::system_error&) {
      // No more threads to be had: these do all.
    }
  }

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(int num_tasks, const std::function<void(int)>& task) {
    if (in_task || workers_.empty() || num_tasks <= 1) {
      for (int i = 0; i < num_tasks; ++i) {
        task(i);
      }
      return;
    }
    std::lock_guard lock(mutex_);
    task_ = &task;
    done_.store(0, std::memory_order_relaxed);
    tickets_.store(static_cast<std::uint64_t>(num_tasks) << 32);
    generation_.fetch_add(1);
    if (sleeping_.load() > 0) {
      generation_.notify_all();
    }
    take_tasks();
    wait_until_done(num_tasks);
  }

 private:
  // Whether this thread is running a task: calls within it run theirs alone.
  static thread_local bool in_task;

  void take_tasks() {
    while (true) {
      // The number of tasks travels with the ticket, so a late thread can't
      // take one call's ticket for another's. Whoever holds a valid one keeps
      // task_ in place.
      const std::uint64_t ticket = tickets_.fetch_add(1);
      const auto index = static_cast<std::uint32_t>(ticket);
      const auto count = static_cast<std::uint32_t>(ticket >> 32);
      if (index >= count) return;
      in_task = true;
      (*task_)(static_cast<int>(index));
      in_task = false;
      if (done_.fetch_add(1) + 1 == static_cast<int>(count)) {
        done_.notify_one();
      }
    }
  }

  void wait_until_done(int num_tasks) {
    auto all_done = [&] { return done_.load() == num_tasks; };
    while (!spin_until(all_done)) {
      const int done = done_.load();
      if (done != num_tasks) done_.wait(done);
    }
  }

  void work() {
    std::uint32_t seen = 0;
    while (true) {
      seen = wait_for_work(seen);
      take_tasks();
    }
  }

  std::uint32_t wait_for_work(std::uint32_t seen) {
    while (!spin_until([&] { return generation_.load() != seen; })) {
      sleeping_.fetch_add(1);
      generation_.wait(seen);
      sleeping_.fetch_sub(1);
    }
    return generation_.load();
  }

  std::mutex mutex_;
  const std::function<void(int)>* task_ = nullptr;
  // The number of tasks, and in the low half the next ticket.
  alignas(64) std::atomic<std::uint64_t> tickets_{0};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<int> sleeping_{0};
  std::vector<std::thread> workers_;
};

thread_local bool Pool::in_task = false;

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
