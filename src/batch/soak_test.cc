// Hours of churn in a few seconds, or as long as MLXLM_SOAK_SECONDS says: many
// threads submit, drop and cancel. No answer may be lost, doubled or wrong, and
// memory may not grow.
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <thread>

#include <gtest/gtest.h>
#include <mlx/mlx.h>
#include <unistd.h>

#include <mlxlm/batch.h>

#include "batch/request_kinds.h"

namespace mlxlm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_of_soak() {
  const char* wanted = std::getenv("MLXLM_SOAK_SECONDS");
  return wanted != nullptr ? std::atof(wanted) : 2;
}

double resident_mb() {
  std::ifstream file("/proc/self/statm");
  double all = 0, resident = 0;
  file >> all >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

// Least squares, of points (x, y).
double slope_of(const std::vector<std::pair<double, double>>& points) {
  double mean_x = 0, mean_y = 0, xy = 0, xx = 0;
  for (auto [x, y] : points) {
    mean_x += x / static_cast<double>(points.size());
    mean_y += y / static_cast<double>(points.size());
  }
  for (auto [x, y] : points) {
    xy += (x - mean_x) * (y - mean_y);
    xx += (x - mean_x) * (x - mean_x);
  }
  return xx > 0 ? xy / xx : 0;
}

class Soak : public ::testing::Test {
 protected:
  static constexpr int kThreads = 8;

  // One client: a request after the other.
  void submit_until(Clock::time_point end, int thread) {
    std::mt19937 random(static_cast<unsigned>(thread));
    auto number = [&](int most) { return static_cast<int>(random() % most); };
    while (Clock::now() < end) {
      const RequestKind& kind = kinds_[number(RequestKinds::kCount)];
      OpenRequest open = [&] {
        std::lock_guard lock(mutex_);  // the shared cache is one thread's
        return kinds_.open(kind, store_);
      }();
      // Dropped at once, or after so many parts.
      const int leaves_after = number(4) == 0 ? number(6) : 1000;
      const bool cancels = number(2) == 0;
      auto answer = engine_->submit(open.request);
      std::vector<int> tokens;
      std::string reason;
      while (auto part = answer.next()) {
        if (!reason.empty()) ++num_doubled_;
        if (part->token >= 0) tokens.push_back(part->token);
        reason = part->finish_reason;
        if (static_cast<int>(tokens.size()) == leaves_after) {
          if (!cancels && !open.cache) break;
          answer.cancel();
        }
      }
      ++num_answers_;
      const bool left = static_cast<int>(tokens.size()) >= leaves_after;
      if (reason.empty() && !left) ++num_lost_;
      auto expected = kind.alone;
      if (left) expected.resize(std::min(expected.size(), tokens.size()));
      if (tokens != expected) ++num_wrong_;
    }
  }

  RequestKinds kinds_{{.context_tokens = 8192}};
  std::shared_ptr<PrefixStore> store_ = std::make_shared<PrefixStore>(
      PrefixStoreOptions{.max_bytes = std::size_t{1} << 20});
  std::optional<Engine> engine_;
  std::mutex mutex_;
  std::atomic<std::uint64_t> num_answers_ = 0;
  std::atomic<int> num_lost_ = 0;
  std::atomic<int> num_doubled_ = 0;
  std::atomic<int> num_wrong_ = 0;
};

TEST_F(Soak, ChurnLosesNothingAndGrowsNothing) {
  engine_.emplace(kinds_.model(),
                  nullptr,
                  EngineOptions{.batch = {.max_rows = 16}, .max_queued = 4});
  const double seconds = seconds_of_soak();
  const auto start = Clock::now();
  const auto end = start + std::chrono::milliseconds(int(seconds * 1000));
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([this, end, i] { submit_until(end, i); });
  }
  std::vector<std::pair<double, double>> points;  // minutes, MB; once warm
  double next_seconds = 0;
  while (Clock::now() < end) {
    const double now =
        std::chrono::duration<double>(Clock::now() - start).count();
    if (now >= next_seconds) {
      next_seconds += seconds / 20;
      const double mb = resident_mb();
      if (now >= seconds / 5) points.emplace_back(now / 60, mb);
      std::cout << now << " s: " << mb << " MB resident, " << num_answers_
                << " answers" << std::endl;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (auto& thread : threads) thread.join();
  while (engine_->num_rows() > 0) std::this_thread::yield();
  engine_.reset();
  const double slope = slope_of(points) * 10;
  std::cout << num_answers_ << " answers";
  if (seconds >= 60) std::cout << "; " << slope << " MB per 10 minutes";
  std::cout << std::endl;
  EXPECT_GT(num_answers_, 0u);
  EXPECT_EQ(num_lost_, 0);
  EXPECT_EQ(num_doubled_, 0);
  EXPECT_EQ(num_wrong_, 0);
  if (seconds >= 600) {
    EXPECT_LT(slope, 1.0);
  }
}

}  // namespace
}  // namespace mlxlm
