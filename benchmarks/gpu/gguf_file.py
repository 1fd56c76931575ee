"""The same shapes as a GGUF file, for llama.cpp. Needs gguf and numpy."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import random_gguf

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}


def write(path, shape, layer_matrices):
    """A llama without a tokenizer; layer_matrices: name, (rows, columns), ..."""
    layers = [f"blk.{i}." for i in range(shape.layers)]
    random_gguf.write(
        path,
        random_gguf.Sizes(shape.layers, shape.size, shape.hidden, shape.heads,
                          shape.key_heads, shape.head, shape.vocabulary),
        [(name, shape.vocabulary, shape.size) for name in ("token_embd", "output")]
        + [(layer + NAMES[name], *sizes)
           for layer in layers for name, sizes, *_ in layer_matrices],
        ["output_norm"] + [layer + name for layer in layers
                           for name in ("attn_norm", "ffn_norm")],
        lambda writer: writer.add_tokenizer_model("no_vocab"))
