#include "core/log.h"

#include <mutex>
#include <utility>

namespace mlxlm {
namespace {

struct Log {
  std::mutex mutex;
  LogHandler handler;
};

Log& log() {
  static Log instance;
  return instance;
}

void write(LogLevel level, std::string_view text) {
  std::lock_guard lock(log().mutex);
  if (log().handler) {
    log().handler(level, text);
  }
}

}  // namespace

void set_log_handler(LogHandler handler) {
  std::lock_guard lock(log().mutex);
  log().handler = std::move(handler);
}

void log_info(std::string_view text) { write(LogLevel::info, text); }

void log_warning(std::string_view text) { write(LogLevel::warning, text); }

}  // namespace mlxlm
