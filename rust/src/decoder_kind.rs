//! Which streaming detokenizer fits, told from tokenizer.json's decoder.

use serde::Deserialize;
use serde_json::{json, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum DecoderKind {
    Other = 0,
    Spm = 1,
    SpmNoSpace = 2,
    ByteLevel = 3,
}

/// Tells the kind from the whole file, whose other parts are skipped.
pub fn of_file(tokenizer_json: &[u8]) -> DecoderKind {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        decoder: Value,
    }
    serde_json::from_slice::<File>(tokenizer_json)
        .map_or(DecoderKind::Other, |file| of_decoder(&file.decoder))
}

/// The reference compares for equality, so a decoder with one more field
/// counts as another one.
pub fn of_decoder(decoder: &Value) -> DecoderKind {
    if *decoder == spm(true) {
        DecoderKind::Spm
    } else if *decoder == spm(false) {
        DecoderKind::SpmNoSpace
    } else if decoder.get("type") == Some(&json!("ByteLevel")) {
        DecoderKind::ByteLevel
    } else {
        DecoderKind::Other
    }
}

/// SentencePiece's decoder, as converters write it.
pub fn spm(strip_first_space: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip_first_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}
