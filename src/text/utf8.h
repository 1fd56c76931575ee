// UTF-8 as Python reads it with errors="replace".
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace mlxlm {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Each longest part of a character that isn't one becomes U+FFFD.
std::string replace_invalid_utf8(std::string_view bytes);

// Characters in valid UTF-8, and the place of the one with that index (or the
// end).
std::size_t count_characters(std::string_view text);
std::size_t character_offset(std::string_view text, std::size_t index);

}  // namespace mlxlm
