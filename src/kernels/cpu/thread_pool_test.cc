#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/cpu/topology.h"

namespace mlxlm::kernels::cpu {
namespace {

namespace fs = std::filesystem;

// A folder like /sys/devices/system.
class Topology : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) /
            testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& file, const std::string& text) {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text << "\n";
  }

  // A processor and what shares its core and its caches of levels 1 and 3.
  void add(int id, const std::string& siblings, const std::string& cache) {
    const std::string folder = "cpu/cpu" + std::to_string(id) + "/";
    write(folder + "topology/thread_siblings_list", siblings);
    write(folder + "cache/index0/level", "1");
    write(folder + "cache/index0/shared_cpu_list", siblings);
    write(folder + "cache/index3/level", "3");
    write(folder + "cache/index3/shared_cpu_list", cache);
  }

  // Two nodes, of which the first has two caches; two threads a core.
  void two_nodes() {
    write("node/node0/cpulist", "0-3,8-11");
    write("node/node1/cpulist", "4-7,12-15");
    write("node/online", "0-1");
    for (int i = 0; i < 8; ++i) {
      const std::string siblings =
          std::to_string(i) + "," + std::to_string(i + 8);
      const std::string cache = i < 2   ? "0-1,8-9"
                                : i < 4 ? "2-3,10-11"
                                        : "4-7,12-15";
      add(i, siblings, cache);
      add(i + 8, siblings, cache);
    }
  }

  static std::vector<int> first(int count) {
    std::vector<int> ids(count);
    for (int i = 0; i < count; ++i) ids[i] = i;
    return ids;
  }

  fs::path root_;
};

TEST_F(Topology, NodesCachesAndCores) {
  two_nodes();
  const auto all = read_topology(first(16), root_);
  ASSERT_EQ(all.size(), 16u);
  std::vector<int> ids;
  std::vector<int> clusters;
  for (const Processor& each : all) {
    EXPECT_EQ(each.core, each.id % 8);
    ids.push_back(each.id);
    clusters.push_back(each.cluster);
  }
  EXPECT_EQ(
      ids, (std::vector{0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15}));
  EXPECT_EQ(clusters,
            (std::vector{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2}));
}

TEST_F(Topology, OnlyProcessorsTheProcessMayUse) {
  two_nodes();
  const auto all = read_topology({3, 5, 13}, root_);
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].cluster, 0);
  EXPECT_EQ(all[1].cluster, 1);
  EXPECT_EQ(all[2].core, 5);
  EXPECT_EQ(place_threads(all, 0).size(), 2u);
}

TEST_F(Topology, WithoutFilesAllAreOneCluster) {
  for (bool nonsense : {false, true}) {
    if (nonsense) {
      write("node/node0/cpulist", "x");
      write("node/node1x/cpulist", "0-3");
      add(0, "-", "4-");
      add(1, "", "9999999999999");
    }
    const auto all = read_topology(first(4), root_);
    ASSERT_EQ(all.size(), 4u);
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(all[i].core, i);
      EXPECT_EQ(all[i].cluster, 0);
    }
    const auto places = place_threads(all, 0);
    ASSERT_EQ(places.size(), 4u);
    EXPECT_TRUE(places[3].processors.empty());
  }
}

TEST_F(Topology, ThreadsAreSpreadOverCoresAndKeptOnClusters) {
  two_nodes();
  const auto all = read_topology(first(16), root_);
  auto clusters = [&](int wanted) {
    std::vector<int> result;
    for (const auto& each : place_threads(all, wanted)) {
      result.push_back(each.cluster);
    }
    return result;
  };
  EXPECT_EQ(clusters(0), (std::vector{0, 0, 1, 1, 2, 2, 2, 2}));
  EXPECT_EQ(clusters(4), (std::vector{0, 1, 2, 2}));
  EXPECT_EQ(clusters(2), (std::vector{0, 1}));  // of the first and second node
  EXPECT_EQ(clusters(1), (std::vector{0}));
  EXPECT_EQ(clusters(16).size(), 16u);
  const auto two = place_threads(all, 2);
  EXPECT_EQ(two[1].processors, (std::vector{4, 5, 6, 7, 12, 13, 14, 15}));
}

TEST(ProcessorList, NumbersAndRanges) {
  EXPECT_EQ(parse_processor_list("0-2,5"), (std::vector{0, 1, 2, 5}));
  EXPECT_EQ(parse_processor_list("7"), (std::vector{7}));
  EXPECT_TRUE(parse_processor_list("").empty());
  EXPECT_EQ(parse_processor_list("1,x"), (std::vector{1}));
  EXPECT_TRUE(parse_processor_list("3-1").empty());
  EXPECT_TRUE(parse_processor_list("0-99999999").empty());
}

TEST(ThreadPool, EveryTaskRunsOnce) {
  for (int clusters : {1, 2, 3}) {
    std::vector<ThreadPlace> places(4);
    for (int i = 0; i < 4; ++i) places[i].cluster = i * clusters / 4;
    ThreadPool pool(places);
    EXPECT_EQ(pool.num_clusters(), clusters);
    for (int round = 0; round < 200; ++round) {
      const int num_tasks = round % 23;
      std::vector<std::atomic<int>> runs(num_tasks);
      pool.run(num_tasks, [&](int i) { ++runs[i]; });
      for (const auto& each : runs) ASSERT_EQ(each, 1);
    }
  }
}

// A thread's tasks are its own as long as it has time.
TEST(ThreadPool, AThreadHasTheSameTasksInEveryCall) {
  ThreadPool pool({{0, {}}, {1, {}}});
  std::set<std::thread::id> of_first;
  std::set<std::thread::id> of_second;
  for (int round = 0; round < 50; ++round) {
    // Each waits for the other, so that nobody takes over its tasks.
    std::atomic<int> started = 0;
    pool.run(2, [&](int i) {
      ++started;
      while (started < 2) std::this_thread::yield();
      (i == 0 ? of_first : of_second).insert(std::this_thread::get_id());
    });
  }
  EXPECT_EQ(of_first, std::set{std::this_thread::get_id()});
  EXPECT_EQ(of_second.size(), 1u);
  EXPECT_FALSE(of_second.contains(std::this_thread::get_id()));
}

// Nobody waits for a thread that has other things to do.
TEST(ThreadPool, IdleThreadsTakeOthersTasks) {
  for (int cluster : {0, 1}) {
    ThreadPool pool({{0, {}}, {cluster, {}}});
    std::atomic<bool> began = false;
    std::atomic<int> done = 0;
    std::set<std::thread::id> late;
    pool.run(8, [&](int i) {
      if (i == 0) began = true;
      while (!began) std::this_thread::yield();
      // The caller is held up until all else is done.
      while (i == 0 && done < 7) std::this_thread::yield();
      if (i > 0 && i < 4) late.insert(std::this_thread::get_id());
      ++done;
    });
    EXPECT_EQ(done, 8);
    EXPECT_EQ(late.size(), 1u);
    EXPECT_FALSE(late.contains(std::this_thread::get_id()));
  }
}

// More threads than tasks, and tasks than threads: the caller always has some.
TEST(ThreadPool, SharesCoverAllTasks) {
  for (int threads = 1; threads < 20; ++threads) {
    for (int tasks = 1; tasks < 50; ++tasks) {
      EXPECT_EQ(share_begin(0, threads, tasks), 0);
      EXPECT_GE(share_begin(1, threads, tasks), 1);
      EXPECT_EQ(share_begin(threads, threads, tasks), tasks);
      for (int i = 0; i < threads; ++i) {
        EXPECT_LE(share_begin(i, threads, tasks),
                  share_begin(i + 1, threads, tasks));
      }
    }
  }
}

}  // namespace
}  // namespace mlxlm::kernels::cpu
