// The output of `batch`: a line for each answer, written as it comes.
#pragma once

#include <set>
#include <string>

#include <nlohmann/json.hpp>

namespace mlxlm::cli {

// A line is in the file as a whole or not at all: what a killed program left
// half-written is cut off when the file is opened again.
class AnswersFile {
 public:
  // "-": standard output, which remembers nothing. Throws Error{file} if the
  // file can't be written or another program writes it, Error{format} if it
  // holds something else than answers.
  explicit AnswersFile(const std::string& path);
  ~AnswersFile();
  AnswersFile(const AnswersFile&) = delete;
  AnswersFile& operator=(const AnswersFile&) = delete;

  // Whether the file had an answer to this id when it was opened.
  bool has(const nlohmann::json& id) const;

  // Throws Error{file}; OutputClosed where standard output is closed.
  void write(const nlohmann::json& answer);

 private:
  void read_answers();

  std::string path_;
  int file_ = -1;
  std::set<std::string> answered_;  // ids, as JSON
};

}  // namespace mlxlm::cli
