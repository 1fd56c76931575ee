// The model hub: what its cache holds, and downloads into it.
//
// The cache is that of huggingface_hub, shared with Python programs:
//   models--org--name/refs/main             commit the branch stands for
//   models--org--name/snapshots/COMMIT/...  links into blobs/
//   models--org--name/blobs/ETAG            content, by hash
//   .locks/models--org--name/ETAG.lock      one download at a time
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mlxlm/error.h>

#include "core/environment.h"

namespace mlxlm {

struct HubId {
  std::string repository;  // "org/name"
  std::string revision = "main";

  std::string text() const;  // "org/name", "org/name@revision"
};

// "org/name[@revision]"; none if it can't be one.
std::optional<HubId> parse_hub_id(std::string_view name);

struct HubOptions {
  std::string endpoint = "https://huggingface.co";
  std::filesystem::path cache_folder;
  std::string token;  // empty: none
  bool offline = false;

  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds stall_timeout{30'000};  // without a byte
  int max_attempts = 6;  // per request, while nothing new arrives
  std::chrono::milliseconds first_backoff{1'000};  // doubled each time
  std::chrono::milliseconds longest_backoff{8'000};
  std::chrono::milliseconds longest_retry_after{60'000};  // longer ones fail
};

// HF_HOME, HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, XDG_CACHE_HOME, HF_ENDPOINT,
// HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT, as
// huggingface_hub reads them.
HubOptions hub_options(const Environment& environment = process_environment);

// The snapshot's folder if the cache has all of it.
std::optional<std::filesystem::path> find_snapshot(const HubId& id,
                                                   const HubOptions& options);

// The snapshot's folder, downloaded unless the cache has it. An exception that
// `progress` throws ends the download and is passed on; what has arrived is
// kept for the next try. Throws Error{network, file}.
std::filesystem::path fetch_snapshot(const HubId& id,
                                     const HubOptions& options,
                                     const ProgressHandler& progress);

// The repositories the cache knows: "org/name".
std::vector<std::string> cached_repositories(const HubOptions& options);

}  // namespace mlxlm
