#include <exception>
#include <memory>
#include <span>

#include <mlxlm_hub.h>
#include <mlxlm_rust.h>

#include <mlxlm/error.h>

#include "core/log.h"
#include "core/nearest.h"
#include "load/hub.h"
#include "load/hub_files.h"

namespace mlxlm {
namespace fs = std::filesystem;
namespace {

// Passes progress on; keeps what the handler throws, which may not unwind
// through the download.
struct Reporter {
  const ProgressHandler& progress;
  std::exception_ptr thrown;

  static int report(void* context,
                    const char* file,
                    std::uint64_t done,
                    std::uint64_t total) {
    auto& self = *static_cast<Reporter*>(context);
    try {
      if (self.progress) {
        self.progress({file, done, total});
      }
      return 0;
    } catch (...) {
      self.thrown = std::current_exception();
      return 1;
    }
  }
};

std::uint32_t milliseconds(std::chrono::milliseconds duration) {
  constexpr std::int64_t kLongest = 1'000'000'000;  // 11 days
  return static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(duration.count(), 0, kLongest));
}

// What a name that isn't there may have meant.
std::string did_you_mean(const HubId& id, const HubOptions& options) {
  auto cached = cached_repositories(options);
  std::erase(cached, id.repository);
  auto nearest = nearest_name(id.repository, cached);
  return nearest ? " (did you mean " + *nearest + ", which the cache has?)"
                 : "";
}

[[noreturn]] void fail_offline(const HubId& id, const HubOptions& options) {
  std::error_code ignored;
  bool partly = fs::exists(storage_folder(id, options), ignored);
  throw Error(ErrorKind::file,
              id.text() +
                  (partly ? " is only partly in the hub cache "
                          : " is not in the hub cache ") +
                  options.cache_folder.string() + did_you_mean(id, options) +
                  ", and HF_HUB_OFFLINE forbids downloads: unset it, or name "
                  "a model that is there");
}

ErrorKind kind_of(MlxlmHubStatus status) {
  switch (status) {
    case MLXLM_HUB_FILE:
      return ErrorKind::file;
    case MLXLM_HUB_ARGUMENT:
      return ErrorKind::argument;
    case MLXLM_HUB_CANCELLED:
      return ErrorKind::cancelled;
    default:
      return ErrorKind::network;
  }
}

MlxlmHubStatus download(const HubId& id,
                        const HubOptions& options,
                        Reporter& reporter,
                        std::string& text) {
  std::string storage = storage_folder(id, options).string();
  std::string locks =
      (options.cache_folder / ".locks" / fs::path(storage).filename()).string();
  auto patterns = wanted_file_patterns();
  MlxlmHubRequest request{
      .endpoint = options.endpoint.c_str(),
      .token = options.token.empty() ? nullptr : options.token.c_str(),
      .repository = id.repository.c_str(),
      .revision = id.revision.c_str(),
      .storage = storage.c_str(),
      .locks = locks.c_str(),
      .patterns = patterns.data(),
      .num_patterns = patterns.size(),
      .connect_timeout_ms = milliseconds(options.connect_timeout),
      .stall_timeout_ms = milliseconds(options.stall_timeout),
      .max_attempts =
          static_cast<std::uint32_t>(std::clamp(options.max_attempts, 1, 100)),
      .first_backoff_ms = milliseconds(options.first_backoff),
      .longest_backoff_ms = milliseconds(options.longest_backoff),
      .longest_retry_after_ms = milliseconds(options.longest_retry_after),
      .report = Reporter::report,
      .context = &reporter,
  };
  char* raw = nullptr;
  MlxlmHubStatus status = mlxlm_hub_download(&request, &raw);
  std::unique_ptr<char, decltype(&mlxlm_rust_free_text)> owned(
      raw, mlxlm_rust_free_text);
  text = raw == nullptr ? "" : raw;
  return status;
}

}  // namespace

fs::path fetch_snapshot(const HubId& id,
                        const HubOptions& options,
                        const ProgressHandler& progress) {
  if (auto snapshot = find_snapshot(id, options)) {
    return *snapshot;
  }
  if (options.offline) {
    fail_offline(id, options);
  }
  log_info("downloading " + id.text() + " from " + options.endpoint);
  Reporter reporter{progress, nullptr};
  std::string text;
  MlxlmHubStatus status = download(id, options, reporter, text);
  if (reporter.thrown) {
    std::rethrow_exception(reporter.thrown);
  }
  if (status == MLXLM_HUB_NOT_FOUND) {
    text += did_you_mean(id, options);
  }
  if (status != MLXLM_HUB_OK) {
    throw Error(kind_of(status), text);
  }
  return text;
}

}  // namespace mlxlm
