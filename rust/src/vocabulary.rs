//! A tokenizer built from the vocabulary of a GGUF file.

use std::collections::HashSet;

use serde_json::{json, Value};
use tokenizers::models::bpe::{BpeBuilder, Vocab, BPE};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::Precompiled;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer,
};

use crate::decoder_kind::{self, DecoderKind};
use crate::ffi::{slice, View};
use crate::merges;
use crate::split_patterns;

/// `mlxlm_rust_vocabulary`.
#[repr(C)]
pub struct CVocabulary {
    model: View,
    pre: View,
    architecture: View,
    tokens: *const View,
    token_count: usize,
    scores: *const f32,
    types: *const i32,
    merges: *const View,
    merge_count: usize,
    charsmap: *const u8,
    charsmap_size: usize,
    bos_id: i64,
    eos_id: i64,
    unk_id: i64,
    add_bos: i32,
    add_eos: i32,
    add_space_prefix: i32,
}

pub struct Vocabulary<'a> {
    model: &'a str,
    pre: &'a str,
    architecture: &'a str,
    tokens: Vec<&'a str>,
    scores: &'a [f32],
    types: &'a [i32],
    merges: Vec<&'a str>,
    charsmap: &'a [u8],
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    add_space_prefix: Option<bool>,
}

/// Kinds of tokens, as GGUF numbers them.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

impl CVocabulary {
    /// # Safety
    /// Pointers are valid while the result is used.
    pub unsafe fn read<'a>(&self) -> Result<Vocabulary<'a>, String> {
        let texts = |views: *const View, count, what: &str| {
            slice(views, count)
                .iter()
                .enumerate()
                .map(|(index, view)| view.text(&format!("{what} {index}")))
                .collect::<Result<Vec<_>, _>>()
        };
        let flag = |value: i32| (value >= 0).then_some(value != 0);
        let id = |value: i64, what: &str| match value {
            -1 => Ok(None),
            id if id >= 0 && (id as u64) < self.token_count as u64 => Ok(Some(id as u32)),
            id => Err(format!(
                "the {what} token's id, {id}, is none of the {} tokens",
                self.token_count
            )),
        };
        let count_of = |is_null: bool| if is_null { 0 } else { self.token_count };
        if self.token_count == 0 || self.token_count > i32::MAX as usize {
            return Err(format!("{} tokens", self.token_count));
        }
        Ok(Vocabulary {
            model: self.model.text("the model's name")?,
            pre: self.pre.text("the pre-tokenizer's name")?,
            architecture: self.architecture.text("the architecture")?,
            tokens: texts(self.tokens, self.token_count, "token")?,
            scores: slice(self.scores, count_of(self.scores.is_null())),
            types: slice(self.types, count_of(self.types.is_null())),
            merges: texts(self.merges, self.merge_count, "merge")?,
            charsmap: slice(self.charsmap, self.charsmap_size),
            bos: id(self.bos_id, "beginning-of-sequence")?,
            eos: id(self.eos_id, "end-of-sequence")?,
            unk: id(self.unk_id, "unknown")?,
            add_bos: flag(self.add_bos),
            add_eos: flag(self.add_eos),
            add_space_prefix: flag(self.add_space_prefix),
        })
    }
}

pub fn build(vocabulary: &Vocabulary) -> Result<(Tokenizer, DecoderKind), String> {
    match vocabulary.model {
        "gpt2" => byte_level(vocabulary),
        "llama" | "gemma4" => sentence_piece(vocabulary),
        "t5" => unigram(vocabulary),
        other => Err(format!(
            "tokenizer.ggml.model is {other:?}; supported are gpt2, llama, gemma4 and t5"
        )),
    }
}

/// Byte-level byte-pair encoding.
fn byte_level(vocabulary: &Vocabulary) -> Result<(Tokenizer, DecoderKind), String> {
    let splitter = split_patterns::find(vocabulary.pre).ok_or_else(|| {
        format!(
            "tokenizer.ggml.pre is {:?}, a pre-tokenizer this version doesn't know",
            vocabulary.pre
        )
    })?;
    let spelled: Vec<String> = (0..vocabulary.tokens.len())
        .map(|id| match vocabulary.kind(id) {
            CONTROL | USER_DEFINED => vocabulary.tokens[id].to_owned(),
            _ => in_byte_alphabet(vocabulary.tokens[id]),
        })
        .collect();
    let merges = merges::parse(&vocabulary.merges)?;
    let model = bpe(&spelled, merges, |builder| {
        builder.ignore_merges(splitter.ignore_merges)
    })?;
    let mut cuts: Vec<Value> = splitter
        .patterns
        .iter()
        .map(|pattern| {
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                   "invert": false})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                       "use_regex": false});
    cuts.push(bytes.clone());
    let parts = Parts {
        normalizer: splitter.compose.then(|| json!({"type": "NFC"})),
        pre_tokenizer: Some(json!({"type": "Sequence", "pretokenizers": cuts})),
        decoder: bytes,
        add_bos: vocabulary.add_bos.unwrap_or(splitter.add_bos),
        add_eos: vocabulary.add_eos.unwrap_or(false),
    };
    assemble(vocabulary, model.into(), parts)
}

/// SentencePiece's byte-pair encoding with byte fallback. Gemma's scores don't
/// follow the order of its merges, but the order of its tokens does; and some
/// files spell its tokens of several spaces with spaces.
fn sentence_piece(vocabulary: &Vocabulary) -> Result<(Tokenizer, DecoderKind), String> {
    let gemma = vocabulary.model == "gemma4" || vocabulary.architecture.starts_with("gemma");
    let spelled: Vec<String> = vocabulary
        .tokens
        .iter()
        .map(|token| match gemma && !token.is_empty() && token.bytes().all(|b| b == b' ') {
            true => "\u{2581}".repeat(token.len()),
            false => (*token).to_owned(),
        })
        .collect();
    let merges = if vocabulary.merges.is_empty() {
        if !gemma && vocabulary.scores.is_empty() {
            return Err("neither merges nor scores in the vocabulary".to_owned());
        }
        let rank = |id: usize| match gemma {
            true => -(id as f32),
            false => vocabulary.scores[id],
        };
        let pieces: Vec<(&str, f32, u32)> = spelled
            .iter()
            .enumerate()
            .filter(|&(id, _)| !matches!(vocabulary.kind(id), UNKNOWN | CONTROL | BYTE))
            .map(|(id, piece)| (piece.as_str(), rank(id), id as u32))
            .collect();
        merges::from_ranks(&pieces)
    } else {
        merges::parse(&vocabulary.merges)?
    };
    let unknown = vocabulary.unk.map(|id| spelled[id as usize].clone());
    let model = bpe(&spelled, merges, |builder| {
        let builder = builder.byte_fallback(true).fuse_unk(true);
        match unknown {
            Some(token) => builder.unk_token(token),
            None => builder,
        }
    })?;
    let prefix = vocabulary.add_space_prefix.unwrap_or(!gemma);
    let escape = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"}, escape]}),
        false => escape,
    };
    let parts = Parts {
        normalizer: Some(normalizer),
        pre_tokenizer: None,
        decoder: decoder_kind::spm(prefix),
        add_bos: vocabulary.add_bos.unwrap_or(vocabulary.model == "llama")
            && vocabulary.model != "gemma4",
        add_eos: vocabulary.add_eos.unwrap_or(false),
    };
    assemble(vocabulary, model.into(), parts)
}

/// SentencePiece's unigram model.
fn unigram(vocabulary: &Vocabulary) -> Result<(Tokenizer, DecoderKind), String> {
    if vocabulary.scores.is_empty() {
        return Err("no scores in the vocabulary".to_owned());
    }
    let pieces: Vec<(String, f64)> = vocabulary
        .tokens
        .iter()
        .zip(vocabulary.scores)
        .map(|(token, &score)| ((*token).to_owned(), f64::from(score)))
        .collect();
    let unknown = vocabulary.unk.map(|id| id as usize);
    let model = Unigram::from(pieces, unknown, false).map_err(|error| error.to_string())?;
    let spaces = json!({"type": "Metaspace", "replacement": "\u{2581}",
        "prepend_scheme": if vocabulary.add_space_prefix.unwrap_or(true) { "always" } else { "never" },
        "split": true});
    let parts = Parts {
        normalizer: None,
        pre_tokenizer: Some(json!({"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, spaces.clone()]})),
        decoder: spaces,
        add_bos: vocabulary.add_bos.unwrap_or(false),
        add_eos: vocabulary.add_eos.unwrap_or(true),
    };
    let (mut tokenizer, kind) = assemble(vocabulary, model.into(), parts)?;
    if !vocabulary.charsmap.is_empty() {
        let map = Precompiled::from(vocabulary.charsmap)
            .map_err(|error| format!("tokenizer.ggml.precompiled_charsmap: {error:?}"))?;
        tokenizer
            .with_normalizer(Some(NormalizerWrapper::from(map)))
            .map_err(|error| error.to_string())?;
    }
    Ok((tokenizer, kind))
}

/// What surrounds the model, as tokenizer.json would say it.
struct Parts {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Value,
    add_bos: bool,
    add_eos: bool,
}

fn assemble(
    vocabulary: &Vocabulary,
    model: ModelWrapper,
    parts: Parts,
) -> Result<(Tokenizer, DecoderKind), String> {
    fn read<T: serde::de::DeserializeOwned>(part: Option<Value>) -> Result<Option<T>, String> {
        part.map(serde_json::from_value)
            .transpose()
            .map_err(|error| error.to_string())
    }
    let text = |error: tokenizers::Error| error.to_string();
    let kind = decoder_kind::of_decoder(&parts.decoder);
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(read::<NormalizerWrapper>(parts.normalizer)?)
        .map_err(text)?;
    tokenizer.with_pre_tokenizer(read::<PreTokenizerWrapper>(parts.pre_tokenizer)?);
    tokenizer.with_decoder(read::<DecoderWrapper>(Some(parts.decoder))?);
    tokenizer
        .add_tokens(vocabulary.added_tokens())
        .map_err(text)?;
    let bos = vocabulary.bos.filter(|_| parts.add_bos);
    let eos = vocabulary.eos.filter(|_| parts.add_eos);
    if bos.is_some() || eos.is_some() {
        let template = vocabulary.template(bos, eos);
        tokenizer.with_post_processor(read::<PostProcessorWrapper>(Some(template))?);
    }
    Ok((tokenizer, kind))
}

impl Vocabulary<'_> {
    fn kind(&self, id: usize) -> i32 {
        self.types.get(id).copied().unwrap_or(1)
    }

    /// Tokens that are found in the text as they stand, before anything else:
    /// control tokens are special, user-defined ones are plain text.
    fn added_tokens(&self) -> Vec<AddedToken> {
        let named: HashSet<u32> = [self.bos, self.eos, self.unk].into_iter().flatten().collect();
        let token = |(id, content): (usize, &&str)| {
            let special = match self.kind(id) {
                UNKNOWN | CONTROL => true,
                USER_DEFINED => false,
                _ if named.contains(&(id as u32)) => true,
                _ => return None,
            };
            // A run of spaces is written by the merges, not found in the text.
            let blank = content.bytes().all(|byte| byte == b' ');
            (!blank).then(|| AddedToken::from(*content, special).normalized(false))
        };
        self.tokens.iter().enumerate().filter_map(token).collect()
    }

    /// Puts the named tokens around every text.
    fn template(&self, bos: Option<u32>, eos: Option<u32>) -> Value {
        let mut single = Vec::new();
        let mut special = serde_json::Map::new();
        let mut named = |id: u32, single: &mut Vec<Value>| {
            let token = self.tokens[id as usize];
            single.push(json!({"SpecialToken": {"id": token, "type_id": 0}}));
            special.insert(
                token.to_owned(),
                json!({"id": token, "ids": [id], "tokens": [token]}),
            );
        };
        if let Some(id) = bos {
            named(id, &mut single);
        }
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        if let Some(id) = eos {
            named(id, &mut single);
        }
        let pair = [
            json!({"Sequence": {"id": "A", "type_id": 0}}),
            json!({"Sequence": {"id": "B", "type_id": 1}}),
        ];
        json!({"type": "TemplateProcessing", "single": single, "pair": pair,
               "special_tokens": special})
    }
}

fn bpe(
    tokens: &[String],
    merges: Vec<merges::Merge>,
    options: impl FnOnce(BpeBuilder) -> BpeBuilder,
) -> Result<BPE, String> {
    let mut ids = Vocab::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
        if let Some(first) = ids.insert(token.clone(), id as u32) {
            return Err(format!("tokens {first} and {id} are both {token:?}"));
        }
    }
    options(BPE::builder().vocab_and_merges(ids, merges))
        .build()
        .map_err(|error| error.to_string())
}

/// Byte-level tokens are spelled with one printable character per byte. A
/// token with any other character was left as plain text: spell it anew.
fn in_byte_alphabet(token: &str) -> String {
    if token.chars().all(is_byte_character) {
        token.to_owned()
    } else {
        token.bytes().map(byte_character).collect()
    }
}

const fn prints_as_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Bytes that don't print as themselves are numbered from U+0100.
fn byte_character(byte: u8) -> char {
    if prints_as_itself(byte) {
        char::from(byte)
    } else {
        let before = (0..byte).filter(|&other| !prints_as_itself(other)).count();
        char::from_u32(0x100 + before as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

fn is_byte_character(character: char) -> bool {
    match u8::try_from(character) {
        Ok(byte) => prints_as_itself(byte),
        Err(_) => (0x100..0x144).contains(&u32::from(character)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet() {
        assert_eq!(byte_character(b' '), 'Ġ');
        assert_eq!(byte_character(b'\n'), 'Ċ');
        assert_eq!(byte_character(0xAD), 'Ń');
        assert!((0..=255).map(byte_character).all(is_byte_character));
        assert_eq!(in_byte_alphabet("Ġhi"), "Ġhi");
        assert_eq!(in_byte_alphabet("a b"), "aĠb");
    }
}
