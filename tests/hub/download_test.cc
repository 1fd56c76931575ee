// Downloads that succeed, at once or after what goes wrong on the way.
#include <atomic>
#include <csignal>
#include <thread>

#include <spawn.h>
#include <sys/wait.h>

#include "core/file.h"
#include "tests/hub/fake_hub.h"

extern char** environ;

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;

constexpr std::size_t kCut = 100'000;

class Download : public FakeHub {
 protected:
  // The first download of the weights ends after kCut bytes.
  void cut_first_download(std::function<void(Connection&)> then) {
    auto first = std::make_shared<std::atomic<bool>>(true);
    cdn_answers_ = [=, this](const Request& request, Connection& connection) {
      if (!first->exchange(false)) {
        return false;
      }
      connection.send(range_headers(request, weights()) +
                      weights().substr(0, kCut));
      then(connection);
      connection.close();
      return true;
    };
  }

  std::vector<std::size_t> download_starts() const {
    std::vector<std::size_t> starts;
    for (const Request& request : downloads()) {
      starts.push_back(request.range_start());
    }
    return starts;
  }

  // A process that runs hub_fetch.
  pid_t start_process() {
    std::string cache = options_.cache_folder.string();
    std::string url = hub_.url();
    std::string tool = MLXLM_HUB_FETCH;
    std::string name = "org/name";
    char* arguments[] = {
        tool.data(), url.data(), cache.data(), name.data(), nullptr};
    pid_t process = -1;
    EXPECT_EQ(::posix_spawn(
                  &process, tool.c_str(), nullptr, nullptr, arguments, environ),
              0);
    return process;
  }

  static int exit_status(pid_t process) {
    int status = 0;
    EXPECT_EQ(::waitpid(process, &status, 0), process);
    return status;
  }
};

TEST_F(Download, BringsTheWantedFilesIntoTheSharedCache) {
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
  EXPECT_EQ(read_file(storage() / "refs/main"), kCommit);
  EXPECT_EQ(fs::read_symlink(snapshot() / kWeights),
            "../../blobs/" + files_[kWeights].hash);
  EXPECT_EQ(fs::read_symlink(snapshot() / "sub/extra.json"),
            "../../../blobs/" + files_["sub/extra.json"].hash);
}

TEST_F(Download, AsksForNothingWhenTheCacheHasAll) {
  fetch();
  auto count = hub_.requests().size();
  EXPECT_EQ(fetch(), snapshot());
  options_.offline = true;
  EXPECT_EQ(fetch(), snapshot());
  EXPECT_EQ(hub_.requests().size(), count);
}

TEST_F(Download, AsksForNothingOffline) {
  options_.offline = true;
  EXPECT_THAT(fetch_error(ErrorKind::file), HasSubstr("HF_HUB_OFFLINE"));
  EXPECT_TRUE(hub_.requests().empty());
}

TEST_F(Download, BringsOnlyWhatIsMissing) {
  fetch();
  fs::remove(snapshot() / "config.json");
  fs::remove(storage() / "blobs" / files_["config.json"].hash);
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
  EXPECT_EQ(downloads().size(), 1u);
}

TEST_F(Download, TakesARevision) {
  id_.revision = "refs/pr/1";
  EXPECT_EQ(fetch(), snapshot());
  EXPECT_EQ(hub_.requests().front().path,
            "/api/models/org/name/revision/refs%2Fpr%2F1");
  EXPECT_EQ(read_file(storage() / "refs/refs/pr/1"), kCommit);
  id_.revision = kCommit;
  EXPECT_EQ(fetch(), snapshot());
  EXPECT_FALSE(fs::exists(storage() / "refs" / kCommit));
}

TEST_F(Download, ShowsTheTokenToTheHubOnly) {
  options_.token = "hf_secret";
  fetch();
  for (const Request& request : hub_.requests()) {
    EXPECT_EQ(request.header("authorization"), "Bearer hf_secret");
    EXPECT_EQ(request.header("accept-encoding"), "identity");
  }
  ASSERT_EQ(downloads().size(), 1u);
  EXPECT_EQ(downloads()[0].header("authorization"), "");
}

TEST_F(Download, SendsNoTokenWithoutOne) {
  fetch();
  EXPECT_EQ(hub_.requests()[0].header("authorization"), "");
}

TEST_F(Download, FollowsARenamedRepository) {
  options_.token = "hf_secret";
  hub_answers_ = [](const Request& request, Connection& connection) {
    constexpr std::string_view kOld = "/old/name/";
    auto start = request.path.find(kOld);
    if (start == std::string::npos) {
      return false;
    }
    std::string target = request.path;
    target.replace(start, kOld.size(), "/org/name/");
    connection.answer("307 Temporary Redirect", "Location: " + target + "\r\n");
    return true;
  };
  id_.repository = "old/name";
  EXPECT_EQ(fetch(),
            options_.cache_folder / "models--old--name/snapshots" / kCommit);
  EXPECT_EQ(hub_.requests()[1].header("authorization"), "Bearer hf_secret");
}

TEST_F(Download, ReportsProgress) {
  std::map<std::string, std::uint64_t> done;
  fetch([&](const Progress& progress) {
    std::string name(progress.what);
    EXPECT_FALSE(name.empty());
    if (progress.total != 0) {
      EXPECT_GE(progress.done, done[name]) << name;
      EXPECT_LE(progress.done, progress.total) << name;
      done[name] = progress.done;
    }
  });
  EXPECT_EQ(done.size(), 4u);
  for (const auto& [name, bytes] : done) {
    EXPECT_EQ(bytes, files_[name].content.size()) << name;
  }
}

TEST_F(Download, ResumesACutConnection) {
  cut_first_download([](Connection&) {});
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
  EXPECT_THAT(download_starts(), ::testing::ElementsAre(0, kCut));
}

TEST_F(Download, ResumesAConnectionThatFellSilent) {
  options_.stall_timeout = std::chrono::milliseconds(500);
  cut_first_download([](Connection& connection) { connection.wait_for_end(); });
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
  EXPECT_THAT(download_starts(), Contains(kCut));
}

TEST_F(Download, ResumesWhatAnEarlierProgramLeft) {
  fs::create_directories(storage() / "blobs");
  write_file_atomically(partial_weights(), weights().substr(0, kCut));
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
  EXPECT_THAT(download_starts(), ::testing::ElementsAre(kCut));
}

TEST_F(Download, StartsAgainWhenTheLeftoverIsWrong) {
  fs::create_directories(storage() / "blobs");
  for (const std::string& left : {std::string(kCut, 'x'),
                                  weights() + "more",
                                  std::string(weights().size(), 'x')}) {
    write_file_atomically(partial_weights(), left);
    EXPECT_EQ(fetch(), snapshot());
    expect_complete();
    fs::remove_all(storage() / "snapshots");
    fs::remove(weights_blob());
  }
}

TEST_F(Download, StartsAgainWhenTheServerKnowsNoRanges) {
  fs::create_directories(storage() / "blobs");
  write_file_atomically(partial_weights(), weights().substr(0, kCut));
  cdn_answers_ = [this](const Request&, Connection& connection) {
    return connection.answer("200 OK", "", weights());
  };
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
}

TEST_F(Download, GoesOnAfterFaultsOfTheServer) {
  hub_answers_ = failing(2, "/api/", "503 Service Unavailable");
  cdn_answers_ = failing(2, kWeights, "500 Internal Server Error");
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
}

TEST_F(Download, WaitsAsLongAsARateLimitAsks) {
  hub_answers_ =
      failing(2, "/resolve/", "429 Too Many Requests", "Retry-After: 0\r\n");
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
}

TEST_F(Download, AsksAnewWhenTheSignatureHasExpired) {
  cdn_answers_ = failing(1, kWeights, "403 Forbidden");
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
}

TEST_F(Download, TriesAgainOnceAfterAWrongHash) {
  auto first = std::make_shared<std::atomic<bool>>(true);
  cdn_answers_ = [=, this](const Request&, Connection& connection) {
    return first->exchange(false) &&
           connection.answer("200 OK", "", std::string(weights().size(), 'x'));
  };
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
  EXPECT_EQ(downloads().size(), 2u);
}

TEST_F(Download, ThreadsShareTheWork) {
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { good += fetch() == snapshot(); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(good, 4);
  expect_complete();
  EXPECT_EQ(downloads().size(), 1u);
}

TEST_F(Download, ProcessesShareTheWork) {
  pid_t first = start_process();
  pid_t second = start_process();
  EXPECT_EQ(exit_status(first), 0);
  EXPECT_EQ(exit_status(second), 0);
  expect_complete();
  EXPECT_EQ(downloads().size(), 1u);
}

TEST_F(Download, IsResumedAfterItsProcessWasKilled) {
  std::atomic<bool> half_sent = false;
  cut_first_download([&](Connection& connection) {
    half_sent = true;
    half_sent.notify_all();
    connection.wait_for_end();
  });
  pid_t process = start_process();
  half_sent.wait(false);
  // Until the process has written what it got.
  while (!fs::exists(partial_weights()) ||
         fs::file_size(partial_weights()) < kCut) {
    std::this_thread::yield();
  }
  ::kill(process, SIGKILL);
  EXPECT_TRUE(WIFSIGNALED(exit_status(process)));
  EXPECT_FALSE(find_snapshot(id_, options_));

  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
  EXPECT_THAT(download_starts(), ::testing::ElementsAre(0, kCut));
}

struct Stop : std::exception {};

TEST_F(Download, PassesOnWhatTheHandlerThrowsAndKeepsWhatCame) {
  cut_first_download([](Connection& connection) { connection.wait_for_end(); });
  auto stop_at_cut = [](const Progress& progress) {
    if (progress.what == kWeights && progress.done >= kCut) {
      throw Stop();
    }
  };
  EXPECT_THROW(fetch(stop_at_cut), Stop);
  EXPECT_EQ(fs::file_size(partial_weights()), kCut);
  EXPECT_EQ(fetch(), snapshot());
  expect_complete();
}

TEST_F(Download, CanBeStoppedWhileNothingArrives) {
  hub_answers_ = [](const Request&, Connection& connection) {
    connection.wait_for_end();
    return true;
  };
  int calls = 0;
  EXPECT_THROW(fetch([&](const Progress&) {
                 if (++calls == 2) {
                   throw Stop();
                 }
               }),
               Stop);
}

}  // namespace
}  // namespace mlxlm
