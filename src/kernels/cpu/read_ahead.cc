#include "kernels/cpu/read_ahead.h"

#include <algorithm>

namespace mlxlm::kernels::cpu {
namespace {

constexpr std::size_t kLineBytes = 64;
// Asked for at once, between two looks for work.
constexpr std::size_t kBytesAtOnce = 4 * kLineBytes;
// Asked for in all: a part of a core's second cache level.
constexpr std::size_t kMostBytes = 192 * 1024;

}  // namespace

void ReadAhead::set(const ReadLater& later) {
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    runs_[i].begin.store(later.runs[i].begin, std::memory_order_relaxed);
    runs_[i].piece_bytes.store(later.runs[i].piece_bytes,
                               std::memory_order_relaxed);
    runs_[i].num_pieces.store(later.runs[i].num_pieces,
                              std::memory_order_relaxed);
  }
  version_.fetch_add(1);
}

std::span<const std::byte> ReadAhead::next(Reader& reader) const {
  const std::uint32_t version = version_.load();
  if (reader.version != version) {
    reader.version = version;
    reader.run = -1;
    reader.at = reader.end = nullptr;
    reader.left_bytes = kMostBytes;
  }
  if (reader.left_bytes == 0) return {};
  if (reader.at == reader.end && !find_run(reader)) {
    reader.left_bytes = 0;
    return {};
  }
  const std::size_t count =
      std::min({kBytesAtOnce,
                static_cast<std::size_t>(reader.end - reader.at),
                reader.left_bytes});
  const std::byte* at = reader.at;
  reader.at += count;
  reader.left_bytes -= count;
  return {at, count};
}

// Goes to the next run that has pieces of the reader's.
bool ReadAhead::find_run(Reader& reader) const {
  int all = 0;
  int before = 0;  // the pieces of the runs before
  const int num_runs = static_cast<int>(runs_.size());
  for (int i = 0; i < num_runs; ++i) {
    if (i <= reader.run) before = all + runs_[i].num_pieces.load();
    all += runs_[i].num_pieces.load();
  }
  const int begin = share_begin(reader.thread, reader.num_threads, all);
  const int end = share_begin(reader.thread + 1, reader.num_threads, all);
  while (++reader.run < num_runs) {
    const Run& run = runs_[reader.run];
    const int count = run.num_pieces.load();
    const int first = std::max(begin - before, 0);
    const int last = std::min(end - before, count);
    if (first < last) {
      reader.at = run.begin.load() + first * run.piece_bytes.load();
      reader.end = reader.at + (last - first) * run.piece_bytes.load();
      return true;
    }
    before += count;
  }
  return false;
}

bool ask_for_some(const ReadAhead& ahead, ReadAhead::Reader& reader) {
  const auto bytes = ahead.next(reader);
  for (std::size_t i = 0; i < bytes.size(); i += kLineBytes) {
    __builtin_prefetch(bytes.data() + i, 0, 2);
  }
  return !bytes.empty();
}

}  // namespace mlxlm::kernels::cpu
