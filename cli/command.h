// The commands. Each adds its options to a CLI11 command and returns what runs
// it once they are parsed.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include <CLI/CLI.hpp>

namespace mlxlm::cli {

using Command = std::function<void()>;

Command add_generate(CLI::App& command);
Command add_chat(CLI::App& command);
Command add_batch(CLI::App& command);
Command add_cache_prompt(CLI::App& command);
Command add_score(CLI::App& command);
Command add_benchmark(CLI::App& command);
Command add_info(CLI::App& command);
Command add_launch(CLI::App& command);
Command add_models(CLI::App& command);

// A command that is an object: its options, and what runs it.
template <class T>
Command command_of(CLI::App& command) {
  auto object = std::make_shared<T>();
  object->add_to(command);
  return [object] { object->run(); };
}

// The command line can't be understood: exit code 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// An option of which every use adds one value, taken as it stands. (CLI11's
// own lists split values that look like "[a,b]".)
inline CLI::Option* add_list(CLI::App& command,
                             const std::string& name,
                             std::vector<std::string>& values,
                             const std::string& help) {
  return command.add_option(name, values, help)
      ->allow_extra_args(false)
      ->take_all()
      ->type_name("TEXT");
}

}  // namespace mlxlm::cli
