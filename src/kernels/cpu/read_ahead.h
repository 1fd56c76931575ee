// What threads that wait for others do meanwhile: they ask for memory that a
// later call's tasks will read, so that it comes while nobody else uses it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

namespace mlxlm::kernels::cpu {

// Memory that tasks read in order, a piece of so many bytes each.
struct ReadLater {
  const std::byte* begin = nullptr;
  std::size_t bytes = 0;
  std::size_t piece_bytes = 1;
};

class ReadAhead {
 public:
  // A thread's place among those that share out the pieces, as the pool shares
  // out tasks: its cluster has all threads from `first` on, `count` of `all`.
  struct Reader {
    int index = 0;  // in its cluster
    int first = 0;
    int count = 1;
    int all = 1;
    // What it has asked for so far, of the version that set() made.
    std::uint32_t version = 0;
    std::size_t at = 0;
  };

  // Memory may be gone by the time it is asked for, which harms nothing.
  void set(const ReadLater& later);

  // The next bytes for the reader to ask for, of the pieces that are likely its
  // own, as many as its cache has room for; none when it has had them all.
  std::span<const std::byte> next(Reader& reader) const;

 private:
  std::atomic<std::uint32_t> version_{0};
  // Read one by one: those of two versions together are only asked for in vain.
  std::atomic<const std::byte*> begin_{nullptr};
  std::atomic<std::size_t> bytes_{0};
  std::atomic<std::size_t> piece_bytes_{1};
};

// Asks for some of what the reader is to ask for; whether there was any.
bool ask_for_some(const ReadAhead& ahead, ReadAhead::Reader& reader);

}  // namespace mlxlm::kernels::cpu
