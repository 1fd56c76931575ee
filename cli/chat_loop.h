// The conversation of `chat`: messages, commands, answers.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <mlxlm/session.h>

#include "cli/line_reader.h"

namespace mlxlm::cli {

struct ChatSetup {
  LoadedModel loaded;
  std::string model_name;  // as saved chats note it
  SessionOptions options;
  std::string system_prompt;
  std::string resume_file;  // "": begin anew
};

class ChatLoop {
 public:
  // Throws as Session.
  ChatLoop(ChatSetup setup, LineReader& reader);

  // Until /exit or the end of input. At a terminal faults are messages, else
  // they end it.
  void run();

 private:
  struct Command {
    const char* name;
    const char* argument;
    const char* what;
    void (ChatLoop::*run)(const std::string& argument);
  };
  static const std::vector<Command>& commands();

  Session& session() { return sessions_.at(current_); }
  Session load(const std::string& file);
  void handle(const std::string& message);
  void run_command(const std::string& line);

  // Streams the answer that `start` begins.
  void answer(const std::function<GenerationStream()>& start);
  void show(std::string_view text);
  void end_answer(const GenerationResponse& last);
  void tell_of_full_context(const TurnStatistics& turn);

  void help(const std::string&);
  void reset(const std::string&);
  void save(const std::string& file);
  void load_file(const std::string& file);
  void set_system(const std::string& text);
  void regenerate(const std::string&);
  void edit(const std::string& number);
  void fork(const std::string& name);
  void switch_to(const std::string& name);
  void stats(const std::string&);
  void leave(const std::string&);

  ChatSetup setup_;
  LineReader& reader_;
  std::map<std::string, Session> sessions_;
  std::string current_ = "main";
  bool told_of_rotation_ = false;
  bool left_ = false;
};

}  // namespace mlxlm::cli
