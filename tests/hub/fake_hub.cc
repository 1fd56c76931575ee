#include "tests/hub/fake_hub.h"

#include <atomic>
#include <memory>

#include <nlohmann/json.hpp>

#include "core/file.h"

namespace mlxlm {
namespace fs = std::filesystem;
namespace {

std::string some_weights() {
  std::string content(300'000, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) {
    content[i] = static_cast<char>(i * 7 + (i >> 8));
  }
  return content;
}

// "path" of ".../resolve/COMMIT/path".
std::string resolved_file(const std::string& path) {
  std::string start = "/org/name/resolve/" + std::string(kCommit) + "/";
  return path.starts_with(start) ? path.substr(start.size()) : "";
}

}  // namespace

FakeHub::FakeHub()
    : files_{
          {"config.json",
           {R"({"model_type": "llama"})",
            "230d5f4da0da586aad26ead694ea67cd15bd6df1"}},
          {"tokenizer.json",
           {R"({"version": "1.0"})",
            "fdef94443aef6c464d438c4654540cb4245f8f1e"}},
          {"sub/extra.json",
           {R"({"sub": 1})", "25f77d5d0edf400735995ecc8f8154e9abc1e18a"}},
          {"README.md", {"# A model", "0000000000000000000000000000000000000000"}},
          {kWeights,
           {some_weights(),
            "d08928a168952dcd1f23061570816ee3b9d5c5c01ec65e00adbda68d328f4dbb",
            true}},
      },
      cdn_([this](auto& request, auto& connection) {
        serve_cdn(request, connection);
      }),
      hub_([this](auto& request, auto& connection) {
        serve_hub(request, connection);
      }) {
  options_.endpoint = hub_.url();
  options_.cache_folder = folder_ / "hub";
  options_.first_backoff = std::chrono::milliseconds(1);
  options_.longest_backoff = std::chrono::milliseconds(2);
  options_.max_attempts = 4;
}

void FakeHub::serve_hub(const Request& request, Connection& connection) {
  if (hub_answers_(request, connection)) {
    return;
  }
  if (request.path.starts_with("/api/models/org/name/revision/")) {
    list_files(connection);
    return;
  }
  auto found = files_.find(resolved_file(request.path));
  if (found == files_.end()) {
    connection.answer("404 Not Found", "X-Error-Code: EntryNotFound\r\n");
    return;
  }
  const auto& [name, file] = *found;
  std::string headers = "X-Repo-Commit: " + std::string(kCommit) + "\r\n";
  if (file.large) {
    connection.answer(
        "302 Found",
        headers + "X-Linked-Etag: \"" + file.hash +
            "\"\r\nX-Linked-Size: " + std::to_string(file.content.size()) +
            "\r\nLocation: " + cdn_.url() + "/" + name + "?signature=1\r\n");
    return;
  }
  headers += "ETag: \"" + file.hash + "\"\r\n";
  if (request.method == "HEAD") {
    connection.send("HTTP/1.1 200 OK\r\n" + headers + "Content-Length: " +
                    std::to_string(file.content.size()) + "\r\n\r\n");
  } else {
    connection.answer("200 OK", headers, file.content);
  }
}

void FakeHub::serve_cdn(const Request& request, Connection& connection) {
  if (cdn_answers_(request, connection)) {
    return;
  }
  std::string name = request.path.substr(1, request.path.find('?') - 1);
  auto found = files_.find(name);
  if (found == files_.end()) {
    connection.answer("404 Not Found");
    return;
  }
  const std::string& content = found->second.content;
  connection.send(range_headers(request, content) +
                  content.substr(request.range_start()));
}

void FakeHub::list_files(Connection& connection) {
  nlohmann::json siblings = nlohmann::json::array();
  for (const auto& [name, file] : files_) {
    siblings.push_back({{"rfilename", name}});
  }
  nlohmann::json list = {
      {"id", "org/name"}, {"sha", kCommit}, {"siblings", siblings}};
  connection.answer(
      "200 OK", "Content-Type: application/json\r\n", list.dump());
}

std::string FakeHub::fetch_error(ErrorKind kind) {
  try {
    fetch();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

void FakeHub::expect_complete() {
  for (const auto& [name, file] : files_) {
    if (name == "README.md") {
      EXPECT_FALSE(fs::exists(snapshot() / name));
    } else {
      ASSERT_TRUE(fs::exists(snapshot() / name)) << name;
      EXPECT_EQ(read_file(snapshot() / name), file.content) << name;
    }
  }
  EXPECT_FALSE(fs::exists(partial_weights()));
  EXPECT_EQ(find_snapshot(id_, options_), snapshot());
}

Interceptor failing(int times,
                    std::string part,
                    std::string status,
                    std::string headers) {
  auto left = std::make_shared<std::atomic<int>>(times);
  return [=](const Request& request, Connection& connection) {
    if (request.path.find(part) == std::string::npos ||
        left->fetch_sub(1) <= 0) {
      return false;
    }
    connection.answer(status, headers);
    return true;
  };
}

std::string range_headers(const Request& request, const std::string& content) {
  std::size_t start = request.range_start();
  std::string length =
      "Content-Length: " + std::to_string(content.size() - start) + "\r\n\r\n";
  if (request.header("range").empty()) {
    return "HTTP/1.1 200 OK\r\n" + length;
  }
  return "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes " +
         std::to_string(start) + "-" + std::to_string(content.size() - 1) +
         "/" + std::to_string(content.size()) + "\r\n" + length;
}

}  // namespace mlxlm
