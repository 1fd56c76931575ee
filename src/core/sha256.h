// SHA-256, to tell whether two things are the same.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mlxlm {

class Sha256 {
 public:
  void add(std::string_view bytes);
  // The text and where it ends, so that "ab", "c" and "a", "bc" differ.
  void add_field(std::string_view text);
  // 64 hexadecimal digits; ends the computation.
  std::string hex();

 private:
  void compress(const unsigned char* block);

  std::array<std::uint32_t, 8> state_{0x6a09e667,
                                      0xbb67ae85,
                                      0x3c6ef372,
                                      0xa54ff53a,
                                      0x510e527f,
                                      0x9b05688c,
                                      0x1f83d9ab,
                                      0x5be0cd19};
  std::array<unsigned char, 64> block_{};
  std::size_t used_ = 0;
  std::uint64_t num_bytes_ = 0;
};

}  // namespace mlxlm
