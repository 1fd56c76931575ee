// Downloads that fail: each names what is wrong and what to do.
#include "core/file.h"
#include "tests/hub/fake_hub.h"

namespace mlxlm {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Refusal : public FakeHub {
 protected:
  // The whole hub answers so.
  void answer_all(const std::string& status,
                  const std::string& headers = "",
                  const std::string& body = "") {
    hub_answers_ = [=](const Request&, Connection& connection) {
      connection.answer(status, headers, body);
      return true;
    };
  }
  void answer_weights(std::function<void(const Request&, Connection&)> answer) {
    cdn_answers_ = [=](const Request& request, Connection& connection) {
      answer(request, connection);
      connection.close();
      return true;
    };
  }
};

TEST_F(Refusal, Unauthorized) {
  answer_all("401 Unauthorized");
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("no public model org/name (401)"),
                    HasSubstr("set HF_TOKEN to a token from"),
                    HasSubstr("/settings/tokens")));
  EXPECT_EQ(hub_.requests().size(), 1u);
}

TEST_F(Refusal, BadToken) {
  options_.token = "hf_secret";
  answer_all(
      "401 Unauthorized",
      "X-Error-Message: Invalid credentials in Authorization header\r\n");
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("rejects the token of HF_TOKEN"),
                    HasSubstr("Invalid credentials"),
                    Not(HasSubstr("hf_secret"))));
}

TEST_F(Refusal, TokenWithALineBreak) {
  options_.token = "hf_secret\r\nX-Evil: 1";
  EXPECT_THAT(fetch_error(ErrorKind::argument),
              AllOf(HasSubstr("HF_TOKEN"), Not(HasSubstr("hf_secret"))));
  EXPECT_TRUE(hub_.requests().empty());
}

TEST_F(Refusal, GatedModel) {
  hub_answers_ =
      failing(100, "/resolve/", "403 Forbidden", "X-Error-Code: GatedRepo\r\n");
  EXPECT_THAT(
      fetch_error(),
      AllOf(HasSubstr("org/name is a gated model"),
            HasSubstr("ask for access at " + hub_.url() + "/org/name")));
}

TEST_F(Refusal, Forbidden) {
  answer_all("403 Forbidden", "X-Error-Message: not yours\r\n");
  EXPECT_THAT(fetch_error(),
              HasSubstr("denies access to org/name (403: not yours)"));
}

TEST_F(Refusal, NoSuchRepositoryNamesACachedOne) {
  fetch();
  id_.repository = "org/nane";
  answer_all("404 Not Found", "X-Error-Code: RepoNotFound\r\n");
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("the hub has no model org/nane (404)"),
                    HasSubstr("did you mean org/name")));
}

TEST_F(Refusal, NoSuchRevision) {
  id_.revision = "v9";
  answer_all("404 Not Found", "X-Error-Code: RevisionNotFound\r\n");
  EXPECT_THAT(fetch_error(), HasSubstr("org/name has no revision 'v9'"));
}

TEST_F(Refusal, NoSuchFile) {
  hub_answers_ = failing(
      100, "/config.json", "404 Not Found", "X-Error-Code: EntryNotFound\r\n");
  EXPECT_THAT(fetch_error(),
              HasSubstr("lists config.json of org/name, but doesn't have it"));
}

TEST_F(Refusal, EndlessRateLimit) {
  answer_all("429 Too Many Requests", "Retry-After: 0\r\n");
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("limits the number of requests (429)"),
                    HasSubstr("(4 tries)"),
                    HasSubstr("with HF_TOKEN set")));
  EXPECT_EQ(hub_.requests().size(), 4u);
}

TEST_F(Refusal, RateLimitThatAsksForTooLongAWait) {
  options_.token = "hf_secret";
  answer_all("429 Too Many Requests", "Retry-After: 3600\r\n");
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("it asks to wait 3600 s"),
                    Not(HasSubstr("with HF_TOKEN set"))));
  EXPECT_EQ(hub_.requests().size(), 1u);
}

TEST_F(Refusal, EndlessFaultOfTheServer) {
  answer_all("500 Internal Server Error", "X-Error-Message: oops\r\n");
  EXPECT_THAT(
      fetch_error(),
      HasSubstr("the hub has a fault of its own (500: oops) (4 tries)"));
}

TEST_F(Refusal, AnotherStatus) {
  answer_all("418 I'm a teapot");
  EXPECT_THAT(fetch_error(), HasSubstr("status 418 when asked for the list"));
}

TEST_F(Refusal, NobodyListens) {
  {
    Server gone([](auto&&...) {});
    options_.endpoint = gone.url();
  }
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("cannot reach 127.0.0.1"),
                    HasSubstr("connection refused (2 tries)")));
}

TEST_F(Refusal, BadEndpoint) {
  for (const char* endpoint : {"", "hub.example", "ftp://hub.example"}) {
    options_.endpoint = endpoint;
    EXPECT_THAT(fetch_error(ErrorKind::argument),
                HasSubstr("must begin with http:// or https://"));
  }
}

TEST_F(Refusal, SilentServer) {
  options_.stall_timeout = std::chrono::milliseconds(50);
  options_.max_attempts = 2;
  hub_answers_ = [](const Request&, Connection& connection) {
    connection.wait_for_end();
    return true;
  };
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("is too slow: nothing came for 0.05 s"),
                    HasSubstr("HF_HUB_DOWNLOAD_TIMEOUT"),
                    HasSubstr("(2 tries)")));
}

TEST_F(Refusal, ListThatDripsForever) {
  options_.stall_timeout = std::chrono::milliseconds(50);
  options_.max_attempts = 1;
  hub_answers_ = [](const Request&, Connection& connection) {
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    while (connection.send("1\r\n \r\n")) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  };
  EXPECT_THAT(fetch_error(), HasSubstr("is too slow"));
}

TEST_F(Refusal, EndlessList) {
  hub_answers_ = [](const Request&, Connection& connection) {
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    std::string chunk = "10000\r\n" + std::string(0x10000, ' ') + "\r\n";
    while (connection.send(chunk)) {
    }
    return true;
  };
  EXPECT_THAT(fetch_error(), HasSubstr("is longer than"));
}

TEST_F(Refusal, EndlessHeaders) {
  hub_answers_ = [](const Request&, Connection& connection) {
    connection.send("HTTP/1.1 200 OK\r\n");
    std::string header = "X-More: " + std::string(1000, 'x') + "\r\n";
    while (connection.send(header)) {
    }
    return true;
  };
  EXPECT_THAT(fetch_error(), HasSubstr("127.0.0.1"));
}

TEST_F(Refusal, NoHub) {
  answer_all("200 OK", "", "<html>Welcome</html>");
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("broken JSON"),
                    HasSubstr("is HF_ENDPOINT a model hub?")));
  answer_all("200 OK", "", R"({"sha": "../../evil", "siblings": []})");
  EXPECT_THAT(fetch_error(), HasSubstr("names neither commit nor files"));
  answer_all("200 OK", "", R"([1, 2])");
  EXPECT_THAT(fetch_error(), HasSubstr("names neither commit nor files"));
  answer_all("200 OK", "", std::string(100'000, '['));
  EXPECT_THAT(fetch_error(), HasSubstr("broken JSON"));
}

TEST_F(Refusal, NoHttp) {
  hub_answers_ = [](const Request&, Connection& connection) {
    connection.send("SSH-2.0-OpenSSH_9.2\r\n\r\n");
    connection.close();
    return true;
  };
  EXPECT_THAT(fetch_error(), HasSubstr("broken HTTP"));
}

TEST_F(Refusal, EndlessRedirects) {
  answer_all("302 Found", "Location: /again\r\n");
  EXPECT_THAT(fetch_error(), HasSubstr("redirects without end"));
}

TEST_F(Refusal, RedirectToNowhere) {
  answer_all("302 Found", "Location: javascript:alert(1)\r\n");
  EXPECT_THAT(fetch_error(), HasSubstr("redirects to an address that is none"));
}

TEST_F(Refusal, RedirectToAnUnencryptedHost) {
  answer_all("302 Found", "Location: http://evil.example/\r\n");
  EXPECT_THAT(fetch_error(), HasSubstr("unencrypted address of evil.example"));
}

TEST_F(Refusal, FileNamesThatLeaveTheFolder) {
  for (const char* name : {"../../../evil.json",
                           "/tmp/evil.json",
                           "a//b.json",
                           "a/../../b.json",
                           "a\\b.json",
                           "a\nb.json"}) {
    files_[name] = files_["config.json"];
    EXPECT_THAT(fetch_error(), HasSubstr("forbidden name")) << name;
    files_.erase(name);
  }
  EXPECT_FALSE(fs::exists(storage()));
}

TEST_F(Refusal, HashesThatLeaveTheFolder) {
  for (const char* hash : {"../../evil", ".hidden", "a/b", "..", "a b"}) {
    files_["config.json"].hash = hash;
    EXPECT_THAT(fetch_error(),
                HasSubstr("neither hash nor size of config.json"));
  }
  EXPECT_FALSE(fs::exists(folder_ / "evil"));
}

TEST_F(Refusal, NoHashes) {
  hub_answers_ = failing(1, "/resolve/", "200 OK");
  EXPECT_THAT(fetch_error(), HasSubstr("neither hash nor size"));
}

TEST_F(Refusal, NoWeights) {
  files_.erase(kWeights);
  EXPECT_THAT(fetch_error(), HasSubstr("org/name holds no model*.safetensors"));
  files_["model-q4.gguf"] = {"GGUF", "0"};
  EXPECT_THAT(fetch_error(),
              HasSubstr("but GGUF files (model-q4.gguf): download one"));
}

TEST_F(Refusal, WrongHashOfWeights) {
  files_[kWeights].content[5] ^= 1;
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("model.safetensors arrived with other content"),
                    HasSubstr(files_[kWeights].hash),
                    HasSubstr("(2 tries)")));
  EXPECT_FALSE(fs::exists(partial_weights()));
  EXPECT_FALSE(fs::exists(weights_blob()));
  EXPECT_FALSE(fs::exists(storage() / "refs/main"));
  EXPECT_FALSE(find_snapshot(id_, options_));
}

TEST_F(Refusal, WrongHashOfASmallFile) {
  files_["tokenizer.json"].content[3] ^= 1;
  EXPECT_THAT(fetch_error(),
              HasSubstr("tokenizer.json arrived with other content"));
}

TEST_F(Refusal, WrongLength) {
  answer_weights([this](const Request&, Connection& connection) {
    connection.answer("200 OK", "", weights() + "more");
  });
  EXPECT_THAT(fetch_error(),
              HasSubstr("sends 300004 bytes of model.safetensors instead of "
                        "300000"));
}

TEST_F(Refusal, EndlessBody) {
  answer_weights([](const Request&, Connection& connection) {
    connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    std::string chunk = "10000\r\n" + std::string(0x10000, 'x') + "\r\n";
    while (connection.send(chunk)) {
    }
  });
  EXPECT_THAT(fetch_error(),
              HasSubstr("more than the 300000 bytes that model.safetensors"));
  EXPECT_FALSE(fs::exists(partial_weights()));
}

TEST_F(Refusal, BodyThatIsAlwaysCut) {
  answer_weights([this](const Request& request, Connection& connection) {
    connection.send(range_headers(request, weights()) +
                    weights().substr(request.range_start(), 1000));
  });
  EXPECT_THAT(fetch_error(),
              AllOf(HasSubstr("after 4000 of 300000 bytes of model.safetens"),
                    HasSubstr("(4 tries)")));
  EXPECT_EQ(fs::file_size(partial_weights()), 4000u);
}

TEST_F(Refusal, BodyThatIsAlwaysCutAndNeverResumed) {
  answer_weights([this](const Request&, Connection& connection) {
    connection.send(range_headers({}, weights()) +
                    weights().substr(0, 100'000));
  });
  EXPECT_THAT(
      fetch_error(),
      AllOf(HasSubstr("after 100000 of 300000 bytes"), HasSubstr("(4 tries)")));
}

TEST_F(Refusal, ShortBodyWithoutALength) {
  answer_weights([](const Request&, Connection& connection) {
    connection.send("HTTP/1.0 200 OK\r\n\r\nshort");
  });
  EXPECT_THAT(fetch_error(), HasSubstr("cut after 5 of 300000 bytes"));
}

TEST_F(Refusal, AnotherPartThanAskedFor) {
  fs::create_directories(storage() / "blobs");
  answer_weights([this](const Request& request, Connection& connection) {
    Request other = request;
    other.headers["range"] = "bytes=7-";
    connection.send(range_headers(other, weights()) + weights().substr(7));
  });
  write_file_atomically(partial_weights(), weights().substr(0, 1000));
  EXPECT_THAT(fetch_error(), HasSubstr("another part of model.safetensors"));
}

TEST_F(Refusal, CacheThatCannotBeWritten) {
  write_file_atomically(folder_ / "file", "");
  options_.cache_folder = folder_ / "file/hub";
  EXPECT_THAT(fetch_error(ErrorKind::file),
              AllOf(HasSubstr("cannot create the folder"),
                    HasSubstr((folder_ / "file/hub").string())));
}

}  // namespace
}  // namespace mlxlm
