#!/usr/bin/env python3
"""make_expected.py [--check]: what transformers computes with tiny models.

Model types that the reference lacks, or gets wrong, are compared with
transformers instead. This writes expected/<name>.json: the configuration, the
names and shapes of the tensors, some tokens, and the logits after three of them.
Weights are not stored: every number is made from its tensor's name and its
index, here and in transformers_test.cc. --check compares with what is there.
Needs torch and transformers; without them it ends with 77.
"""

import argparse
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "expected"

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "arcee": COMMON | {"head_dim": 8, "rope_theta": 500.0},
    "arcee_yarn": COMMON
    | {
        "model_type": "arcee",
        "num_hidden_layers": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "hy_v3": COMMON
    | {
        "head_dim": 16,
        "num_hidden_layers": 3,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_shared_experts": 2,
        "moe_intermediate_size": 16,
    },
    "hy_v3_dense_between": COMMON
    | {
        "model_type": "hy_v3",
        "head_dim": 8,
        "num_hidden_layers": 2,
        "num_experts": 3,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 24,
        "router_scaling_factor": 0.5,
        "mlp_layer_types": ["sparse", "dense"],
        "tie_word_embeddings": True,
    },
}
TOKENS = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 32]
POSITIONS = [0, 5, 11]


def numbers(name, shape):
    """From -1 to 1, by murmur3's finalizer of the name's hash and the index."""
    import numpy as np

    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 % 2**32  # FNV-1a
    x = np.arange(int(np.prod(shape)), dtype=np.uint32) + np.uint32(seed)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return (x.astype(np.float64) / 2**31 - 1).astype(np.float32).reshape(shape)


def drawn(name, shape):
    values = numbers(name, shape)
    if "norm" in name and len(shape) == 1:
        return 1 + 0.3 * values
    return values * (2.0 / shape[-1] ** 0.5)


def run(name, changes):
    import torch
    import transformers

    config = {"model_type": name} | changes
    kind = config.pop("model_type")
    made = transformers.AutoConfig.for_model(kind, **config)
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    model = model.float().eval()
    # As it is saved: published checkpoints have these names.
    state = model.state_dict()
    tied = made.tie_word_embeddings
    shapes = {}
    for key, value in state.items():
        if key == "lm_head.weight" and tied:
            continue
        if value.is_floating_point():
            shapes[key] = list(value.shape)
            value.copy_(torch.from_numpy(drawn(key, shapes[key])))
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
    return {
        "config": {"model_type": kind} | config,
        "tensors": shapes,
        "tokens": TOKENS,
        "positions": POSITIONS,
        "logits": [[float(f"{x:.6g}") for x in row] for row in logits[POSITIONS].tolist()],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}")
        return 77
    FOLDER.mkdir(exist_ok=True)
    failed = 0
    for name, changes in MODELS.items():
        made = run(name, changes)
        path = FOLDER / f"{name}.json"
        if arguments.check:
            kept = json.loads(path.read_text())
            gap = max(
                abs(x - y)
                for rows in zip(made["logits"], kept["logits"])
                for x, y in zip(*rows)
            )
            print(f"{name}: {gap:.1e}")
            failed += gap > 1e-4 or made["tensors"] != kept["tensors"]
            continue
        lines = [f'"{key}": {json.dumps(value)}' for key, value in made.items()]
        path.write_text("{" + ",\n".join(lines) + "}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
