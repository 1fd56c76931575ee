#include "tests/fuzz/damage.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <iterator>
#include <random>

namespace mlxlm {
namespace {

class Damage {
 public:
  explicit Damage(std::uint32_t seed) : random_(seed) {}

  std::string apply(std::string file) {
    std::uint64_t header_size = 0;
    if (file.size() <= sizeof(header_size)) {
      return file + '{';
    }
    std::memcpy(&header_size, file.data(), sizeof(header_size));
    std::size_t end = 8 + std::min<std::uint64_t>(header_size, file.size() - 8);
    for (unsigned i = below(4) + 1; i > 0; --i) {
      switch (below(8)) {
        case 0:  // cut
          file.resize(below(file.size()) + 1);
          return file;
        case 1:  // anywhere
          file[below(file.size())] = static_cast<char>(below(256));
          break;
        case 2:  // the header's length
          file[below(8)] = static_cast<char>(below(256));
          break;
        case 3:  // a number of the data, as int32
          set_number(file, end);
          break;
        default:
          change_header(file, end);
      }
    }
    return file;
  }

 private:
  unsigned below(std::size_t limit) {
    return static_cast<unsigned>(random_() % std::max<std::size_t>(limit, 1));
  }

  void set_number(std::string& file, std::size_t data) {
    constexpr int kNumbers[] = {
        -1, 0, 1, 2, 3, 4, 5, 31, 32, 255, 1 << 30, 2147483647};
    // Numbers come last: they are the smallest tensors.
    std::size_t from =
        file.size() - std::min<std::size_t>(file.size() - data, 48);
    if (from + 4 > file.size()) {
      return;
    }
    std::size_t at = from + below((file.size() - from) / 4) * 4;
    int value = kNumbers[below(std::size(kNumbers))];
    std::memcpy(file.data() + at, &value, sizeof(value));
  }

  void change_header(std::string& file, std::size_t end) {
    end = file.find_last_not_of(' ', end - 1) + 1;  // the padding tells nothing
    if (end <= 8) {
      return;
    }
    std::size_t at = 8 + below(end - 8);
    while (at < end && !is_word(file[at])) {
      ++at;
    }
    if (at == end) {
      return;
    }
    constexpr char kCharacters[] = "0123456789-.,:\"[]{}eKVCache ";
    file[at] =
        std::isdigit(static_cast<unsigned char>(file[at])) != 0 && below(4) != 0
            ? static_cast<char>('0' + below(10))
            : kCharacters[below(std::size(kCharacters) - 1)];
  }

  static bool is_word(char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0;
  }

  std::mt19937 random_;
};

}  // namespace

std::string damaged(const std::string& file, std::uint32_t seed) {
  return Damage(seed).apply(file);
}

}  // namespace mlxlm
