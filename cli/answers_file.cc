#include "cli/answers_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <mlxlm/error.h>

#include "cli/console.h"
#include "cli/generation_output.h"
#include "core/json.h"

namespace mlxlm::cli {
namespace {

using nlohmann::json;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error(ErrorKind::file,
              "can't " + what + " " + path + ": " + std::strerror(errno));
}

void write_all(int file, const std::string& text, const std::string& path) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::write(file, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path, "write");
    done += static_cast<std::size_t>(count);
  }
}

}  // namespace

AnswersFile::AnswersFile(const std::string& path) : path_(path) {
  if (path == "-") return;
  file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file_ < 0) fail(path, "open");
  try {
    if (::flock(file_, LOCK_EX | LOCK_NB) != 0) {
      throw Error(ErrorKind::file,
                  path + " is being written by another program");
    }
    read_answers();
  } catch (...) {
    ::close(file_);
    throw;
  }
}

AnswersFile::~AnswersFile() {
  if (file_ >= 0) ::close(file_);
}

void AnswersFile::read_answers() {
  std::ifstream input(path_, std::ios::binary);
  std::string line;
  off_t whole_bytes = 0;
  std::uint64_t number = 0;
  while (std::getline(input, line) && !input.eof()) {
    whole_bytes += static_cast<off_t>(line.size()) + 1;
    json answer =
        parse_json(line, path_ + ", line " + std::to_string(++number));
    if (!answer.is_object() || !answer.contains("id")) {
      throw Error(ErrorKind::format,
                  path_ + ", line " + std::to_string(number) +
                      " is no answer of batch; name another output");
    }
    answered_.insert(answer["id"].dump());
  }
  if (::ftruncate(file_, whole_bytes) != 0) fail(path_, "cut");
}

bool AnswersFile::has(const json& id) const {
  return answered_.count(id.dump()) > 0;
}

void AnswersFile::write(const json& answer) {
  const std::string line = json_line(answer);
  if (file_ < 0) return print(line);
  write_all(file_, line, path_);
}

}  // namespace mlxlm::cli
