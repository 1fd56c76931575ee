// Notes and progress: where the library reports what isn't an error.
//
//   mlxlm::set_log_handler([](mlxlm::LogLevel, std::string_view text) {
//     std::cerr << text << '\n';
//   });
//
// Nothing is printed unless a handler is set. Handlers may be called from any
// thread that calls the library, one call at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

namespace mlxlm {

enum class LogLevel { info, warning };

using LogHandler = std::function<void(LogLevel, std::string_view text)>;

// Replaces the handler; an empty function silences the log.
void set_log_handler(LogHandler handler);

// One step of a long piece of work (a download, a conversion). `total` is 0
// while unknown; done == total ends it. Units depend on `what`.
struct Progress {
  std::string_view what;  // e.g. "model.safetensors"
  std::uint64_t done = 0;
  std::uint64_t total = 0;
};

using ProgressHandler = std::function<void(const Progress&)>;

}  // namespace mlxlm
