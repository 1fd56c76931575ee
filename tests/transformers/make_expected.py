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
import tempfile
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
    "deepseek_v4": COMMON
    | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "partial_rotary_factor": 0.5,
        "q_lora_rank": 16,
        "o_groups": 2,
        "o_lora_rank": 8,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "compress_rates": {
            "compressed_sparse_attention": 2,
            "heavily_compressed_attention": 4,
        },
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
        "index_n_heads": 8,
        "index_head_dim": 16,
        "index_topk": 2,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 3,
        "swiglu_limit": 1.0,
    },
    # Where the reference is at fault.
    "dots1": COMMON
    | {
        "head_dim": 8,
        "attention_bias": True,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "ernie4_5_moe": COMMON
    | {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_layer_start_index": 0,
        "moe_num_shared_experts": 1,
    },
    "falcon_h1": COMMON
    | {
        "head_dim": 8,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_d_conv": 3,
        "key_multiplier": 0.5,
        "attention_in_multiplier": 0.75,
        "attention_out_multiplier": 1.5,
        "ssm_in_multiplier": 1.25,
        "ssm_out_multiplier": 0.5,
        "ssm_multipliers": [0.5, 0.75, 1.25, 1.5, 2.0],
        "mlp_multipliers": [0.75, 1.25],
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.5,
    },
    "mixtral": COMMON
    | {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.5},
    },
    "recurrent_gemma": COMMON
    | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "lru_width": 64,
        "conv1d_width": 3,
        "attention_window_size": 4,
        "attention_bias": True,
        "block_types": ["recurrent", "attention", "recurrent"],
    },
}
del MODELS["deepseek_v4"]["intermediate_size"]
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


def published(config):
    """What config.json says about the architecture."""
    import transformers

    general = transformers.PreTrainedConfig().to_dict()
    fields = {k: v for k, v in config.to_dict().items() if v is not None and k not in general}
    fields.pop("time_step_limit", None)  # infinite, which JSON has no number for
    fields["tie_word_embeddings"] = config.tie_word_embeddings
    return {"model_type": config.model_type} | fields


def run(name, changes):
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    config = {"model_type": name} | changes
    kind = config.pop("model_type")
    made = transformers.AutoConfig.for_model(kind, **config)
    model = transformers.AutoModelForCausalLM.from_config(made).float()
    # Names and shapes are those of a published checkpoint.
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        weights = load_file(path)
        integers = {}  # and what they are below
        for key, value in weights.items():
            shape = list(value.shape)
            if value.is_floating_point():
                weights[key] = torch.from_numpy(drawn(key, shape))
            else:  # numbers of experts
                some = (numbers(key, shape) + 1) * made.n_routed_experts / 2
                weights[key] = torch.from_numpy(some.astype("int64"))
                integers[key] = made.n_routed_experts
        save_file(weights, path, {"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
    return {
        "config": published(made),
        "tensors": {key: list(value.shape) for key, value in weights.items()},
        "integers": integers,
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
