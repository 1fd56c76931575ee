//! The tokenizer handle and its C functions.

use std::ffi::c_char;

use serde_json::Value;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use crate::decoder_kind::{self, DecoderKind};
use crate::ffi::{guard, guarded, slice, OwnedIds, OwnedText, View};
use crate::vocabulary::{self, CVocabulary};

pub struct Handle {
    pub tokenizer: Tokenizer,
    pub decoder: DecoderKind,
}

/// Lengths and padding are the caller's business, as in transformers, and one
/// text at a time needs no thread pool.
fn finish(mut tokenizer: Tokenizer, decoder: DecoderKind) -> Result<Handle, String> {
    tokenizers::utils::parallelism::set_parallelism(false);
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| error.to_string())?;
    Ok(Handle { tokenizer, decoder })
}

fn from_json(json: &[u8]) -> Result<Handle, String> {
    let tokenizer = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
    finish(tokenizer, decoder_kind::of_file(json))
}

/// Missing flags are those of transformers' `AddedToken`.
fn added_token(token: &Value) -> Result<AddedToken, String> {
    let content = token
        .get("content")
        .and_then(Value::as_str)
        .ok_or("an added token has no \"content\"")?;
    let flag = |name: &str| token.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Ok(AddedToken::from(content, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special)))
}

fn add_tokens(handle: &mut Handle, json: &[u8]) -> Result<(), String> {
    let tokens: Vec<Value> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let present = handle.tokenizer.get_added_vocabulary().get_vocab();
    let wanted = |token: &&Value| {
        let only_new = token.get("only_new").and_then(Value::as_bool) == Some(true);
        let content = token.get("content").and_then(Value::as_str);
        !(only_new && content.is_some_and(|content| present.contains_key(content)))
    };
    let tokens: Vec<AddedToken> = tokens
        .iter()
        .filter(wanted)
        .map(added_token)
        .collect::<Result<_, _>>()?;
    handle
        .tokenizer
        .add_tokens(tokens)
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// # Safety
/// Pointers are valid; `tokenizer` may be written.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_from_json(
    json: View,
    tokenizer: *mut *mut Handle,
) -> *mut c_char {
    guard(|| {
        let handle = from_json(json.bytes())?;
        *tokenizer = Box::into_raw(Box::new(handle));
        Ok(())
    })
}

/// # Safety
/// As for `mlxlm_rust_tokenizer_from_json`.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_from_vocabulary(
    vocabulary: *const CVocabulary,
    tokenizer: *mut *mut Handle,
) -> *mut c_char {
    guard(|| {
        let (built, decoder) = vocabulary::build(&(*vocabulary).read()?)?;
        let handle = finish(built, decoder)?;
        *tokenizer = Box::into_raw(Box::new(handle));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is NULL or came from this crate, and is freed once.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_free(tokenizer: *mut Handle) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

/// # Safety
/// `tokenizer` is valid.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_decoder(tokenizer: *const Handle) -> i32 {
    (*tokenizer).decoder as i32
}

/// # Safety
/// `tokenizer` is valid.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_is_bpe(tokenizer: *const Handle) -> i32 {
    matches!((*tokenizer).tokenizer.get_model(), ModelWrapper::BPE(_)).into()
}

/// # Safety
/// `tokenizer` is valid.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_size(tokenizer: *const Handle) -> usize {
    guarded(|| Ok((*tokenizer).tokenizer.get_vocab_size(true))).unwrap_or(0)
}

/// # Safety
/// `tokenizer` is valid and used by nobody else.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_add_tokens(
    tokenizer: *mut Handle,
    tokens_json: View,
) -> *mut c_char {
    guard(|| add_tokens(&mut *tokenizer, tokens_json.bytes()))
}

/// # Safety
/// Pointers are valid; `ids` may be written.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_encode(
    tokenizer: *const Handle,
    text: View,
    add_special_tokens: i32,
    ids: *mut OwnedIds,
) -> *mut c_char {
    guard(|| {
        let encoding = (*tokenizer)
            .tokenizer
            .encode_fast(text.text("the text")?, add_special_tokens != 0)
            .map_err(|error| error.to_string())?;
        ids.write(encoding.get_ids().to_vec().into());
        Ok(())
    })
}

/// # Safety
/// Pointers are valid; `text` may be written.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_decode(
    tokenizer: *const Handle,
    ids: *const u32,
    count: usize,
    skip_special_tokens: i32,
    text: *mut OwnedText,
) -> *mut c_char {
    guard(|| {
        let decoded = (*tokenizer)
            .tokenizer
            .decode(slice(ids, count), skip_special_tokens != 0)
            .map_err(|error| error.to_string())?;
        text.write(decoded.into());
        Ok(())
    })
}

/// # Safety
/// Pointers are valid.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_token_to_id(
    tokenizer: *const Handle,
    token: View,
) -> i64 {
    guarded(|| Ok((*tokenizer).tokenizer.token_to_id(token.text("the token")?)))
        .ok()
        .flatten()
        .map_or(-1, i64::from)
}

/// # Safety
/// `tokenizer` is valid.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_tokenizer_id_to_token(
    tokenizer: *const Handle,
    id: u32,
) -> OwnedText {
    guarded(|| Ok((*tokenizer).tokenizer.id_to_token(id)))
        .ok()
        .flatten()
        .map_or_else(OwnedText::none, Into::into)
}
