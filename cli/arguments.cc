#include "cli/arguments.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <set>

#include <mlxlm/error.h>

#include "cli/command.h"
#include "core/nearest.h"

namespace mlxlm::cli {
namespace {

bool is_option(std::string_view word) {
  return word.size() > 1 && word.front() == '-';
}

std::string suggestion(std::string_view word,
                       const std::vector<std::string>& names) {
  auto nearest = nearest_name(word, names);
  return nearest ? "; did you mean " + *nearest + "?" : "";
}

std::vector<std::string> verbs_of(const CLI::App& program) {
  std::vector<std::string> names;
  for (const CLI::App* verb : program.get_subcommands({})) {
    names.push_back(verb->get_name());
  }
  return names;
}

std::vector<std::string> options_of(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
  }
  return names;
}

void replace_all(std::string& text,
                 std::string_view from,
                 std::string_view to) {
  std::size_t at = 0;
  while ((at = text.find(from, at)) != std::string::npos) {
    text.replace(at, from.size(), to);
    at += to.size();
  }
}

}  // namespace

std::vector<std::string> normalized(const std::vector<std::string>& arguments) {
  static const std::set<std::string, std::less<>> kSeveral = {
      "--extra-eos-token", "--image"};
  std::vector<std::string> result;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    result.push_back(word == "-qa" ? "--quantize-activations" : word);
    if (!kSeveral.contains(word) || i + 1 >= arguments.size()) {
      continue;
    }
    result.push_back(arguments[++i]);
    while (i + 1 < arguments.size() && !is_option(arguments[i + 1])) {
      result.push_back(word);
      result.push_back(arguments[++i]);
    }
  }
  return result;
}

void check_verb(const std::vector<std::string>& arguments,
                const CLI::App& program) {
  std::vector<std::string> verbs = verbs_of(program);
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word == "-h" || word == "--help" || word == "--version") {
      return;
    }
    if (std::find(verbs.begin(), verbs.end(), word) != verbs.end()) {
      return;
    }
    if (is_option(word)) {
      std::string hint = suggestion(word, options_of(program));
      throw UsageError("unknown option " + word + " before a command" +
                       (hint.empty() ? "; see mlx-lm --help" : hint));
    }
    std::string hint = suggestion(word, verbs);
    throw UsageError("unknown command \"" + word + "\"" +
                     (hint.empty() ? "; see mlx-lm --help" : hint));
  }
  throw UsageError(
      "a command is missing: generate, chat, score, benchmark or info; "
      "see mlx-lm --help");
}

std::string describe_leftover(const std::vector<std::string>& words,
                              const CLI::App& command) {
  for (const std::string& word : words) {
    if (!is_option(word)) {
      continue;
    }
    std::string name = word.substr(0, word.find('='));
    std::string hint = suggestion(name, options_of(command));
    return "unknown option " + name +
           (hint.empty() ? "; see mlx-lm " + command.get_name() + " --help"
                         : hint);
  }
  std::string word = words.empty() ? "" : words.front();
  std::string message = "unexpected argument \"" + word + "\"";
  if (command.get_option_no_throw("--prompt") != nullptr) {
    message += "; a text goes after --prompt, in quotes";
  }
  return message;
}

std::string describe_parse_error(const CLI::ParseError& fault) {
  std::string text = fault.what();
  constexpr std::string_view kConversion = "Could not convert: ";
  constexpr std::string_view kEquals = " = ";
  std::size_t equals = text.find(kEquals);
  if (text.starts_with(kConversion) && equals != std::string::npos) {
    return text.substr(kConversion.size(), equals - kConversion.size()) +
           " can't be \"" + text.substr(equals + kEquals.size()) +
           "\": it takes a number";
  }
  if (fault.get_exit_code() ==
      static_cast<int>(CLI::ExitCodes::ArgumentMismatch)) {
    return text.substr(0, text.find(':')) + " needs a value";
  }
  return text;
}

std::string with_option_name(const std::string& message,
                             const CLI::App& command) {
  std::size_t end = 0;
  while (
      end < message.size() &&
      ((message[end] >= 'a' && message[end] <= 'z') || message[end] == '_')) {
    ++end;
  }
  std::string name = message.substr(0, end);
  if (name == "temperature") {
    name = "temp";
  } else if (name == "prefill_step_tokens") {
    name = "prefill_step_size";
  }
  std::replace(name.begin(), name.end(), '_', '-');
  if (name.empty() || command.get_option_no_throw("--" + name) == nullptr) {
    return message;
  }
  return "--" + name + message.substr(end);
}

void check_at_least(const std::string& option, int value, int least) {
  if (value < least) {
    throw Error(ErrorKind::argument,
                option + " must be at least " + std::to_string(least) +
                    ", but is " + std::to_string(value));
  }
}

void check_max_tokens(int max_tokens) {
  if (max_tokens == 0 || max_tokens < -1) {
    throw Error(ErrorKind::argument,
                "--max-tokens must be at least 1, or -1 for no limit, but is " +
                    std::to_string(max_tokens));
  }
}

std::vector<int> parse_token_ids(std::string_view text,
                                 std::string_view option) {
  constexpr std::string_view kSeparators = ", \t\r\n[]";
  std::vector<int> ids;
  std::size_t at = 0;
  while ((at = text.find_first_not_of(kSeparators, at)) !=
         std::string_view::npos) {
    std::size_t end =
        std::min(text.find_first_of(kSeparators, at), text.size());
    std::string_view word = text.substr(at, end - at);
    int id = 0;
    auto [rest, fault] =
        std::from_chars(word.data(), word.data() + word.size(), id);
    if (fault != std::errc() || rest != word.data() + word.size() || id < 0) {
      throw UsageError(std::string(option) + " takes token ids like \"1,2,3\"" +
                       ", not \"" + std::string(word.substr(0, 40)) + "\"");
    }
    ids.push_back(id);
    at = end;
  }
  if (ids.empty()) {
    throw UsageError(std::string(option) + " is empty: it needs a token id");
  }
  return ids;
}

std::string unescaped(std::string text) {
  replace_all(text, "\\n", "\n");
  replace_all(text, "\\t", "\t");
  return text;
}

}  // namespace mlxlm::cli
