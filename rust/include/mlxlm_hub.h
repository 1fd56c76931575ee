/* Downloads from the model hub into the cache it shares with Python programs.
 * A text that comes back is freed with mlxlm_rust_free_text(). */
#ifndef MLXLM_HUB_H
#define MLXLM_HUB_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum MlxlmHubStatus {
  MLXLM_HUB_OK = 0,
  MLXLM_HUB_NETWORK = 1,   /* the hub can't be reached, or answers wrongly */
  MLXLM_HUB_NOT_FOUND = 2, /* no such repository, or none for this token */
  MLXLM_HUB_FILE = 3,      /* the cache can't be written */
  MLXLM_HUB_CANCELLED = 4, /* `report` asked for the end */
  MLXLM_HUB_ARGUMENT = 5,  /* a field of the request can't have its value */
} MlxlmHubStatus;

/* Called from the thread of the download, a few times a second: `done` of
 * `total` bytes of `file`, or of the repository's list of files with unknown
 * total 0. Not 0 ends the download. */
typedef int (*MlxlmHubReport)(void* context,
                              const char* file,
                              uint64_t done,
                              uint64_t total);

/* All texts are UTF-8 and end with 0; none may be NULL but `token`. */
typedef struct MlxlmHubRequest {
  const char* endpoint;   /* "https://huggingface.co" */
  const char* token;      /* NULL: none */
  const char* repository; /* "org/name" */
  const char* revision;   /* branch, tag or commit */
  const char* storage;    /* the repository's folder in the cache */
  const char* locks;      /* the folder of its locks */
  const char* const* patterns; /* the files to bring; * is any text */
  size_t num_patterns;
  uint32_t connect_timeout_ms;
  uint32_t stall_timeout_ms;
  uint32_t max_attempts;
  uint32_t first_backoff_ms;
  uint32_t longest_backoff_ms;
  uint32_t longest_retry_after_ms;
  MlxlmHubReport report;
  void* context;
} MlxlmHubRequest;

/* Brings all wanted files of the revision. *text: the snapshot's folder, or
 * what went wrong. */
MlxlmHubStatus mlxlm_hub_download(const MlxlmHubRequest* request, char** text);

#ifdef __cplusplus
}
#endif
#endif
