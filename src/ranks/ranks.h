// The processes ("ranks") that run one model together, each with its part of
// the weights and of the caches, and what they do together.
#pragma once

#include <memory>
#include <string>

#include <mlx/array.h>

namespace mlxlm {

namespace mx = mlx::core;

class SideChannel;

class Ranks {
 public:
  // Those that the environment names (rank_environment.h). The first call meets
  // the others, which takes until all have started; a minute without one of
  // them ends the process, as does later the loss of one (end_rank()).
  // Throws Error{argument, unsupported}.
  static Ranks& all();

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool several() const { return size_ > 1; }

  // The sum of all ranks' x.
  mx::array sum(const mx::array& x) const;
  // All ranks' x [..., N] side by side, [..., size * N].
  mx::array side_by_side(const mx::array& x) const;

  // Rank 0's text, at every rank.
  std::string share(const std::string& text) const;
  // The same of a number that rank 0 draws.
  std::uint64_t shared_random_number() const;

  // All work is done: the others may end, and this process need not tell why
  // it does.
  void finish();
  // A failed operation of MLX may be due to a lost rank: gives the channel the
  // time to find out, which ends the process.
  void wait_for_loss() const;

 private:
  Ranks();

  int rank_ = 0;
  int size_ = 1;
  struct Group;
  std::shared_ptr<Group> group_;  // null: one process alone
  std::unique_ptr<SideChannel> channel_;
};

}  // namespace mlxlm
