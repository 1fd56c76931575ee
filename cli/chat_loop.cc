#include "cli/chat_loop.h"

#include <charconv>
#include <cstdio>
#include <optional>
#include <utility>

#include <mlxlm/error.h>

#include "cli/console.h"
#include "cli/interrupt.h"
#include "core/environment.h"
#include "core/nearest.h"

namespace mlxlm::cli {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::argument, message);
}

std::string path_of(const char* command, const std::string& file) {
  if (file.empty()) {
    refuse(std::string(command) + " needs a file");
  }
  return expand_home(file, process_environment).string();
}

template <typename... Values>
std::string formatted(const char* format, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

std::string trimmed(const std::string& text) {
  constexpr char kBlanks[] = " \t\n";
  std::size_t from = text.find_first_not_of(kBlanks);
  return from == std::string::npos
             ? ""
             : text.substr(from, text.find_last_not_of(kBlanks) + 1 - from);
}

double megabytes(std::size_t bytes) { return static_cast<double>(bytes) / 1e6; }

}  // namespace

const std::vector<ChatLoop::Command>& ChatLoop::commands() {
  static const std::vector<Command> commands = {
      {"/help", "", "this list (also h)", &ChatLoop::help},
      {"/reset", "", "forget all messages (also r)", &ChatLoop::reset},
      {"/save", "FILE", "save the chat", &ChatLoop::save},
      {"/load", "FILE", "go on with a saved chat", &ChatLoop::load_file},
      {"/system",
       "[TEXT]",
       "set the system message, or remove it",
       &ChatLoop::set_system},
      {"/regenerate",
       "",
       "answer the last message again",
       &ChatLoop::regenerate},
      {"/edit",
       "[N]",
       "put the next line in place of your message N (the last) and answer",
       &ChatLoop::edit},
      {"/fork",
       "NAME",
       "go on in a copy of that name; the original stays",
       &ChatLoop::fork},
      {"/switch",
       "NAME",
       "go to another copy (the first is main)",
       &ChatLoop::switch_to},
      {"/stats", "", "tokens read and reused, memory", &ChatLoop::stats},
      {"/exit", "", "leave (also q, Ctrl-D)", &ChatLoop::leave},
  };
  return commands;
}

ChatLoop::ChatLoop(ChatSetup setup, LineReader& reader)
    : setup_(std::move(setup)), reader_(reader) {
  setup_.options.generate.prompt_progress = [this](int done, int total) {
    if (interrupted()) {
      session().options().generate.cancel.cancel();
    }
    show_progress({.what = "reading the prompt",
                   .done = static_cast<std::uint64_t>(done),
                   .total = static_cast<std::uint64_t>(total)});
  };
  if (!setup_.resume_file.empty()) {
    sessions_.emplace(current_, load(setup_.resume_file));
  } else {
    sessions_.emplace(
        current_,
        Session(setup_.loaded.model, setup_.loaded.tokenizer, setup_.options));
  }
  if (!setup_.system_prompt.empty()) {
    session().set_system(setup_.system_prompt);
  }
}

void ChatLoop::run() {
  // A Ctrl-C that comes just after an answer has ended is not for the program.
  std::optional<InterruptibleAnswer> between_answers;
  if (reader_.interactive()) {
    between_answers.emplace();
    print(setup_.model_name + "; /help lists the commands\n");
  }
  while (!left_) {
    auto message = read_message(reader_);
    if (!message) {
      break;
    }
    if (!reader_.interactive()) {
      handle(*message);
      continue;
    }
    try {
      handle(*message);
    } catch (const Error& fault) {
      print_error(fault.what());
    }
  }
}

void ChatLoop::handle(const std::string& message) {
  // The reference's commands.
  static const std::map<std::string, const char*> kLetters = {
      {"q", "/exit"}, {"r", "/reset"}, {"h", "/help"}};
  auto letter = kLetters.find(message);
  std::string text = letter != kLetters.end() ? letter->second : message;
  if (trimmed(text).empty()) {
    return;
  }
  if (text.starts_with('/') && !text.starts_with("//")) {
    run_command(text);
    return;
  }
  text.erase(0, text.starts_with("//") ? 1 : 0);
  answer([&] { return session().respond(text); });
}

void ChatLoop::run_command(const std::string& line) {
  std::size_t end = std::min(line.find_first_of(" \t\n"), line.size());
  std::string name = line.substr(0, end);
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (name == command.name) {
      (this->*command.run)(trimmed(line.substr(end)));
      return;
    }
    names.emplace_back(command.name);
  }
  auto nearest = nearest_name(name, names);
  refuse("unknown command " + name +
         (nearest ? "; did you mean " + *nearest + "?"
                  : "; /help lists them, and // begins a message with /"));
}

void ChatLoop::show(std::string_view text) {
  try {
    print(text);
  } catch (const Interrupted&) {
    // The answer ends after this part.
  }
}

void ChatLoop::answer(const std::function<GenerationStream()>& start) {
  InterruptibleAnswer guard;
  session().options().generate.cancel = {};
  GenerationResponse last;
  auto stream = start();
  while (auto part = stream.next()) {
    show(part->text);
    if (interrupted()) {
      session().options().generate.cancel.cancel();
    }
    last = std::move(*part);
  }
  clear_progress();
  end_answer(last);
}

void ChatLoop::end_answer(const GenerationResponse& last) {
  if (last.generation_tokens == 0) {
    print_note("stopped before the answer began; the message is forgotten");
    return;
  }
  show("\n");
  const TurnStatistics& turn = session().last_turn();
  tell_of_full_context(turn);
  if (!reader_.interactive()) {
    return;
  }
  std::string how = last.finish_reason == "stop" ? "" : last.finish_reason;
  how = how == "length" ? ", cut by the limit" : how.empty() ? "" : ", stopped";
  show(
      formatted("[%d tokens%s, %.1f tokens/s; prompt: %d read, %d reused, "
                "%.1f tokens/s; peak %.2f GB]\n",
                turn.generated_tokens,
                how.c_str(),
                last.generation_tps,
                turn.read_tokens(),
                turn.reused_tokens,
                last.prompt_tps,
                last.peak_memory_gb));
}

void ChatLoop::tell_of_full_context(const TurnStatistics& turn) {
  if (!turn.context_full) {
    return;
  }
  std::string full = "the context of " +
                     std::to_string(session().context_tokens()) +
                     " tokens is full: ";
  if (turn.dropped_messages > 0) {
    print_note(full + "the oldest " + std::to_string(turn.dropped_messages) +
               " messages are dropped");
  } else if (setup_.options.when_full != FullContext::rotate) {
    print_note(full + "the answer ends here");
  } else if (!std::exchange(told_of_rotation_, true)) {
    print_note(full + "from here on the oldest tokens are dropped");
  }
}

Session ChatLoop::load(const std::string& file) {
  return Session::resume(
      file, setup_.loaded.model, setup_.loaded.tokenizer, setup_.options);
}

void ChatLoop::help(const std::string&) {
  std::string text;
  for (const Command& command : commands()) {
    std::string usage = std::string(command.name) + " " + command.argument;
    text += formatted("  %-16s %s\n", usage.c_str(), command.what);
  }
  print(text +
        "  A line that ends with \\ goes on in the next; \"\"\" begins and "
        "ends several\n  lines. Ctrl-C stops an answer.\n");
}

void ChatLoop::reset(const std::string&) {
  session().reset();
  print_note("the messages are forgotten");
}

void ChatLoop::save(const std::string& file) {
  std::string path = path_of("/save", file);
  session().save(path,
                 {{"model", setup_.model_name}, {"tokenizer_config", "{}"}});
  print_note("saved " + std::to_string(session().messages().size()) +
             " messages and " + std::to_string(session().cached_tokens()) +
             " tokens in " + path);
}

void ChatLoop::load_file(const std::string& file) {
  Session loaded = load(path_of("/load", file));
  session() = std::move(loaded);
  print_note("loaded " + std::to_string(session().messages().size()) +
             " messages and " + std::to_string(session().cached_tokens()) +
             " tokens");
}

void ChatLoop::set_system(const std::string& text) {
  session().set_system(text);
  print_note(text.empty() ? "there is no system message"
                          : "the system message is set");
}

void ChatLoop::regenerate(const std::string&) {
  answer([&] { return session().regenerate(); });
}

void ChatLoop::edit(const std::string& number) {
  std::vector<std::size_t> own;
  const auto& messages = session().messages();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role == "user") {
      own.push_back(i);
    }
  }
  std::size_t which = own.size();
  const char* end = number.data() + number.size();
  if (!number.empty() &&
      std::from_chars(number.data(), end, which).ptr != end) {
    refuse("/edit takes the number of one of your messages, not \"" + number +
           "\"");
  }
  if (which < 1 || which > own.size()) {
    refuse("you have " + std::to_string(own.size()) +
           " messages; there is no number " + std::to_string(which) +
           " to edit");
  }
  std::size_t index = own[which - 1];
  const std::string& old = messages[index].content;
  bool one_line = old.find('\n') == std::string::npos;
  auto text = read_message(reader_, one_line ? old : "");
  if (!text || trimmed(*text).empty()) {
    print_note("the message stays as it was");
    return;
  }
  answer([&] { return session().edit(index, *text); });
}

void ChatLoop::fork(const std::string& name) {
  if (name.empty() || sessions_.contains(name)) {
    refuse(name.empty() ? "/fork needs a name for the copy"
                        : "there is a copy named " + name + " already");
  }
  sessions_.emplace(name, session().fork());
  print_note("this is " + name + " now; /switch " + current_ +
             " goes back to where it began");
  current_ = name;
}

void ChatLoop::switch_to(const std::string& name) {
  if (!sessions_.contains(name)) {
    std::string all;
    for (const auto& [each, ignored] : sessions_) {
      all += (all.empty() ? "" : ", ") + each;
    }
    refuse("there is no copy named \"" + name + "\", only " + all);
  }
  current_ = name;
  print_note("this is " + name + " now, with " +
             std::to_string(session().messages().size()) + " messages");
}

void ChatLoop::stats(const std::string&) {
  auto tokens = [](const char* name, const TurnStatistics& turn) {
    return formatted(
        "%-12s %d tokens of prompt: %d read (%d of them again), "
        "%d reused; %d generated\n",
        name,
        turn.prompt_tokens,
        turn.read_tokens(),
        turn.reread_tokens,
        turn.reused_tokens,
        turn.generated_tokens);
  };
  int context = session().context_tokens();
  print(formatted("%-12s %zu messages in \"%s\"\n",
                  "chat",
                  session().messages().size(),
                  current_.c_str()) +
        formatted("%-12s %d tokens%s, %.1f MB, and %.1f MB of checkpoints\n",
                  "cache",
                  session().cached_tokens(),
                  context > 0 ? (" of " + std::to_string(context)).c_str() : "",
                  megabytes(session().cache_bytes()),
                  megabytes(session().checkpoint_bytes())) +
        tokens("last answer", session().last_turn()) +
        tokens("all answers", session().total()));
}

void ChatLoop::leave(const std::string&) { left_ = true; }

}  // namespace mlxlm::cli
