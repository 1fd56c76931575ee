#include "cache/cache_tensors.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "cache/rows.h"
#include "kernels/mlx_compat/mapped_file.h"
#include "load/safetensors.h"

namespace mlxlm {
namespace {

// Smaller tensors are read: a file that changes later can't harm them.
constexpr std::uint64_t kLeastMappedBytes = 1 << 20;
// A question and an answer; later the buffers grow as always.
constexpr int kRoomTokens = 1024;

class CacheTensors {
 public:
  CacheTensors(const std::string& path, const SafetensorsHeader& header)
      : tensors_(load_safetensors(path, header)),
        file_(path),
        data_start_(header.data_start) {
    for (const SafetensorsTensor& entry : header.tensors) {
      unread_.emplace(entry.name, &entry);
    }
  }

  // Keys and values mapped with room, scales and zeros copied with as much.
  void give_room(const GrowingTensors& layer) {
    const int num_tokens = common_length(layer);
    const int room =
        std::min(kRoomTokens, num_tokens / kCacheStepTokens * kCacheStepTokens);
    if (room == 0) {
      return;
    }
    std::vector<mx::array> mapped;
    for (const std::string& name : layer.rows) {
      auto array = map(name, room);
      if (!array) {
        return;
      }
      mapped.push_back(std::move(*array));
    }
    for (std::size_t i = 0; i < mapped.size(); ++i) {
      tensors_.at(layer.rows[i]) = mapped[i];
      unread_.erase(layer.rows[i]);
    }
    for (const std::string& name : layer.small) {
      mx::array& tensor = tensors_.at(name);
      mx::Shape shape = tensor.shape();
      shape[2] = room;
      tensor = mx::concatenate({tensor, mx::zeros(shape, tensor.dtype())}, 2);
      read(name);
    }
  }

  Weights rest() {
    while (!unread_.empty()) {
      const std::string name = unread_.begin()->first;
      if (auto mapped = map(name, 0)) {
        tensors_.at(name) = std::move(*mapped);
        unread_.erase(name);
      } else {
        read(name);
      }
    }
    mx::eval(std::move(to_read_));
    return std::move(tensors_);
  }

 private:
  // T of all tensors of the layer, or 0 if they are not as they should be:
  // whoever makes a cache of them will say so.
  int common_length(const GrowingTensors& layer) {
    auto offset = tensors_.find(layer.offset);
    int length = 0;
    for (const auto* names : {&layer.rows, &layer.small}) {
      for (const std::string& name : *names) {
        auto tensor = tensors_.find(name);
        if (tensor == tensors_.end() || tensor->second.ndim() != 4) {
          return 0;
        }
        const int its = tensor->second.shape(2);
        length = length == 0 ? its : length;
        if (its != length) {
          return 0;
        }
      }
    }
    const bool known = offset != tensors_.end() && offset->second.ndim() == 0 &&
                       offset->second.dtype() == mx::int32;
    return known && offset->second.item<int>() <= length ? length : 0;
  }

  std::optional<mx::array> map(const std::string& name, int room) {
    const SafetensorsTensor& entry = *unread_.at(name);
    if (entry.end - entry.begin < kLeastMappedBytes) {
      return std::nullopt;
    }
    const mx::array& tensor = tensors_.at(name);
    return file_.array(
        data_start_ + entry.begin, tensor.shape(), tensor.dtype(), room);
  }

  void read(const std::string& name) {
    to_read_.push_back(tensors_.at(name));
    unread_.erase(name);
  }

  Weights tensors_;
  kernels::MappedTensors file_;
  std::uint64_t data_start_;
  std::unordered_map<std::string, const SafetensorsTensor*> unread_;
  std::vector<mx::array> to_read_;
};

}  // namespace

Weights read_cache_tensors(const std::string& path,
                           const SafetensorsHeader& header,
                           const std::vector<GrowingTensors>& growing) {
  try {
    CacheTensors tensors(path, header);
    for (const GrowingTensors& rows : growing) {
      tensors.give_room(rows);
    }
    return tensors.rest();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(ErrorKind::file,
                "cannot read prompt cache " + path + ": " + error.what());
  }
}

}  // namespace mlxlm
