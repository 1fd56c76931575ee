#include "text/utf8.h"

#include <cstdint>

namespace mlxlm {
namespace {

struct Sequence {
  std::size_t size;  // bytes that belong together
  bool valid;
};

// The character at the front, or the longest part of one.
Sequence first_sequence(std::string_view bytes) {
  auto byte = [&](std::size_t i) {
    return static_cast<std::uint8_t>(bytes[i]);
  };
  std::uint8_t lead = byte(0);
  if (lead < 0x80) {
    return {1, true};
  }
  // The second byte's range leaves out overlong forms, surrogates and what
  // lies above U+10FFFF.
  std::size_t size = 0;
  std::uint8_t low = 0x80;
  std::uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    size = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    size = 3;
    low = lead == 0xE0 ? 0xA0 : 0x80;
    high = lead == 0xED ? 0x9F : 0xBF;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    size = 4;
    low = lead == 0xF0 ? 0x90 : 0x80;
    high = lead == 0xF4 ? 0x8F : 0xBF;
  } else {
    return {1, false};
  }
  for (std::size_t i = 1; i < size; ++i) {
    if (i >= bytes.size() || byte(i) < low || byte(i) > high) {
      return {i, false};
    }
    low = 0x80;
    high = 0xBF;
  }
  return {size, true};
}

bool continues(char byte) {
  return (static_cast<std::uint8_t>(byte) & 0xC0) == 0x80;
}

}  // namespace

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    auto [size, valid] = first_sequence(bytes);
    text += valid ? bytes.substr(0, size) : kReplacementCharacter;
    bytes.remove_prefix(size);
  }
  return text;
}

std::size_t count_characters(std::string_view text) {
  std::size_t count = 0;
  for (char byte : text) {
    count += !continues(byte);
  }
  return count;
}

std::size_t character_offset(std::string_view text, std::size_t index) {
  std::size_t seen = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!continues(text[i]) && seen++ == index) {
      return i;
    }
  }
  return text.size();
}

}  // namespace mlxlm
