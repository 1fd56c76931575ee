// What threads that wait for others do meanwhile: they ask for memory that a
// later call's tasks will read, so that it comes while nobody else uses it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace mlxlm::kernels::cpu {

// The first of a thread's tasks, or pieces of memory, among so many: threads
// share them out in equal runs.
constexpr int share_begin(int thread, int num_threads, int num_tasks) {
  return static_cast<int>(
      (static_cast<std::int64_t>(thread) * num_tasks + num_threads - 1) /
      num_threads);
}

// Memory that tasks read in order, a piece each: those of all runs are numbered
// through.
struct ReadLater {
  static constexpr int kMostRuns = 4;
  struct Run {
    const std::byte* begin = nullptr;
    std::size_t piece_bytes = 0;
    int num_pieces = 0;
  };
  std::array<Run, kMostRuns> runs;
};

class ReadAhead {
 public:
  // A thread, and what it has asked for so far of what set() made.
  struct Reader {
    int thread = 0;
    int num_threads = 1;
    std::uint32_t version = 0;
    int run = 0;
    const std::byte* at = nullptr;
    const std::byte* end = nullptr;
    std::size_t left_bytes = 0;  // that its cache has room for
  };

  // Memory may be gone by the time it is asked for, which harms nothing.
  void set(const ReadLater& later);

  // The next bytes for the reader to ask for, of the pieces that are its
  // thread's; none when it has had as many as its cache has room for.
  std::span<const std::byte> next(Reader& reader) const;

 private:
  bool find_run(Reader& reader) const;

  struct Run {
    std::atomic<const std::byte*> begin{nullptr};
    std::atomic<std::size_t> piece_bytes{0};
    std::atomic<int> num_pieces{0};
  };
  // Read one by one: those of two versions together are only asked for in vain.
  std::array<Run, ReadLater::kMostRuns> runs_;
  std::atomic<std::uint32_t> version_{0};
};

// Asks for some of what the reader is to ask for; whether there was any.
bool ask_for_some(const ReadAhead& ahead, ReadAhead::Reader& reader);

}  // namespace mlxlm::kernels::cpu
