// Checkpoints of a cache that grows at its end: as long as the rows before a
// checkpoint stay, it is just their number.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "cache/attention_cache.h"

namespace mlxlm {

class GrowthMarks {
 public:
  GrowthMarks() = default;
  // The checkpoints of a cache aren't those of its copies.
  GrowthMarks(const GrowthMarks&) {}
  GrowthMarks& operator=(const GrowthMarks&) { return *this; }

  std::unique_ptr<CacheCheckpoint> mark(int offset) {
    auto mark = std::make_shared<Mark>(Mark{self_, offset, std::nullopt});
    std::erase_if(marks_, [](const auto& weak) { return weak.expired(); });
    marks_.push_back(mark);
    return std::make_unique<Checkpoint>(std::move(mark));
  }

  // To be called before rows from `offset` on are given up: checkpoints that
  // need them keep `rows` from now on.
  void before_cut(int offset, const KeysAndValues& rows) {
    for (const auto& weak : marks_) {
      auto mark = weak.lock();
      if (mark && mark->offset > offset && !mark->kept) {
        mark->kept = rows;
      }
    }
  }

  // Where the cache was, and its rows unless they are still there. Throws
  // Error{argument} for the checkpoint of another cache.
  std::pair<int, std::optional<KeysAndValues>> find(
      const CacheCheckpoint& checkpoint, std::string_view kind) const {
    auto* own = dynamic_cast<const Checkpoint*>(&checkpoint);
    if (own == nullptr || own->mark->owner.lock() != self_) {
      throw_foreign_checkpoint(kind);
    }
    return {own->mark->offset, own->mark->kept};
  }

 private:
  struct Mark {
    std::weak_ptr<int> owner;
    int offset;
    std::optional<KeysAndValues> kept;
  };
  struct Checkpoint : CacheCheckpoint {
    explicit Checkpoint(std::shared_ptr<Mark> mark) : mark(std::move(mark)) {}
    std::shared_ptr<Mark> mark;
  };

  std::shared_ptr<int> self_ = std::make_shared<int>(0);  // an identity
  std::vector<std::weak_ptr<Mark>> marks_;
};

}  // namespace mlxlm
