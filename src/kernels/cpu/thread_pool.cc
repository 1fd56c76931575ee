#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <system_error>
#include <utility>

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

std::vector<int> usable_processors() {
  std::vector<int> ids;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int id = 0; id < CPU_SETSIZE; ++id) {
      if (CPU_ISSET(id, &set)) ids.push_back(id);
    }
  }
#endif
  const auto count = std::max(std::thread::hardware_concurrency(), 1u);
  for (unsigned id = 0; ids.empty() && id < count; ++id) {
    ids.push_back(static_cast<int>(id));
  }
  return ids;
}

// 0: as many as there are cores.
int threads_wanted() {
  const char* text = std::getenv("MLX_LM_THREADS");
  return text == nullptr ? 0 : std::max(std::atoi(text), 0);
}

// Keeps this thread on these processors, if the system lets it.
void bind_to(const std::vector<int>& processors) {
#if defined(__linux__)
  if (processors.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int id : processors) CPU_SET(id, &set);
  sched_setaffinity(0, sizeof(set), &set);
#endif
}

ThreadPool& pool() {
  // Never destroyed: MLX's stream threads may still run kernels while the
  // program's static objects go.
  static auto* instance = new ThreadPool(
      place_threads(read_topology(usable_processors()), threads_wanted()));
  return *instance;
}

}  // namespace

std::vector<ThreadPlace> place_threads(const std::vector<Processor>& all,
                                       int wanted) {
  std::vector<Processor> cores;  // the first processor of each
  for (const Processor& each : all) {
    if (std::ranges::none_of(
            cores, [&](auto& core) { return core.core == each.core; })) {
      cores.push_back(each);
    }
  }
  const int num_cores = static_cast<int>(cores.size());
  const int count = std::clamp(wanted > 0 ? wanted : num_cores, 1, kMaxThreads);
  const bool one_cluster = all.back().cluster == 0;
  std::vector<ThreadPlace> places(count);
  for (int i = 0; i < count && !one_cluster; ++i) {
    const auto core = static_cast<std::size_t>(i) * num_cores / count;
    const int cluster = cores[core].cluster;
    for (const Processor& each : all) {
      if (each.cluster == cluster) places[i].processors.push_back(each.id);
    }
    // Some clusters may have no thread: those that have are numbered anew.
    const bool next = i > 0 && places[i].processors != places[i - 1].processors;
    places[i].cluster = i == 0 ? 0 : places[i - 1].cluster + (next ? 1 : 0);
  }
  return places;
}

thread_local bool ThreadPool::in_task = false;

ThreadPool::ThreadPool(std::vector<ThreadPlace> places)
    : places_(std::move(places)),
      shares_(places_.size()),
      reader_{.num_threads = static_cast<int>(places_.size())} {
  try {
    for (std::size_t i = 1; i < places_.size(); ++i) {
      workers_.emplace_back([this, i] { work(static_cast<int>(i)); });
    }
  } catch (const std::system_error&) {
    // No more threads to be had: these do all.
  }
}

ThreadPool::~ThreadPool() {
  ending_ = true;
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& each : workers_) each.join();
}

void ThreadPool::run(int num_tasks, const std::function<void(int)>& task) {
  if (in_task || workers_.empty() || num_tasks <= 1) {
    for (int i = 0; i < num_tasks; ++i) {
      task(i);
    }
    return;
  }
  std::lock_guard lock(mutex_);
  task_ = &task;
  num_tasks_ = num_tasks;
  done_.store(0, std::memory_order_relaxed);
  call_.fetch_add(1);
  const int threads = static_cast<int>(shares_.size());
  for (int i = 0; i < threads; ++i) {
    const std::uint64_t end = share_begin(i + 1, threads, num_tasks);
    shares_[i].tickets.store(end << 32 | share_begin(i, threads, num_tasks),
                             std::memory_order_release);
  }
  generation_.fetch_add(1);
  if (sleeping_.load() > 0) {
    generation_.notify_all();
  }
  take_tasks(0, call_.load());
  wait_until_done(num_tasks);
}

void ThreadPool::take_tasks(int thread, std::uint32_t call) {
  Share& own = shares_[thread];
  for (auto tickets = own.tickets.fetch_add(1); any_left(tickets);
       tickets = own.tickets.fetch_add(1)) {
    run_task(static_cast<std::uint32_t>(tickets));
  }
  const std::size_t threads = shares_.size();
  for (const bool near : {true, false}) {
    for (std::size_t i = 1; i < threads; ++i) {
      const std::size_t other = (thread + i) % threads;
      if ((places_[other].cluster == places_[thread].cluster) == near) {
        take_from(shares_[other], call);
      }
    }
  }
}

// From the end: what is left lies side by side.
void ThreadPool::take_from(Share& other, std::uint32_t call) {
  constexpr std::uint64_t kOne = std::uint64_t{1} << 32;
  std::uint64_t tickets = other.tickets.load();
  // A later call's are first its own thread's.
  while (any_left(tickets) && call_.load() == call) {
    if (other.tickets.compare_exchange_weak(tickets, tickets - kOne)) {
      run_task((tickets >> 32) - 1);
      tickets = other.tickets.load();
    }
  }
}

// Whoever has a task keeps task_ and num_tasks_ in place. A late thread may
// take one of the next call, but never one twice or one that isn't: a share's
// end and its next ticket are read and changed together.
void ThreadPool::run_task(std::uint64_t task) {
  in_task = true;
  (*task_)(static_cast<int>(task));
  in_task = false;
  const int num_tasks = num_tasks_;
  if (done_.fetch_add(1) + 1 == num_tasks) {
    done_.notify_one();
  }
}

void ThreadPool::wait_until_done(int num_tasks) {
  auto all_done = [&] { return done_.load() == num_tasks; };
  while (!spin_until(all_done, reader_)) {
    const int done = done_.load();
    if (done != num_tasks) done_.wait(done);
  }
}

void ThreadPool::work(int thread) {
  bind_to(places_[thread].processors);
  ReadAhead::Reader reader{.thread = thread,
                           .num_threads = static_cast<int>(places_.size())};
  std::uint32_t seen = 0;
  while (true) {
    seen = wait_for_work(seen, reader);
    if (ending_) return;
    take_tasks(thread, seen);
  }
}

std::uint32_t ThreadPool::wait_for_work(std::uint32_t seen,
                                        ReadAhead::Reader& reader) {
  auto has_work = [&] { return generation_.load() != seen; };
  while (!spin_until(has_work, reader)) {
    sleeping_.fetch_add(1);
    generation_.wait(seen);
    sleeping_.fetch_sub(1);
  }
  return generation_.load();
}

// Waits for done() for some microseconds; whether it came true.
template <class Condition>
bool ThreadPool::spin_until(Condition&& done, ReadAhead::Reader& reader) const {
  do {
    if (done()) return true;
  } while (ask_for_some(ahead_, reader));
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

int num_threads() { return pool().num_threads(); }

int num_clusters() { return pool().num_clusters(); }

void parallel_for(int num_tasks, const std::function<void(int)>& task) {
  pool().run(num_tasks, task);
}

void read_ahead(const ReadLater& later) { pool().read_ahead(later); }

}  // namespace mlxlm::kernels::cpu
