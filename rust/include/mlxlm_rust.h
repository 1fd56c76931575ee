/* The Rust crate's C interface: tokenizers and chat templates.
 *
 * Every call returns NULL on success, or an error message that the caller
 * frees with mlxlm_rust_free_text(). Results come through the last parameters
 * and are untouched on failure. No call panics or aborts; text is UTF-8 with a
 * length, not NUL-terminated, except for error messages. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Frees an error message; NULL is allowed. */
void mlxlm_rust_free_text(char* text);

#ifdef __cplusplus
}
#endif
