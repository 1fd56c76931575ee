// The threads that one CPU kernel is spread over.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/cpu/read_ahead.h"
#include "kernels/cpu/topology.h"

namespace mlxlm::kernels::cpu {

// Threads in use, the caller's included: MLX_LM_THREADS, else the cores this
// process may run on.
int num_threads();

// Memory nodes or last-level caches that they are spread over.
int num_clusters();

// Calls task(i) for every i in [0, num_tasks), on any thread in any order, and
// returns when all have returned. Tasks must not throw; those that call this do
// all of it themselves. One caller at a time; others wait. Idle workers spin
// for some microseconds, then sleep, so that other programs on the same cores
// lose little.
//
// Each thread begins with a run of the tasks that is the same in every call,
// and takes others' from their ends when it is done, of its own cluster first.
// So a thread reads memory in order, and a matrix's rows are read where they
// were written first, which is where their memory is.
void parallel_for(int num_tasks, const std::function<void(int)>& task);

// What threads ask for from now on when they have no task.
void read_ahead(const ReadLater& later);

// Where a thread belongs, and the processors it is kept on; none: any.
struct ThreadPlace {
  int cluster = 0;
  std::vector<int> processors;
};

// Places of `wanted` threads (0: one per core), spread evenly over the cores
// and kept on their clusters where there are several.
std::vector<ThreadPlace> place_threads(const std::vector<Processor>& processors,
                                       int wanted);

// Threads take numbered tickets for the tasks of the current call. The call is
// over when all tasks are done, whether or not every thread took part: one that
// the system doesn't let run holds nobody up.
class ThreadPool {
 public:
  // One thread less: the caller is the first, and stays where it is.
  explicit ThreadPool(std::vector<ThreadPlace> places);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }
  int num_clusters() const { return places_.back().cluster + 1; }
  void run(int num_tasks, const std::function<void(int)>& task);
  void read_ahead(const ReadLater& later) { ahead_.set(later); }

 private:
  // Whether this thread is running a task: calls within it run theirs alone.
  static thread_local bool in_task;

  // The tasks that a thread begins with.
  struct alignas(64) Share {
    // Their end, and in the low half the next one.
    std::atomic<std::uint64_t> tickets{0};
  };

  static bool any_left(std::uint64_t tickets) {
    return static_cast<std::uint32_t>(tickets) < tickets >> 32;
  }

  void take_tasks(int thread, std::uint32_t call);
  void take_from(Share& other, std::uint32_t call);
  void run_task(std::uint64_t task);
  void wait_until_done(int num_tasks);
  void work(int thread);
  std::uint32_t wait_for_work(std::uint32_t seen, ReadAhead::Reader& reader);
  template <class Condition>
  bool spin_until(Condition&& done, ReadAhead::Reader& reader) const;

  const std::vector<ThreadPlace> places_;
  std::mutex mutex_;
  const std::function<void(int)>* task_ = nullptr;
  int num_tasks_ = 0;
  std::vector<Share> shares_;           // of each thread
  std::atomic<std::uint32_t> call_{0};  // set before the tickets
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};  // set after them
  std::atomic<int> sleeping_{0};
  alignas(64) ReadAhead ahead_;
  ReadAhead::Reader reader_;  // the callers'
  std::atomic<bool> ending_{false};
  std::vector<std::thread> workers_;
};

}  // namespace mlxlm::kernels::cpu
