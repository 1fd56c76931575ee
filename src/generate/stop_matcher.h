// Stop sequences over texts or token ids, found as the items come.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

namespace mlxlm {

// Sequence: std::string or std::vector<int>. Items that may yet turn out to
// begin a stop sequence are held back.
template <typename Sequence>
class StopMatcher {
 public:
  StopMatcher() = default;
  // No sequence may be empty.
  explicit StopMatcher(std::vector<Sequence> stops)
      : stops_(std::move(stops)) {}

  // Takes the next items; returns those that are certainly before a stop.
  // Nothing comes after the first stop sequence that is completed.
  Sequence feed(const Sequence& items) {
    Sequence released;
    for (const auto& item : items) {
      if (stopped_) {
        break;
      }
      held_.push_back(item);
      std::size_t matched = completed();
      std::size_t keep = matched > 0 ? matched : possible();
      auto end = held_.end() - static_cast<std::ptrdiff_t>(keep);
      released.insert(released.end(), held_.begin(), end);
      held_.erase(held_.begin(), end);
      stopped_ = matched > 0;
    }
    return released;
  }

  // At the end: what was held back and turned out to be no stop sequence.
  Sequence flush() {
    return stopped_ ? Sequence{} : std::exchange(held_, Sequence{});
  }

  bool stopped() const { return stopped_; }

 private:
  bool ends_with_first(const Sequence& stop, std::size_t length) const {
    return length <= held_.size() &&
           std::equal(stop.begin(),
                      stop.begin() + static_cast<std::ptrdiff_t>(length),
                      held_.end() - static_cast<std::ptrdiff_t>(length));
  }

  // Length of the longest stop sequence that the held items end with.
  std::size_t completed() const {
    std::size_t longest = 0;
    for (const auto& stop : stops_) {
      if (ends_with_first(stop, stop.size())) {
        longest = std::max(longest, stop.size());
      }
    }
    return longest;
  }

  // Number of newest items that may begin a stop sequence.
  std::size_t possible() const {
    std::size_t longest = 0;
    for (const auto& stop : stops_) {
      for (std::size_t n = stop.size() - 1; n > longest; --n) {
        if (ends_with_first(stop, n)) {
          longest = n;
        }
      }
    }
    return longest;
  }

  std::vector<Sequence> stops_;
  Sequence held_;
  bool stopped_ = false;
};

}  // namespace mlxlm
