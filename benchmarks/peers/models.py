"""Files to compare engines on: the default models, SmolLM2 as Q4_0, and llamas of
any size with random weights, as GGUF (Q4_0) and in MLX's format (4 bits, groups of
64). Both have 4.5 bits a weight. Needs gguf and numpy."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import random_gguf

# layers, hidden, query heads, key heads, size of a head, feed-forward
SHAPES = {
    "1b": (16, 2048, 32, 8, 64, 8192),  # Llama 3.2 1B
    "8b": (32, 4096, 32, 8, 128, 14336),  # Llama 3.1 8B
}
VOCABULARY = 128256
TIED = {"1b": True, "8b": False}
GROUP = 64


def matrices(shape):
    """Yields name in MLX's format, name in GGUF, rows, columns."""
    layers, hidden, heads, key_heads, head, feed_forward = SHAPES[shape]
    yield "model.embed_tokens", "token_embd", VOCABULARY, hidden
    if not TIED[shape]:
        yield "lm_head", "output", VOCABULARY, hidden
    for i in range(layers):
        for mlx, name, rows, columns in (
                ("self_attn.q_proj", "attn_q", heads * head, hidden),
                ("self_attn.k_proj", "attn_k", key_heads * head, hidden),
                ("self_attn.v_proj", "attn_v", key_heads * head, hidden),
                ("self_attn.o_proj", "attn_output", hidden, heads * head),
                ("mlp.gate_proj", "ffn_gate", feed_forward, hidden),
                ("mlp.up_proj", "ffn_up", feed_forward, hidden),
                ("mlp.down_proj", "ffn_down", hidden, feed_forward)):
            yield f"model.layers.{i}.{mlx}", f"blk.{i}.{name}", rows, columns


def norms(shape):
    for i in range(SHAPES[shape][0]):
        yield (f"model.layers.{i}.input_layernorm", f"blk.{i}.attn_norm")
        yield (f"model.layers.{i}.post_attention_layernorm", f"blk.{i}.ffn_norm")
    yield "model.norm", "output_norm"


def write_gguf(path, shape, vocabulary_of):
    layers, hidden, heads, key_heads, head, feed_forward = SHAPES[shape]
    random_gguf.write(
        path,
        random_gguf.Sizes(layers, hidden, feed_forward, heads, key_heads, head,
                          VOCABULARY),
        [(name, rows, columns) for _, name, rows, columns in matrices(shape)],
        [name for _, name in norms(shape)],
        lambda writer: copy_vocabulary(writer, gguf.GGUFReader(vocabulary_of)))


def copy_vocabulary(writer, reader):
    """The vocabulary of a file, filled up with tokens that no text has."""
    def field(name):
        return reader.fields["tokenizer.ggml." + name].contents()
    tokens, types = field("tokens"), field("token_type")
    missing = range(VOCABULARY - len(tokens))
    writer.add_tokenizer_model(field("model"))
    writer.add_tokenizer_pre(field("pre"))
    writer.add_token_list(tokens + [f"<|unused_{i}|>" for i in missing])
    writer.add_token_types(
        types + [int(gguf.TokenType.UNUSED) for _ in missing])
    writer.add_token_merges(field("merges"))
    writer.add_bos_token_id(field("bos_token_id"))
    writer.add_eos_token_id(field("eos_token_id"))
    writer.add_add_bos_token(False)


def bfloat16(values):
    return (numpy.asarray(values, numpy.float32).view(numpy.uint32) >> 16).astype(
        numpy.uint16)


def write_mlx(folder, shape):
    layers, hidden, heads, key_heads, head, feed_forward = SHAPES[shape]
    folder.mkdir()
    tensors = {}
    for name, _, rows, columns in matrices(shape):
        step = numpy.full((rows, columns // GROUP), random_gguf.scale(columns))
        tensors[name + ".weight"] = ("U32", (rows, columns // 8), None)
        tensors[name + ".scales"] = ("BF16", step.shape, bfloat16(step))
        tensors[name + ".biases"] = ("BF16", step.shape, bfloat16(step * -7.5))
    for name, _ in norms(shape):
        tensors[name + ".weight"] = (
            "BF16", (hidden,), bfloat16(numpy.ones(hidden)))
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "head_dim": head,
        "intermediate_size": feed_forward, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": TIED[shape], "torch_dtype": "bfloat16",
        "quantization": {"group_size": GROUP, "bits": 4}}))


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, array, or None for random bits)."""
    sizes = {"U32": 4, "BF16": 2}
    random = numpy.random.default_rng(0)
    header, offset = {}, 0
    for name, (dtype, shape, _) in tensors.items():
        end = offset + int(numpy.prod(shape)) * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape),
                        "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dtype, shape, array in tensors.values():
            if array is None:
                array = random.integers(0, 256, shape[0] * shape[1] * 4,
                                        numpy.uint8)
            file.write(array.tobytes())


def files(folder, name, known, quantize):
    """The model's file for the others and for us, made where it is missing.

    known: the folder of the default models; quantize: llama-quantize."""
    name = str(name)
    smollm2 = known / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if name == "smollm2":
        return smollm2, smollm2
    if name == "gemma":
        gemma = known / "gemma-3-270m-q4_k_m.gguf"
        return gemma, gemma
    path = folder / f"{name}.gguf"
    if name == "smollm2-q4_0":
        if not path.exists():
            subprocess.run([quantize, "--allow-requantize", "--pure", smollm2,
                            path, "Q4_0"], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return path, path
    if not path.exists():
        write_gguf(path, name, smollm2)
    ours = folder / name
    if not (ours / "config.json").exists():
        write_mlx(ours, name)
    return path, ours

