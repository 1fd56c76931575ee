#include "load/gguf_file.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/checked.h"

namespace mlxlm {
namespace {

constexpr std::size_t kMaxKeyBytes = 65535;
constexpr std::size_t kMaxTensorNameBytes = 1024;
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kDefaultAlignmentBytes = 32;
constexpr std::int64_t kMaxAlignmentBytes = std::int64_t{1} << 20;
// The fewest bytes that a metadata entry and a tensor's entry take.
constexpr std::uint64_t kMinEntryBytes = 8 + 1 + 4 + 1;
constexpr std::uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;

bool is_older_magic(std::string_view magic) {
  return magic == "lmgg" || magic == "fmgg" || magic == "tjgg" ||
         magic == "algg";
}

}  // namespace

// Reads forward through the file and never past its end.
class GgufFile::Cursor {
 public:
  explicit Cursor(const GgufFile& file)
      : file_(file), bytes_(file.file_->bytes()) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t remaining() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(std::uint64_t count, std::string_view what) {
    if (count > remaining()) {
      throw file_.error(std::string(what) + " takes " + std::to_string(count) +
                        " bytes from " + std::to_string(position_) + ", but " +
                        std::to_string(remaining()) +
                        " are left: the file is cut short or damaged");
    }
    auto taken = bytes_.subspan(position_, count);
    position_ += count;
    return taken;
  }

  template <typename T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string_view read_string(std::string_view what) {
    auto length = read<std::uint64_t>(what);
    auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  // Refuses a count of things that can't all be in the rest of the file.
  void check_count(std::uint64_t count,
                   std::uint64_t min_bytes,
                   std::string_view what) const {
    if (count > remaining() / min_bytes) {
      throw file_.error(std::string(what) + ": " + std::to_string(count) +
                        " are claimed, but " + std::to_string(remaining()) +
                        " bytes are left: the file is cut short or damaged");
    }
  }

 private:
  const GgufFile& file_;
  std::span<const std::byte> bytes_;
  std::uint64_t position_ = 0;
};

GgufFile::GgufFile(const std::filesystem::path& path)
    : path_(path.string()),
      file_(std::make_unique<MappedFile>(path)),
      metadata_(path_) {
  Cursor cursor(*this);
  read_header(cursor);
  auto num_tensors = cursor.read<std::uint64_t>("the number of tensors");
  auto num_entries =
      cursor.read<std::uint64_t>("the number of metadata entries");
  read_metadata(cursor, num_entries);
  read_tensors(cursor, num_tensors);
  check_overlaps();
}

void GgufFile::read_header(Cursor& cursor) {
  auto bytes = cursor.take(4, "the header");
  std::string_view magic(reinterpret_cast<const char*>(bytes.data()), 4);
  if (magic != "GGUF") {
    throw error("it starts with " + quoted_name(magic) + ", not 'GGUF'" +
                (is_older_magic(magic)
                     ? ": an older format; convert the model again"
                     : ""));
  }
  version_ = cursor.read<std::uint32_t>("the version");
  if (version_ != 0 && (version_ & 0xffff) == 0) {
    throw error("it is big-endian; only little-endian files can be read");
  }
  if (version_ == 1) {
    throw error(
        "it has version 1, whose counts have 32 bits; only versions 2 and 3 "
        "can be read: convert the model again");
  }
  if (version_ != 2 && version_ != 3) {
    throw error("it has version " + std::to_string(version_) +
                "; only versions 2 and 3 can be read");
  }
}

void GgufFile::read_metadata(Cursor& cursor, std::uint64_t count) {
  cursor.check_count(count, kMinEntryBytes, "metadata entries");
  for (std::uint64_t i = 0; i < count; ++i) {
    std::string what = "metadata key " + std::to_string(i);
    std::string_view key = cursor.read_string(what);
    if (key.empty() || key.size() > kMaxKeyBytes) {
      throw error(what + " has " + std::to_string(key.size()) +
                  " bytes; 1 to " + std::to_string(kMaxKeyBytes) +
                  " are allowed");
    }
    if (!metadata_.add(key, read_value(cursor, key))) {
      throw error("the key " + quoted_name(key) + " appears twice");
    }
  }
}

GgufValue GgufFile::read_value(Cursor& cursor, std::string_view key) const {
  std::string what = "the value of " + quoted_name(key);
  auto read_type = [&] {
    auto type = cursor.read<std::uint32_t>(what);
    if (type >= kNumGgufValueTypes) {
      throw error(what + " has the unknown type " + std::to_string(type));
    }
    return static_cast<GgufValueType>(type);
  };
  GgufValue value{.type = read_type(), .items = {}};
  if (value.type == GgufValueType::array) {
    value.array = true;
    value.type = read_type();
    if (value.type == GgufValueType::array) {
      throw error(what + " is an array of arrays, which no model needs");
    }
    value.count = cursor.read<std::uint64_t>(what);
  }
  if (std::uint64_t item_bytes = gguf_value_bytes(value.type)) {
    cursor.check_count(value.count, item_bytes, what);
    value.items = cursor.take(value.count * item_bytes, what);
    return value;
  }
  cursor.check_count(value.count, sizeof(std::uint64_t), what);
  std::uint64_t begin = cursor.position();
  for (std::uint64_t i = 0; i < value.count; ++i) {
    cursor.read_string(what);
  }
  value.items = file_->bytes().subspan(begin, cursor.position() - begin);
  return value;
}

std::uint64_t GgufFile::alignment_bytes() const {
  auto value = metadata_.integer("general.alignment");
  if (!value) {
    return kDefaultAlignmentBytes;
  }
  auto alignment = static_cast<std::uint64_t>(*value);
  if (*value <= 0 || *value > kMaxAlignmentBytes ||
      !std::has_single_bit(alignment)) {
    throw error("'general.alignment' is " + std::to_string(*value) +
                "; a power of two up to " + std::to_string(kMaxAlignmentBytes) +
                " is allowed");
  }
  return alignment;
}

std::uint64_t GgufFile::read_shape(Cursor& cursor, GgufTensor& tensor) const {
  std::string what = "tensor " + quoted_name(tensor.name);
  auto num_dimensions = cursor.read<std::uint32_t>(what);
  if (num_dimensions == 0 || num_dimensions > kMaxDimensions) {
    throw error(what + " has " + std::to_string(num_dimensions) +
                " dimensions; 1 to " + std::to_string(kMaxDimensions) +
                " are allowed");
  }
  std::uint64_t num_elements = 1;
  for (std::uint32_t i = 0; i < num_dimensions; ++i) {
    auto size = cursor.read<std::uint64_t>(what);
    auto dimension = checked_cast<int>(size);
    auto product = checked_multiply(num_elements, size);
    if (!dimension || *dimension == 0 || !product) {
      throw error(what + " has a dimension of " + std::to_string(size) +
                  ", which no tensor in a file can have");
    }
    num_elements = *product;
    tensor.shape.push_back(*dimension);
  }
  std::ranges::reverse(tensor.shape);
  return num_elements;
}

GgufFile::TensorInfo GgufFile::read_tensor(Cursor& cursor,
                                           std::uint64_t index) const {
  std::string what = "tensor " + std::to_string(index);
  GgufTensor tensor{cursor.read_string(what), nullptr, {}, {}};
  if (tensor.name.empty() || tensor.name.size() > kMaxTensorNameBytes) {
    throw error("the name of " + what + " has " +
                std::to_string(tensor.name.size()) + " bytes; 1 to " +
                std::to_string(kMaxTensorNameBytes) + " are allowed");
  }
  what = "tensor " + quoted_name(tensor.name);
  std::uint64_t num_elements = read_shape(cursor, tensor);
  auto type_id = cursor.read<std::uint32_t>(what);
  tensor.type = find_gguf_type(type_id);
  if (tensor.type == nullptr) {
    throw error(what + " has the unknown type " + std::to_string(type_id));
  }
  const GgufType& type = *tensor.type;
  if (tensor.shape.back() % type.block_elements != 0) {
    throw error(what + " has rows of " + std::to_string(tensor.shape.back()) +
                " values, not a multiple of the " +
                std::to_string(type.block_elements) + " in a block of " +
                std::string(type.name));
  }
  auto offset = cursor.read<std::uint64_t>(what);
  auto bytes = checked_multiply<std::uint64_t>(
      num_elements / type.block_elements, type.block_bytes);
  if (!bytes || *bytes > file_->bytes().size() ||
      offset > file_->bytes().size()) {
    throw error(what + " takes " +
                (bytes ? std::to_string(*bytes) : "more than 2^64") +
                " bytes from " + std::to_string(offset) +
                ", beyond the end of the file: it is cut short or damaged");
  }
  return {std::move(tensor), offset, *bytes};
}

void GgufFile::read_tensors(Cursor& cursor, std::uint64_t count) {
  cursor.check_count(count, kMinTensorInfoBytes, "tensors");
  std::uint64_t alignment = alignment_bytes();
  std::vector<TensorInfo> infos;
  for (std::uint64_t i = 0; i < count; ++i) {
    infos.push_back(read_tensor(cursor, i));
    if (!tensor_index_.emplace(infos.back().tensor.name, i).second) {
      throw error("tensor " + quoted_name(infos.back().tensor.name) +
                  " appears twice");
    }
  }
  // The data begins at the next multiple of the alignment.
  std::uint64_t padding = -cursor.position() % alignment;
  auto data = file_->bytes().subspan(cursor.position() +
                                     std::min(padding, cursor.remaining()));
  for (auto& [tensor, offset, bytes] : infos) {
    std::string what = "tensor " + quoted_name(tensor.name);
    if (offset % alignment != 0) {
      throw error(what + " begins at " + std::to_string(offset) +
                  ", not a multiple of the alignment " +
                  std::to_string(alignment));
    }
    if (offset > data.size() || bytes > data.size() - offset) {
      throw error(what + " takes " + std::to_string(bytes) + " bytes from " +
                  std::to_string(offset) + ", but the file has " +
                  std::to_string(data.size()) +
                  " bytes of data: it is cut short or damaged");
    }
    tensor.data = data.subspan(offset, bytes);
    tensors_.push_back(std::move(tensor));
  }
}

void GgufFile::check_overlaps() const {
  std::vector<const GgufTensor*> order;
  for (const auto& tensor : tensors_) {
    order.push_back(&tensor);
  }
  std::ranges::sort(
      order, {}, [](const GgufTensor* tensor) { return tensor->data.data(); });
  for (std::size_t i = 1; i < order.size(); ++i) {
    const auto& before = order[i - 1]->data;
    if (before.data() + before.size() > order[i]->data.data()) {
      throw error("tensors " + quoted_name(order[i - 1]->name) + " and " +
                  quoted_name(order[i]->name) + " overlap");
    }
  }
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace mlxlm
