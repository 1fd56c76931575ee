// The command line before CLI11 sees it, and what to say about words that
// nobody knows.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

namespace mlxlm::cli {

// Rewrites what Python's argparse takes and CLI11 doesn't: options with
// several values ("--extra-eos-token A B" becomes two uses), and "-qa".
std::vector<std::string> normalized(const std::vector<std::string>& arguments);

// Throws UsageError unless the first word that is no option is a command, or
// if there is none and neither help nor the version is asked for.
void check_verb(const std::vector<std::string>& arguments,
                const CLI::App& program);

// What is wrong with the words left over after parsing, with the option that
// may have been meant.
std::string describe_leftover(const std::vector<std::string>& words,
                              const CLI::App& command);

// CLI11's complaint about an option's value in our words.
std::string describe_parse_error(const CLI::ParseError& fault);

// A library message that begins with an option's C++ name ("top_p must be
// ...") with the name as `command` spells it ("--top-p must be ...").
std::string with_option_name(const std::string& message,
                             const CLI::App& command);

// Throw Error{argument} naming the option.
void check_at_least(const std::string& option, int value, int least);
void check_max_tokens(int max_tokens);

// "1,2,3" or "[1, 2, 3]" as token ids. Throws UsageError naming `option`.
std::vector<int> parse_token_ids(std::string_view text,
                                 std::string_view option);

// Replaces \n and \t written as two characters, as the reference does.
std::string unescaped(std::string text);

}  // namespace mlxlm::cli
