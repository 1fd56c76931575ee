#include "load/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <tuple>
#include <unordered_set>
#include <utility>

#include <nlohmann/json.hpp>

#include <mlxlm/error.h>

#include "core/checked.h"
#include "core/nearest.h"

namespace mlxlm {
namespace {

using nlohmann::json;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kMaxRank = 32;
constexpr int kMaxDepth = 16;

struct DtypeBits {
  std::string_view name;
  std::uint64_t bits;
};

constexpr DtypeBits kDtypes[] = {
    {"BOOL", 8},        {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6},
    {"U8", 8},          {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8},
    {"F8_E8M0", 8},     {"F8_E4M3FNUZ", 8}, {"I16", 16},    {"U16", 16},
    {"F8_E5M2FNUZ", 8}, {"F16", 16},        {"BF16", 16},   {"I32", 32},
    {"U32", 32},        {"F32", 32},        {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64}};

// Names from a file may be long; messages may not.
std::string shortened(std::string_view text) {
  constexpr std::size_t kLongest = 200;
  return text.size() <= kLongest
             ? std::string(text)
             : std::string(text.substr(0, kLongest)) + "...";
}

std::string in_quotes(std::string_view name) {
  return '"' + shortened(name) + '"';
}

std::string to_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::uint64_t size : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

// Reads the header as it is parsed, so that a hostile one can't make a tree
// many times its size. A state per kind of place; objects and lists in fields
// that aren't ours are skipped.
class HeaderReader {
 public:
  HeaderReader(std::string file, SafetensorsHeader& out)
      : file_(std::move(file)), out_(out) {}

  bool null() {
    if (place_ == Place::top && at_metadata_) {
      return true;
    }
    return value("null");
  }
  bool boolean(bool value_) { return value(value_ ? "true" : "false"); }
  bool number_integer(json::number_integer_t number) {
    return value(std::to_string(number));
  }
  bool number_float(json::number_float_t, const std::string& text) {
    return value(text);
  }
  bool binary(json::binary_t&) { return value("binary data"); }

  bool number_unsigned(json::number_unsigned_t number) {
    if (place_ == Place::shape) {
      if (tensor_.shape.size() == kMaxRank) {
        fail_tensor("shape has more than " + std::to_string(kMaxRank) +
                    " dimensions");
      }
      tensor_.shape.push_back(number);
      return true;
    }
    if (place_ == Place::offsets && num_offsets_ < 2) {
      offsets_[num_offsets_++] = number;
      return true;
    }
    return value(std::to_string(number));
  }

  bool string(std::string& text) {
    if (place_ == Place::tensor && field_ == "dtype") {
      tensor_.dtype = std::move(text);
      return true;
    }
    if (place_ == Place::metadata) {
      out_.metadata[field_] = std::move(text);
      return true;
    }
    return value(in_quotes(text));
  }

  bool start_object(std::size_t) {
    if (place_ == Place::start) {
      place_ = Place::top;
    } else if (place_ == Place::top && at_metadata_) {
      place_ = Place::metadata;
      fields_.clear();
    } else if (place_ == Place::top) {
      place_ = Place::tensor;
      fields_.clear();
    } else {
      enter_skipped("an object");
    }
    return true;
  }

  bool key(std::string& text) {
    switch (place_) {
      case Place::top:
        if (!names_.insert(text).second) {
          fail("the key " + in_quotes(text) + " appears twice");
        }
        at_metadata_ = text == "__metadata__";
        tensor_ = {};
        tensor_.name = std::move(text);
        num_offsets_ = 0;
        break;
      case Place::tensor:
      case Place::metadata:
        if (!fields_.insert(text).second) {
          fail("the key " + in_quotes(text) + " appears twice in " +
               in_quotes(tensor_.name));
        }
        field_ = std::move(text);
        break;
      default:
        break;
    }
    return true;
  }

  bool end_object() {
    if (place_ == Place::tensor) {
      finish_tensor();
      place_ = Place::top;
    } else if (place_ == Place::metadata) {
      place_ = Place::top;
    } else if (place_ == Place::skipped) {
      leave_skipped();
    }
    return true;
  }

  bool start_array(std::size_t) {
    if (place_ == Place::tensor && field_ == "shape") {
      place_ = Place::shape;
    } else if (place_ == Place::tensor && field_ == "data_offsets") {
      place_ = Place::offsets;
    } else {
      enter_skipped("a list");
    }
    return true;
  }

  bool end_array() {
    if (place_ == Place::skipped) {
      leave_skipped();
    } else {
      place_ = Place::tensor;
    }
    return true;
  }

  bool parse_error(std::size_t position,
                   const std::string&,
                   const json::exception&) {
    fail("the header is not valid JSON at byte " +
         std::to_string(position + kLengthBytes) + " of the file");
  }

 private:
  enum class Place { start, top, tensor, metadata, shape, offsets, skipped };

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::format, file_ + ": " + what);
  }
  [[noreturn]] void fail_tensor(const std::string& what) const {
    fail("tensor " + in_quotes(tensor_.name) + ": " + what);
  }

  // A value where none of its kind belongs.
  bool value(const std::string& found) {
    switch (place_) {
      case Place::start:
        fail("the header must be a JSON object, not " + found);
      case Place::top:
        if (at_metadata_) {
          fail("__metadata__ must be an object, not " + found);
        }
        fail_tensor("must be an object, not " + found);
      case Place::metadata:
        fail("__metadata__: " + in_quotes(field_) + " must be text, not " +
             found);
      case Place::shape:
        fail_tensor("shape must hold non-negative integers, not " + found);
      case Place::offsets:
        fail_tensor("data_offsets must be two non-negative integers, not " +
                    found);
      case Place::tensor:
        if (field_ == "dtype") {
          fail_tensor("dtype must be text, not " + found);
        }
        if (field_ == "shape" || field_ == "data_offsets") {
          fail_tensor(field_ + " must be a list, not " + found);
        }
        break;
      case Place::skipped:
        break;
    }
    return true;
  }

  void enter_skipped(const char* found) {
    if (place_ != Place::skipped) {
      value(found);
      skipped_in_ = place_;
      place_ = Place::skipped;
    }
    if (++skipped_depth_ > kMaxDepth) {
      fail("the header is nested more than " + std::to_string(kMaxDepth) +
           " levels deep");
    }
  }

  void leave_skipped() {
    if (--skipped_depth_ == 0) {
      place_ = skipped_in_;
    }
  }

  void finish_tensor() {
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (!fields_.contains(field)) {
        fail_tensor(std::string(field) + " is missing");
      }
    }
    if (num_offsets_ != 2) {
      fail_tensor("data_offsets must be two non-negative integers, not " +
                  std::to_string(num_offsets_));
    }
    tensor_.begin = offsets_[0];
    tensor_.end = offsets_[1];
    check_size();
    out_.tensors.push_back(std::move(tensor_));
    tensor_ = {};
  }

  void check_size() const {
    auto dtype =
        std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](auto& known) {
          return known.name == tensor_.dtype;
        });
    if (dtype == std::end(kDtypes)) {
      std::vector<std::string> names;
      for (const DtypeBits& known : kDtypes) {
        names.emplace_back(known.name);
      }
      auto nearest = nearest_name(tensor_.dtype, names);
      fail_tensor("dtype " + in_quotes(tensor_.dtype) + " is unknown" +
                  (nearest ? " (did you mean " + *nearest + "?)" : ""));
    }
    std::optional<std::uint64_t> bits = dtype->bits;
    for (std::uint64_t size : tensor_.shape) {
      bits = bits ? checked_multiply(*bits, size) : bits;
    }
    std::string what =
        "shape " + to_text(tensor_.shape) + " of " + tensor_.dtype;
    if (!bits) {
      fail_tensor(what + " overflows 64 bits");
    }
    if (*bits % 8 != 0) {
      fail_tensor(what + " doesn't end at a whole byte");
    }
    std::string offsets = "data_offsets [" + std::to_string(tensor_.begin) +
                          ", " + std::to_string(tensor_.end) + "]";
    if (tensor_.end < tensor_.begin) {
      fail_tensor(offsets + " end before they begin");
    }
    if (tensor_.end - tensor_.begin != *bits / 8) {
      fail_tensor(what + " takes " + std::to_string(*bits / 8) +
                  " bytes, but " + offsets + " hold " +
                  std::to_string(tensor_.end - tensor_.begin));
    }
    for (std::uint64_t size : tensor_.shape) {
      if (!checked_cast<int>(size)) {
        fail_tensor("dimension " + std::to_string(size) +
                    " is larger than MLX can hold");
      }
    }
  }

  std::string file_;
  SafetensorsHeader& out_;
  Place place_ = Place::start;
  Place skipped_in_ = Place::start;
  int skipped_depth_ = 0;
  bool at_metadata_ = false;
  std::unordered_set<std::string> names_;   // of the top level
  std::unordered_set<std::string> fields_;  // of the object being read
  std::string field_;
  SafetensorsTensor tensor_;
  std::array<std::uint64_t, 2> offsets_{};
  int num_offsets_ = 0;
};

// Tensors must follow each other from 0 to the end of the file.
void check_layout(SafetensorsHeader& header, const std::string& file) {
  auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::format, file + ": " + what);
  };
  std::sort(header.tensors.begin(),
            header.tensors.end(),
            [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
              return std::tie(a.begin, a.end, a.name) <
                     std::tie(b.begin, b.end, b.name);
            });
  std::uint64_t next = 0;
  const SafetensorsTensor* previous = nullptr;
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (tensor.begin != next) {
      std::string after = previous == nullptr
                              ? "at byte 0"
                              : "where " + in_quotes(previous->name) +
                                    " ends, at byte " + std::to_string(next);
      fail("tensor " + in_quotes(tensor.name) + " begins at byte " +
           std::to_string(tensor.begin) + " of the data instead of " + after +
           (tensor.begin < next ? ": they overlap" : ": there is a hole"));
    }
    next = tensor.end;
    previous = &tensor;
  }
  if (next > header.data_bytes) {
    fail("the file is cut short: tensor " + in_quotes(previous->name) +
         " ends at byte " + std::to_string(next) + " of the data, of which " +
         std::to_string(header.data_bytes) +
         " are there; download or copy the file again");
  }
  if (next < header.data_bytes) {
    fail(std::to_string(header.data_bytes - next) +
         " bytes follow the last tensor, which ends at byte " +
         std::to_string(next) + " of the data");
  }
}

std::uint64_t read_length(std::ifstream& in,
                          std::uint64_t file_bytes,
                          const std::string& file) {
  auto fail = [&](const std::string& what) {
    throw Error(ErrorKind::format, file + what);
  };
  unsigned char bytes[kLengthBytes] = {};
  in.read(reinterpret_cast<char*>(bytes), kLengthBytes);
  if (file_bytes < kLengthBytes || !in) {
    fail(" is no safetensors file: it has " + std::to_string(file_bytes) +
         " bytes, and the length of its header alone takes 8");
  }
  if (std::memcmp(bytes, "version ", kLengthBytes) == 0) {
    fail(
        " is a Git LFS pointer, not the file itself; fetch it with "
        "\"git lfs pull\"");
  }
  std::uint64_t length = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) {
    length = length << 8 | bytes[i];
  }
  if (length > kMaxHeaderBytes) {
    fail(" is no safetensors file: its header would have " +
         std::to_string(length) + " bytes, more than the " +
         std::to_string(kMaxHeaderBytes) + " allowed");
  }
  if (length > file_bytes - kLengthBytes) {
    fail(" is cut short: its header ends at byte " +
         std::to_string(length + kLengthBytes) + ", the file at byte " +
         std::to_string(file_bytes));
  }
  return length;
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view header,
                                           std::uint64_t data_bytes,
                                           const std::string& file) {
  if (header.empty() || header.front() != '{') {
    throw Error(ErrorKind::format, file + ": the header must begin with '{'");
  }
  SafetensorsHeader out;
  out.data_start = kLengthBytes + header.size();
  out.data_bytes = data_bytes;
  HeaderReader reader(file, out);
  json::sax_parse(header, &reader);
  check_layout(out, file);
  return out;
}

SafetensorsHeader read_safetensors_header(const std::filesystem::path& path) {
  auto fail = [&](const std::string& reason) {
    throw Error(ErrorKind::file,
                "cannot read " + path.string() + ": " + reason);
  };
  std::error_code error;
  std::uint64_t file_bytes = std::filesystem::file_size(path, error);
  if (error) {  // also if it is no regular file
    fail(error.message());
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    fail(std::strerror(errno));
  }
  std::string file = path.string();
  std::uint64_t length = read_length(in, file_bytes, file);
  std::string header(length, '\0');
  in.read(header.data(), static_cast<std::streamsize>(length));
  if (!in) {
    fail("its header ends early");
  }
  return parse_safetensors_header(
      header, file_bytes - kLengthBytes - length, file);
}

}  // namespace mlxlm
