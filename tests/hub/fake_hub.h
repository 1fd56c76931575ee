// A hub with one small model, org/name, as huggingface.co would serve it: the
// weights lie in a storage of another origin. Each test replaces the answers
// it is about.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "load/hub.h"
#include "tests/hub/server.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {

inline constexpr const char* kCommit =
    "0123456789abcdef0123456789abcdef01234567";

struct HubFile {
  std::string content;
  std::string hash;  // SHA-256 of large files, git's SHA-1 of others
  bool large = false;
};

// Answers a request in place of the hub if it returns true.
using Interceptor = std::function<bool(const Request&, Connection&)>;

class FakeHub : public ::testing::Test {
 protected:
  FakeHub();

  const std::string& weights() const { return files_.at(kWeights).content; }
  static constexpr const char* kWeights = "model.safetensors";

  std::filesystem::path storage() const {
    return options_.cache_folder / "models--org--name";
  }
  std::filesystem::path snapshot() const {
    return storage() / "snapshots" / kCommit;
  }
  std::filesystem::path weights_blob() const {
    return storage() / "blobs" / files_.at(kWeights).hash;
  }
  std::filesystem::path partial_weights() const {
    return weights_blob().string() + ".incomplete";
  }

  std::filesystem::path fetch(const ProgressHandler& progress = {}) {
    return fetch_snapshot(id_, options_, progress);
  }
  // The message of the error that fetch() ends with.
  std::string fetch_error(ErrorKind kind = ErrorKind::network);
  // Fails unless the snapshot is there and right.
  void expect_complete();

  // Requests of the storage for content.
  std::vector<Request> downloads() const { return cdn_.requests(); }

  // Set before the first request.
  std::map<std::string, HubFile> files_;
  Interceptor hub_answers_ = [](auto&&...) { return false; };
  Interceptor cdn_answers_ = [](auto&&...) { return false; };
  HubId id_{"org/name", "main"};

  TemporaryFolder folder_;
  HubOptions options_;
  Server cdn_;
  Server hub_;

 private:
  void serve_hub(const Request& request, Connection& connection);
  void serve_cdn(const Request& request, Connection& connection);
  void list_files(Connection& connection);
};

// Answers with `status` the first `times` requests whose path contains `part`.
Interceptor failing(int times,
                    std::string part,
                    std::string status,
                    std::string headers = "");

// The headers of the part of `content` that was asked for.
std::string range_headers(const Request& request, const std::string& content);

}  // namespace mlxlm
