"""Trains small tokenizers and writes the ids that Python's tokenizers give.

make_token_goldens.py [FOLDER]: with the reference's Python. Writes
tokenizers/*.json and token_goldens.json; FOLDER holds the GGUF files of the two
real models, whose tokenizers transformers builds with code of its own.
"""
import base64
import json
import pathlib
import random
import struct
import sys

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import AddedToken

HERE = pathlib.Path(__file__).parent
COUNT = 2000
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12,345.67 degrees!",
    "def main():\n    return {'a': [1, 2, 3]}  # comment\n\n\tx += 1",
    "Ünïcödé naïve café — “quotes” … 東京で日本語を話す 中文字符 한국어 عربى हिन्दी",
    "We'll they've I'm you'd can't <tag> </s> https://example.org/a?b=c&d=e",
] * 20
PIECES = [
    "the ", "The", " quick", "ing", "tion ", "'ll", "'S", "don't", " ", "  ", "    ", "\t", "\n",
    "\n\n", "\r\n", " \n ", "0", "12", "345", "6789012", "3.14", "٣", "½", "²", ".", "...", "!?",
    "--", "()", "{}[];", "<", ">", "/", "\\", "é", "e\u0301", "ß", "İ", "ñ", "Ω", "я", "ж", "日本",
    "語", "中文", "한국어", "ア", "ｱ", "م", "हि", "ไทย", "🎉", "👨‍👩‍👧‍👦", "🇩🇪", "👍🏽", "\u200b", "\u200d",
    "\ufeff", "\u00a0", "\u3000", "\u2028", "▁", "▁▁", "Ġ", "Ċ", "<s>", "</s>", "<unk>", "<pad>",
    "<bos>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<0x0A>", "<0xE2>",
    "[INST]", "<|im_", "end|>", "a", "b", "Z", "x" * 9, "\x00", "\x7f", "\ufffd", "\U0010ffff",
]
BROKEN = [b"\x80", b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x8e", b"\xed\xa0\x80", b"\xc0\xaf"]


def strings():
    chance = random.Random(20240705)
    runs = [character * size for character in [" ", "\n", "a", "0", "é", "🎉", "▁", "-"]
            for size in [2, 3, 17, 64, 301]]
    made = [text.encode() for text in runs] + [b"", b" "]
    while len(made) < COUNT:
        text = b"".join(chance.choice(PIECES).encode() for _ in range(chance.randint(1, 12)))
        if chance.random() < 0.15:
            at = chance.randint(0, len(text))
            text = text[:at] + chance.choice(BROKEN) + text[at:]
        made.append(text)
    return made


def trained():
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False))
    yield "byte_level", byte_level

    cased = Tokenizer(models.BPE())
    cased.normalizer = normalizers.NFC()
    cased.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    cased.decoder = decoders.ByteLevel()
    cased.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_end|>"], show_progress=False))
    cased.add_tokens([AddedToken("[INST]", lstrip=True, rstrip=True, normalized=False)])
    yield "split_pattern", cased

    spm = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spm.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spm.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                     decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    spm.train_from_iterator(
        [word for line in CORPUS for word in line.split(" ")], trainers.BpeTrainer(
            vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"] +
            [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False))
    content = json.loads(spm.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < 3]
    yield "sentencepiece", Tokenizer.from_str(json.dumps(content))

    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
        show_progress=False))
    yield "unigram", unigram


def metadata(path):
    """The tokenizer's keys of a GGUF file."""
    formats = ["B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d"]
    with open(path, "rb") as file:
        def number(kind):
            size = struct.calcsize(kind)
            return struct.unpack("<" + kind, file.read(size))[0]

        def value(kind):
            if kind == 8:
                return file.read(number("Q")).decode()
            if kind == 9:
                inner = number("I")
                return [value(inner) for _ in range(number("Q"))]
            return number(formats[kind])

        assert file.read(4) == b"GGUF" and number("I") in (2, 3)
        number("Q")
        return {value(8): value(number("I")) for _ in range(number("Q"))}


def real(folder):
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer)
    for name, file in [("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                       ("gemma3", "gemma-3-270m-q4_k_m.gguf")]:
        keys = metadata(folder / file)
        content = {short: keys["tokenizer." + key]
                   for key, short in GGUF_TOKENIZER_MAPPING["tokenizer"].items()
                   if "tokenizer." + key in keys}
        tokenizer, _ = convert_gguf_tokenizer(keys["general.architecture"], content)
        if name == "smollm2":
            # Its pre-tokenizer, "smollm", is one that transformers leaves out.
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False)])
        yield name, tokenizer


def fingerprint(ids):
    """FNV-1a of the ids, 32 bits."""
    value = 0x811C9DC5
    for number in ids:
        for byte in number.to_bytes(4, "little"):
            value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def main():
    texts = strings()
    goldens = {"strings": [base64.b64encode(text).decode() for text in texts], "tokenizers": {}}
    made = list(trained())
    for name, tokenizer in made:
        (HERE / "tokenizers").mkdir(exist_ok=True)
        (HERE / f"tokenizers/{name}.json").write_text(tokenizer.to_str(), encoding="utf-8")
    if len(sys.argv) > 1:
        made += real(pathlib.Path(sys.argv[1]))
    for name, tokenizer in made:
        encoded = [tokenizer.encode(text.decode("utf-8", "replace"), add_special_tokens=False).ids
                   for text in texts]
        goldens["tokenizers"][name] = {
            "ids": [fingerprint(ids) for ids in encoded],
            "texts": [fingerprint(tokenizer.decode(ids, skip_special_tokens=False).encode())
                      for ids in encoded]}
    (HERE / "token_goldens.json").write_text(json.dumps(goldens, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
