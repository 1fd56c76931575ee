/* The Rust crate's C interface: tokenizers and chat templates.
 *
 * Calls that can fail return NULL on success, or an error message that the
 * caller frees with mlxlm_rust_free_text(); results come through the last
 * parameters and are untouched on failure. No call panics or aborts. Text is
 * UTF-8 with a length; only error messages are NUL-terminated. A handle may be
 * used from several threads at once, as long as none changes or frees it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Frees an error message; NULL is allowed. */
void mlxlm_rust_free_text(char* text);

/* Text that the callee doesn't keep. */
typedef struct {
  const char* data;
  size_t size;
} mlxlm_rust_view;

/* Text that the caller frees with mlxlm_rust_free_string(). */
typedef struct {
  char* data;
  size_t size;
} mlxlm_rust_string;

/* Ids that the caller frees with mlxlm_rust_free_ids(). */
typedef struct {
  uint32_t* data;
  size_t size;
} mlxlm_rust_ids;

void mlxlm_rust_free_string(mlxlm_rust_string text);
void mlxlm_rust_free_ids(mlxlm_rust_ids ids);

/* ---- Tokenizers ---- */

typedef struct mlxlm_rust_tokenizer mlxlm_rust_tokenizer;

/* How tokens become text, told from tokenizer.json's decoder. */
enum {
  MLXLM_RUST_DECODER_OTHER = 0,
  MLXLM_RUST_DECODER_SPM = 1,          /* strips the first space */
  MLXLM_RUST_DECODER_SPM_NO_SPACE = 2, /* keeps it */
  MLXLM_RUST_DECODER_BYTE_LEVEL = 3
};

/* A vocabulary as GGUF files hold it; a token's id is its index. */
typedef struct {
  mlxlm_rust_view model; /* tokenizer.ggml.model */
  mlxlm_rust_view pre;   /* tokenizer.ggml.pre, may be empty */
  mlxlm_rust_view architecture;
  const mlxlm_rust_view* tokens;
  size_t token_count;
  const float* scores;  /* NULL or token_count of them */
  const int32_t* types; /* NULL or token_count of them */
  const mlxlm_rust_view* merges;
  size_t merge_count;
  const uint8_t* charsmap; /* of unigram models, may be NULL */
  size_t charsmap_size;
  int64_t bos_id; /* -1: none */
  int64_t eos_id;
  int64_t unk_id;
  int32_t add_bos; /* 1, 0, or -1: the model's default */
  int32_t add_eos;
  int32_t add_space_prefix;
} mlxlm_rust_vocabulary;

char* mlxlm_rust_tokenizer_from_json(mlxlm_rust_view json,
                                     mlxlm_rust_tokenizer** tokenizer);
char* mlxlm_rust_tokenizer_from_vocabulary(
    const mlxlm_rust_vocabulary* vocabulary, mlxlm_rust_tokenizer** tokenizer);
/* NULL is allowed. */
void mlxlm_rust_tokenizer_free(mlxlm_rust_tokenizer* tokenizer);

int32_t mlxlm_rust_tokenizer_decoder(const mlxlm_rust_tokenizer* tokenizer);
/* 1 if the model is a byte-pair encoding. */
int32_t mlxlm_rust_tokenizer_is_bpe(const mlxlm_rust_tokenizer* tokenizer);
/* Number of tokens, added ones included. */
size_t mlxlm_rust_tokenizer_size(const mlxlm_rust_tokenizer* tokenizer);

/* `tokens_json`: array of {"content", "single_word", "lstrip", "rstrip",
 * "normalized", "special"}, of which only the first is needed; one with
 * "only_new": true is left out if a token of that content was added before. */
char* mlxlm_rust_tokenizer_add_tokens(mlxlm_rust_tokenizer* tokenizer,
                                      mlxlm_rust_view tokens_json);

char* mlxlm_rust_tokenizer_encode(const mlxlm_rust_tokenizer* tokenizer,
                                  mlxlm_rust_view text,
                                  int32_t add_special_tokens,
                                  mlxlm_rust_ids* ids);
char* mlxlm_rust_tokenizer_decode(const mlxlm_rust_tokenizer* tokenizer,
                                  const uint32_t* ids, size_t count,
                                  int32_t skip_special_tokens,
                                  mlxlm_rust_string* text);
/* -1: no such token. */
int64_t mlxlm_rust_tokenizer_token_to_id(const mlxlm_rust_tokenizer* tokenizer,
                                         mlxlm_rust_view token);
/* NULL data: no such token. */
mlxlm_rust_string mlxlm_rust_tokenizer_id_to_token(
    const mlxlm_rust_tokenizer* tokenizer, uint32_t id);

/* ---- Chat templates ---- */

typedef struct mlxlm_rust_template mlxlm_rust_template;

char* mlxlm_rust_template_compile(mlxlm_rust_view source,
                                  mlxlm_rust_template** compiled);
/* NULL is allowed. */
void mlxlm_rust_template_free(mlxlm_rust_template* compiled);

/* Local time, for strftime_now(). */
typedef struct {
  int32_t year; /* e.g. 2026 */
  int32_t month;
  int32_t day;
  int32_t hour;
  int32_t minute;
  int32_t second;
  int32_t microsecond;
} mlxlm_rust_time;

typedef struct {
  mlxlm_rust_view messages_json;
  mlxlm_rust_view tools_json;     /* empty: none */
  mlxlm_rust_view variables_json; /* object; the later ones replace the */
  mlxlm_rust_view kwargs_json;    /* earlier ones; either may be empty */
  int32_t add_generation_prompt;
  int32_t continue_final_message;
  mlxlm_rust_time now;
} mlxlm_rust_chat;

char* mlxlm_rust_template_render(const mlxlm_rust_template* compiled,
                                 const mlxlm_rust_chat* chat,
                                 mlxlm_rust_string* text);

#ifdef __cplusplus
}
#endif
