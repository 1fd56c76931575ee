// Method: the reference's tokenizer_utils.py.
#include "text/detokenizers.h"

#include <charconv>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "text/utf8.h"

namespace mlxlm {
namespace {

constexpr std::string_view kSpmSpace = "\xE2\x96\x81";  // U+2581

// The byte that "<0x41>" stands for. Like the reference, takes any token that
// begins like one.
std::optional<char> byte_of_token(std::string_view token) {
  if (!token.starts_with("<0x") || token.size() < 5) {
    return std::nullopt;
  }
  unsigned value = 0;
  auto [end, error] =
      std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  if (error != std::errc() || end != token.data() + 5) {
    return std::nullopt;
  }
  return static_cast<char>(value);
}

// Bytes that don't print are written as the characters from U+0100 on.
const std::unordered_map<std::string, char>& byte_characters() {
  static const std::unordered_map<std::string, char> map = [] {
    auto utf8 = [](unsigned code_point) {
      return code_point < 0x80
                 ? std::string(1, static_cast<char>(code_point))
                 : std::string{static_cast<char>(0xC0 | (code_point >> 6)),
                               static_cast<char>(0x80 | (code_point & 0x3F))};
    };
    std::unordered_map<std::string, char> characters;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      bool prints = (byte >= '!' && byte <= '~') ||
                    (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      characters.emplace(utf8(prints ? byte : next++), static_cast<char>(byte));
    }
    return characters;
  }();
  return map;
}

// Characters that stand for no byte are taken as they are.
std::string decode_byte_level(std::string_view token) {
  std::string bytes;
  while (!token.empty()) {
    std::size_t size = character_offset(token, 1);
    std::string character(token.substr(0, size));
    auto found = byte_characters().find(character);
    if (found != byte_characters().end()) {
      bytes += found->second;
    } else {
      bytes += character;
    }
    token.remove_prefix(size);
  }
  return bytes;
}

void replace_all(std::string& text,
                 std::string_view from,
                 std::string_view to) {
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

}  // namespace

NaiveDetokenizer::NaiveDetokenizer(Decode decode, bool clean_spaces)
    : decode_(std::move(decode)), clean_spaces_(clean_spaces) {}

void NaiveDetokenizer::reset() {
  characters_emitted_ = 0;
  text_.clear();
  settled_bytes_ = 0;
  line_.clear();
  stale_ = false;
}

void NaiveDetokenizer::add_token(int token) {
  line_.push_back(token);
  stale_ = true;
}

void NaiveDetokenizer::finalize() {
  text_.resize(settled_bytes_);
  if (!line_.empty()) {
    text_ += decode_(line_);
  }
  settled_bytes_ = text_.size();
  line_.clear();
  stale_ = false;
}

void NaiveDetokenizer::refresh() const {
  if (!stale_) {
    return;
  }
  stale_ = false;
  std::string line = decode_(line_);
  if (line.ends_with(kReplacementCharacter)) {
    // An incomplete character can decode to several replacements.
    while (line.ends_with(kReplacementCharacter)) {
      line.resize(line.size() - kReplacementCharacter.size());
    }
  } else if (clean_spaces_ && line.ends_with(' ')) {
    line.pop_back();
  }
  text_.resize(settled_bytes_);
  text_ += line;
  if (line.ends_with('\n')) {
    settled_bytes_ = text_.size();
    line_.clear();
  }
}

const std::string& NaiveDetokenizer::text() const {
  refresh();
  return text_;
}

// Counted in characters, because the text may have become shorter.
std::string NaiveDetokenizer::last_segment() {
  refresh();
  std::string segment =
      text_.substr(character_offset(text_, characters_emitted_));
  characters_emitted_ = count_characters(text_);
  return segment;
}

void PieceDetokenizer::reset() {
  text_.clear();
  waiting_.clear();
  bytes_emitted_ = 0;
}

std::string PieceDetokenizer::last_segment() {
  std::string segment = text_.substr(bytes_emitted_);
  bytes_emitted_ = text_.size();
  return segment;
}

SpmDetokenizer::SpmDetokenizer(Backend backend, bool trim_space)
    : backend_(std::move(backend)), trim_space_(trim_space) {}

void SpmDetokenizer::add_token(int token) {
  if (auto piece = backend_->id_to_token(token)) {
    if (auto byte = byte_of_token(*piece)) {
      waiting_ += *byte;
    } else {
      waiting_ += *piece;
    }
  }
  flush(false);
}

void SpmDetokenizer::flush(bool force) {
  std::string spaced = waiting_;
  replace_all(spaced, kSpmSpace, " ");
  std::string text = replace_invalid_utf8(spaced);
  if (!force && text.ends_with(kReplacementCharacter)) {
    return;
  }
  if (trim_space_ && text_.empty() && text.starts_with(' ')) {
    text.erase(0, 1);
  }
  text_ += text;
  waiting_.clear();
}

void SpmDetokenizer::finalize() { flush(true); }

ByteLevelDetokenizer::ByteLevelDetokenizer(Backend backend)
    : backend_(std::move(backend)), vocabulary_size_(backend_->size()) {}

void ByteLevelDetokenizer::add_token(int token) {
  // A model's vocabulary may be padded beyond the tokenizer's.
  std::string piece = token >= 0 && token < vocabulary_size_
                          ? backend_->id_to_token(token).value_or("")
                          : "!";
  std::string bytes = decode_byte_level(piece);
  waiting_ += bytes;
  std::string text = replace_invalid_utf8(waiting_);
  // A single space waits for what follows.
  bool single_space = bytes == " " && count_characters(piece) == 1;
  if (!text.ends_with(kReplacementCharacter) && !single_space) {
    emit(text);
  }
}

void ByteLevelDetokenizer::emit(const std::string& text) {
  bool trim = text_.empty() && text.starts_with(' ');
  text_ += trim ? text.substr(1) : text;
  waiting_.clear();
}

void ByteLevelDetokenizer::finalize() { emit(replace_invalid_utf8(waiting_)); }

}  // namespace mlxlm
