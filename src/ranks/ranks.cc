#include "ranks/ranks.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <random>
#include <thread>

#include <mlx/distributed/distributed.h>
#include <mlx/distributed/ops.h>
#include <mlx/mlx.h>

#include <mlxlm/error.h>

#include "ranks/rank_environment.h"
#include "ranks/side_channel.h"

namespace mlxlm {

struct Ranks::Group {
  mx::distributed::Group group;
};

namespace {

constexpr auto kMostWaiting = std::chrono::seconds(60);
constexpr auto kMostUntilLossIsKnown = std::chrono::seconds(2);

// Ends the process unless it is destroyed in time.
class StartLimit {
 public:
  explicit StartLimit(const RankEnvironment& ranks)
      : thread_([this, ranks] { wait(ranks); }) {}
  ~StartLimit() {
    {
      std::lock_guard lock(mutex_);
      started_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  void wait(const RankEnvironment& ranks) {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, kMostWaiting, [&] { return started_; })) return;
    end_rank("rank " + std::to_string(ranks.rank) + " of " +
             std::to_string(ranks.size) + " has waited for the others for " +
             std::to_string(kMostWaiting.count()) +
             " seconds; start one process for each of them");
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool started_ = false;
  std::thread thread_;
};

std::uint64_t random_number() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

mx::distributed::Group meet(const RankEnvironment& ranks) {
  if (!mx::distributed::is_available(ranks.backend)) {
    throw Error(ErrorKind::unsupported,
                "this build of MLX has no " + ranks.backend +
                    " to connect ranks; start them with --backend " +
                    (ranks.backend == "nccl" ? "ring" : "nccl"));
  }
  try {
    return mx::distributed::init(/*strict=*/true, ranks.backend);
  } catch (const std::exception& fault) {
    throw Error(ErrorKind::network,
                "rank " + std::to_string(ranks.rank) + " of " +
                    std::to_string(ranks.size) +
                    " can't reach the others: " + fault.what());
  }
}

// Rank 0's port and secret reach the others through MLX's own connections.
std::unique_ptr<SideChannel> open_channel(const RankEnvironment& ranks,
                                          const mx::distributed::Group& group) {
  std::unique_ptr<SideChannel> own;
  const auto secret = random_number();
  std::vector<std::uint32_t> told(3, 0);
  if (ranks.rank == 0) {
    own = std::make_unique<SideChannel>(ranks.host);
    told = {static_cast<std::uint32_t>(own->port()),
            static_cast<std::uint32_t>(secret >> 32),
            static_cast<std::uint32_t>(secret)};
  }
  auto sum = mx::distributed::all_sum(
      mx::array(told.data(), {static_cast<int>(told.size())}, mx::uint32),
      group);
  sum.eval();
  const auto* number = sum.data<std::uint32_t>();
  if (ranks.rank == 0) {
    own->accept_all(ranks.size, secret);
  } else {
    own = std::make_unique<SideChannel>(
        ranks.host,
        static_cast<int>(number[0]),
        ranks.rank,
        ranks.size,
        (std::uint64_t{number[1]} << 32) | number[2]);
  }
  own->watch();
  return own;
}

}  // namespace

Ranks::Ranks() {
  const auto environment = read_rank_environment(process_environment);
  if (environment.size == 1) return;
  rank_ = environment.rank;
  size_ = environment.size;
  StartLimit limit(environment);
  group_ = std::make_shared<Group>(Group{meet(environment)});
  channel_ = open_channel(environment, group_->group);
}

Ranks& Ranks::all() {
  // Never destroyed: what MLX still computes at the end of the program uses it.
  static auto* ranks = new Ranks;
  return *ranks;
}

mx::array Ranks::sum(const mx::array& x) const {
  return several() ? mx::distributed::all_sum(x, group_->group) : x;
}

mx::array Ranks::side_by_side(const mx::array& x) const {
  if (!several()) return x;
  auto all = mx::distributed::all_gather(mx::expand_dims(x, 0), group_->group);
  if (x.size() == static_cast<std::size_t>(x.shape(-1))) {
    auto shape = x.shape();
    shape.back() *= size_;
    return mx::reshape(all, shape);
  }
  return mx::flatten(mx::moveaxis(all, 0, -2), -2, -1);
}

std::vector<std::string> Ranks::gather(const std::string& text) const {
  if (!several()) return {text};
  auto all =
      side_by_side(mx::array(reinterpret_cast<const std::uint8_t*>(text.data()),
                             {static_cast<int>(text.size())},
                             mx::uint8));
  all.eval();
  const auto* bytes = all.data<char>();
  std::vector<std::string> texts;
  for (int i = 0; i < size_; ++i) {
    texts.emplace_back(bytes + i * text.size(), text.size());
  }
  return texts;
}

std::string Ranks::share(const std::string& text) const {
  return several() ? channel_->share(text) : text;
}

std::uint64_t Ranks::shared_random_number() const {
  return std::stoull(share(std::to_string(random_number())));
}

void Ranks::finish() {
  if (several()) channel_->finish();
}

void Ranks::give_up(const std::string& fault) const {
  std::this_thread::sleep_for(kMostUntilLossIsKnown);
  end_rank("rank " + std::to_string(rank_) + " of " + std::to_string(size_) +
           " gives up: " + fault +
           " (a GPU that waits for another rank for a minute fails, too)");
}

}  // namespace mlxlm
