// Memory on each rank's GPU that the kernels of all ranks write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/step.h"

namespace mlxlm::kernels::cuda {

class PeerMemory {
 public:
  // So many bytes, all 0, at each rank. All ranks call it, those that can't use
  // it with 0. Null at all of them unless each has a GPU of its own, on one
  // host, that the others' GPUs reach.
  static std::unique_ptr<PeerMemory> make(const StepRanks& ranks,
                                          std::size_t bytes);
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  // Where each rank's lies, for kernels of this one.
  const std::vector<std::uint64_t>& addresses() const { return addresses_; }

 private:
  explicit PeerMemory(int rank) : rank_(rank) {}
  bool take(std::size_t bytes);
  bool open(const std::vector<std::string>& greetings);
  std::string greeting() const;

  int rank_;
  std::vector<std::uint64_t> addresses_;
};

}  // namespace mlxlm::kernels::cuda
