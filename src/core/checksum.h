// A fast checksum against damage; anyone can make a file that fits it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace mlxlm {

// FNV-1a over words of eight bytes, in four lanes: several GB/s.
std::uint64_t checksum(std::span<const std::byte> bytes);

}  // namespace mlxlm
