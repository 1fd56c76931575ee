//! Tokenizers, chat templates and downloads behind the C interface of
//! `include/mlxlm_rust.h`.

pub mod ffi;
pub mod template;
pub mod tokenizer;
pub mod vocabulary;

mod decoder_kind;
mod hub;
mod merges;
mod split_patterns;
