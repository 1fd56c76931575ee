"""Models with random weights in the shapes that the table is about. Needs MLX's
Python package."""

import json
from dataclasses import dataclass

import mlx.core as mx

GROUPS = {"affine": 64, "mxfp4": 32, "nvfp4": 16}


@dataclass
class Shape:
    layers: int
    size: int
    heads: int
    key_heads: int
    head: int
    hidden: int  # of an expert, where there are some
    vocabulary: int
    bits: int = 4  # 16: bfloat16
    experts: int = 0
    chosen: int = 0
    mode: str = "affine"

    def group(self):
        return GROUPS[self.mode]

    def bytes_of_group(self):
        """Of a scale, and of a zero."""
        return 4 if self.mode == "affine" else 1


SHAPES = {
    "8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "8b-bf16": Shape(32, 4096, 32, 8, 128, 14336, 128256, bits=16),
    "8b-mxfp4": Shape(32, 4096, 32, 8, 128, 14336, 128256, mode="mxfp4"),
    "8b-nvfp4": Shape(32, 4096, 32, 8, 128, 14336, 128256, mode="nvfp4"),
    "30b-a3b": Shape(48, 2048, 32, 4, 128, 768, 151936, experts=128, chosen=8),
}
SMALL = {  # to try this program out, and to compare tokens
    "8b": Shape(2, 512, 16, 4, 64, 1024, 1000),
    "8b-bf16": Shape(2, 512, 16, 4, 64, 1024, 1000, bits=16),
    "8b-mxfp4": Shape(2, 512, 16, 4, 64, 1024, 1000, mode="mxfp4"),
    "8b-nvfp4": Shape(2, 512, 16, 4, 64, 1024, 1000, mode="nvfp4"),
    "30b-a3b": Shape(2, 512, 16, 4, 64, 512, 1000, experts=16, chosen=4),
}


def config(shape):
    made = {
        "model_type": "qwen3_moe" if shape.experts else "llama",
        "hidden_size": shape.size, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_heads, "head_dim": shape.head,
        "intermediate_size": shape.hidden, "vocab_size": shape.vocabulary,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "eos_token_id": []}
    if shape.experts:
        made |= {"num_experts": shape.experts,
                 "num_experts_per_tok": shape.chosen,
                 "moe_intermediate_size": shape.hidden,
                 "norm_topk_prob": True, "decoder_sparse_step": 1,
                 "mlp_only_layers": []}
    if shape.bits < 16:
        made["quantization"] = {"group_size": shape.group(),
                                "bits": shape.bits, "mode": shape.mode}
        for i in range(shape.layers if shape.experts else 0):
            made["quantization"][f"model.layers.{i}.mlp.gate"] = {
                "group_size": shape.group(), "bits": 8}
    return made


def layer_matrices(shape):
    """Yields name, shape, bits of the matrices of a layer."""
    def linear(name, rows, columns):
        return name, (rows, columns), shape.bits
    keys = shape.key_heads * shape.head
    yield linear("self_attn.q_proj", shape.heads * shape.head, shape.size)
    yield linear("self_attn.k_proj", keys, shape.size)
    yield linear("self_attn.v_proj", keys, shape.size)
    yield linear("self_attn.o_proj", shape.size, shape.heads * shape.head)
    if shape.experts:
        yield "mlp.gate", (shape.experts, shape.size), min(shape.bits * 2, 16)
    inner = "mlp.switch_mlp." if shape.experts else "mlp."
    stack = (shape.experts,) if shape.experts else ()
    for name, rows, columns in (("gate_proj", shape.hidden, shape.size),
                                ("up_proj", shape.hidden, shape.size),
                                ("down_proj", shape.size, shape.hidden)):
        yield inner + name, (*stack, rows, columns), shape.bits


def add_matrix(tensors, name, sizes, bits, mode="affine"):
    *rows, columns = sizes
    if bits == 16:
        weight = mx.random.normal(sizes) * (0.3 / columns**0.5)
        tensors[name + ".weight"] = weight.astype(mx.bfloat16)
        return
    words = mx.random.randint(
        0, 2**31 - 1, (*rows, columns * bits // 32), dtype=mx.int32)
    tensors[name + ".weight"] = words.view(mx.uint32)
    groups = (*rows, columns // GROUPS[mode])
    if mode != "affine":
        # 2^-11 to 2^-9 as exponents, or 2^-9 and 2^-8 as floats of 8 bits.
        low, high = (116, 119) if mode == "mxfp4" else (1, 3)
        tensors[name + ".scales"] = mx.random.randint(
            low, high, groups).astype(mx.uint8)
        return
    step = 0.3 / columns**0.5 * 8 / 2 ** (bits - 1)
    steps = mx.random.uniform(0.5, 1.5, groups) * step
    steps = steps.astype(mx.bfloat16)
    middle = -(2**bits - 1) / 2
    tensors[name + ".scales"] = steps
    tensors[name + ".biases"] = (steps * middle).astype(mx.bfloat16)


TOKENIZER = {  # that the reference does not start without
    "version": "1.0", "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}


def write(folder, shape):
    mx.random.seed(0)
    folder.mkdir(parents=True)
    for name, content in (
            ("config", config(shape)), ("tokenizer", TOKENIZER),
            ("tokenizer_config", {"tokenizer_class": "PreTrainedTokenizerFast"})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    ones = {size: mx.ones(size, mx.bfloat16) for size in (shape.size, shape.head)}
    tensors = {"model.norm.weight": ones[shape.size]}
    for name in ("model.embed_tokens", "lm_head"):
        add_matrix(tensors, name, (shape.vocabulary, shape.size), shape.bits,
                   shape.mode)
    mx.save_safetensors(str(folder / "model-head.safetensors"), tensors)
    for i in range(shape.layers):
        start = f"model.layers.{i}."
        tensors = {start + norm + ".weight": ones[shape.size] for norm in (
            "input_layernorm", "post_attention_layernorm")}
        if shape.experts:
            for norm in ("q_norm", "k_norm"):
                tensors[f"{start}self_attn.{norm}.weight"] = ones[shape.head]
        for name, sizes, bits in layer_matrices(shape):
            add_matrix(tensors, start + name, sizes, bits, shape.mode)
        mx.save_safetensors(str(folder / f"model-{i:02}.safetensors"), tensors)


def bytes_of_token(shape):
    """That a token of decoding reads of the weights."""
    def matrix(sizes, bits):
        count = 1
        for size in sizes:
            count *= size
        if bits == 16:
            return count * 2
        return count * (bits / 8 + shape.bytes_of_group() / shape.group())
    total = matrix((shape.vocabulary, shape.size), shape.bits)
    for name, sizes, bits in layer_matrices(shape):
        chosen = shape.chosen / shape.experts if "switch" in name else 1
        total += shape.layers * chosen * matrix(sizes, bits)
    return total
