#include "core/checksum.h"

#include <algorithm>
#include <cstring>

namespace mlxlm {
namespace {

constexpr std::uint64_t kPrime = 0x100000001b3;
constexpr std::uint64_t kStart = 0xcbf29ce484222325;

std::uint64_t mixed(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * kPrime;
  return hash ^ (hash >> 32);  // so that high bits reach the low ones
}

}  // namespace

std::uint64_t checksum(std::span<const std::byte> bytes) {
  std::uint64_t lanes[4] = {kStart, kStart + 1, kStart + 2, kStart + 3};
  std::uint64_t words[4];
  const std::uint64_t size = bytes.size();
  while (!bytes.empty()) {
    const std::size_t count = std::min(bytes.size(), sizeof(words));
    std::fill(std::begin(words), std::end(words), 0);
    std::memcpy(words, bytes.data(), count);
    for (int lane = 0; lane < 4; ++lane) {
      lanes[lane] = mixed(lanes[lane], words[lane]);
    }
    bytes = bytes.subspan(count);
  }
  std::uint64_t hash = kStart;
  for (std::uint64_t word : {lanes[0], lanes[1], lanes[2], lanes[3], size}) {
    hash = mixed(hash, word);
  }
  return hash;
}

}  // namespace mlxlm
