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
  begin_.store(later.begin);
  bytes_.store(later.bytes);
  piece_bytes_.store(std::max(later.piece_bytes, kLineBytes));
  version_.fetch_add(1);
}

std::span<const std::byte> ReadAhead::next(Reader& reader) const {
  const std::uint32_t version = version_.load();
  if (reader.version != version) {
    reader.version = version;
    reader.at = 0;
  }
  if (reader.at >= kMostBytes) return {};
  const std::size_t bytes = bytes_.load();
  const std::size_t piece_bytes = piece_bytes_.load();
  const std::size_t pieces = bytes / piece_bytes;
  const std::size_t in_piece = reader.at % piece_bytes;
  const std::size_t piece = pieces * reader.first / reader.all + reader.index +
                            reader.at / piece_bytes * reader.count;
  if (piece >= pieces * (reader.first + reader.count) / reader.all) {
    reader.at = kMostBytes;
    return {};
  }
  const std::size_t count = std::min(kBytesAtOnce, piece_bytes - in_piece);
  reader.at += count;
  return {begin_.load() + piece * piece_bytes + in_piece, count};
}

bool ask_for_some(const ReadAhead& ahead, ReadAhead::Reader& reader) {
  const auto bytes = ahead.next(reader);
  for (std::size_t i = 0; i < bytes.size(); i += kLineBytes) {
    __builtin_prefetch(bytes.data() + i, 0, 2);
  }
  return !bytes.empty();
}

}  // namespace mlxlm::kernels::cpu
