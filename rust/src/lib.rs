//! Tokenizers, chat templates and downloads behind the C interface of
//! `include/mlxlm_rust.h`.

pub mod ffi;
