// The processes ("ranks") that run one model together, each with its part of
// the weights and of the caches, and what they do together.
#pragma once

#include <memory>
#include <string>
#include <vector>

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

  // All ranks' texts, in their order, which are of one length; like sums, all
  // ranks begin it.
  std::vector<std::string> gather(const std::string& text) const;

  // Rank 0's text, at every rank.
  std::string share(const std::string& text) const;
  // The same of a number that rank 0 draws.
  std::uint64_t shared_random_number() const;

  // All work is done: the others may end, and this process need not tell why
  // it does.
  void finish();
  // Ends the process after a failed operation of MLX. That may be due to a lost
  // rank, which the channel has the time to find out and tell.
  [[noreturn]] void give_up(const std::string& fault) const;

 private:
  Ranks();

  int rank_ = 0;
  int size_ = 1;
  struct Group;
  std::shared_ptr<Group> group_;  // null: one process alone
  std::unique_ptr<SideChannel> channel_;
};

}  // namespace mlxlm
