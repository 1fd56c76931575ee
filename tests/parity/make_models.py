#!/usr/bin/env python3
"""make_models.py FOLDER: tiny models of every family with the reference's results.

FOLDER/models/<family>/<variant>/ holds config.json, model.safetensors and
expected.safetensors; FOLDER/pieces the reference's samplers, caches and
tokenizers. The work is done by oracle.py, which is looked for where
MLXLM_ORACLE says and beside the checkout, in ../shared/oracle. Without it
FOLDER/models/SKIPPED says why there is nothing, and the tests skip.
"""

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import expert_variants
import recurrent_variants

ROOT = Path(__file__).resolve().parents[2]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 16,
    "beta_slow": 2,
}
LINEAR = {"type": "linear", "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
PROPORTIONAL = {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0}
MROPE = {"type": "mrope", "mrope_section": [2, 3, 3]}


def longrope(pairs, name="longrope"):
    return {
        "type": name,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * pairs,
        "long_factor": [1.0 + 0.25 * i for i in range(pairs)],
    }


ONE_KV_HEAD = {"num_key_value_heads": 1}
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
BIASES = {"attention_bias": True, "mlp_bias": True}

# Per family: what each variant changes in the oracle's configuration.
# None removes a field.
VARIANTS = {
    "llama": [
        TIED | BIASES | ONE_KV_HEAD | {"head_dim": None, "rope_scaling": LLAMA3},
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 6,
        },
        UNTIED | {"rope_scaling": YARN, "rope_traditional": True, "num_key_value_heads": None},
        {"rope_scaling": DYNAMIC, "max_position_embeddings": 16},
        {"rope_scaling": longrope(16), "rope_theta": 5000.0},
        {"rope_scaling": PROPORTIONAL, "mlp_bias": True},
        {"rope_scaling": dict(YARN, type="deepseek_yarn", mscale=1.2, mscale_all_dim=0.7)},
        {"rope_scaling": LINEAR, "attention_bias": True, "tie_word_embeddings": None},
    ],
    "mistral": [
        {"sliding_window": 4, "head_dim": 24, "hidden_size": 48, "intermediate_size": 80},
        TIED | {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": None},
        {"rope_scaling": dict(LLAMA3, factor=8.0), "rope_theta": 1e6, "model_type": "xverse"},
    ],
    "qwen2": [
        TIED | ONE_KV_HEAD | {"rope_scaling": YARN},
        {"rope_scaling": LINEAR, "rope_theta": None},
        {"rope_scaling": DYNAMIC, "max_position_embeddings": 20, "rope_traditional": True},
        {"rope_scaling": MROPE, "num_attention_heads": 8, "use_sliding_window": True},
    ],
    "qwen3": [
        TIED | {"head_dim": 16, "num_key_value_heads": 4},
        {
            "rope_theta": None,
            "rope_parameters": {"rope_type": "llama3", "rope_theta": 7000.0, "factor": 4.0},
        },
        ONE_KV_HEAD | {"rope_scaling": YARN, "rms_norm_eps": 1e-3},
    ],
    "gemma": [
        ONE_KV_HEAD | {"head_dim": 32, "rope_traditional": True},
        {"num_key_value_heads": 4, "num_hidden_layers": 3, "rope_theta": None},
        {"hidden_size": 96, "num_attention_heads": 2, "rms_norm_eps": 1e-3},
    ],
    "gemma2": [
        {"num_key_value_heads": 4, "query_pre_attn_scalar": 64.0, "attn_logit_softcapping": 5.0},
        ONE_KV_HEAD | {"final_logit_softcapping": 4.0, "rope_traditional": True},
        {"query_pre_attn_scalar": None, "attn_logit_softcapping": None, "head_dim": 32},
    ],
    "gemma3_text": [
        {"sliding_window_pattern": 1, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        UNTIED | ONE_KV_HEAD | {"sliding_window": 4, "sliding_window_pattern": 2},
        {"sliding_window": 30, "query_pre_attn_scalar": None, "rope_local_base_freq": None},
        {"head_dim": 32, "num_key_value_heads": 4, "num_hidden_layers": 6, "rope_theta": None},
    ],
    "gemma3": [
        {"text_config": UNTIED | {"sliding_window": 5, "head_dim": 32}},
        {"text_config": {"num_attention_heads": None, "num_key_value_heads": None, "head_dim": 8}},
        {"text_config": ONE_KV_HEAD | {"rope_scaling": {"type": "linear", "factor": 3.0}}},
    ],
    "phi3small": [
        ONE_KV_HEAD | {"dense_attention_every_n_layers": 1, "gegelu_limit": 0.5, "mup_use_scaling": False, "rope_position_scale": 0.5, "mup_embedding_multiplier": 3.0, "blocksparse_vert_stride": 3}
    ],
    "phi3": [
        TIED
        | {
            "rope_scaling": longrope(4),
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 64,
        },
        {"rope_scaling": None, "rope_traditional": True, "num_key_value_heads": None},
        ONE_KV_HEAD | {"rope_scaling": longrope(8, "su"), "max_position_embeddings": 4096},
        {"rope_scaling": {"type": "yarn", "long_factor": [1.0]}, "num_hidden_layers": 3},
    ],
    "smollm3": [
        UNTIED | {"no_rope_layers": [1, 0, 0, 1], "attention_bias": True},
        {"no_rope_layer_interval": 3, "rope_scaling": LLAMA3, "mlp_bias": True},
        ONE_KV_HEAD | {"no_rope_layer_interval": None, "head_dim": 24, "rope_scaling": YARN},
    ],
    "granite": [
        UNTIED | BIASES | {"logits_scaling": 8.0, "residual_multiplier": 0.22},
        ONE_KV_HEAD | {"rope_scaling": LINEAR, "attention_multiplier": 0.1},
        {"rope_scaling": LLAMA3, "embedding_multiplier": 12.0, "mlp_bias": True},
    ],
    "olmo2": [
        TIED | BIASES | {"head_dim": 24},
        ONE_KV_HEAD | {"rope_scaling": LLAMA3, "rope_traditional": True},
        {"num_key_value_heads": None, "rope_scaling": YARN, "rms_norm_eps": 1e-3},
    ],
    "cohere2": [
        {"attention_bias": True, "layer_norm_bias": True, "num_hidden_layers": 4},
        {"sliding_window_pattern": 3, "num_hidden_layers": 6, "sliding_window": 4},
        ONE_KV_HEAD | {"head_dim": 32, "num_attention_heads": 2, "logit_scale": None},
    ],
    "glm4": [
        {"attention_bias": False, "partial_rotary_factor": 1.0, "rope_traditional": False},
        ONE_KV_HEAD | {"head_dim": 32, "partial_rotary_factor": 0.25},
        {"num_key_value_heads": 4, "num_hidden_layers": 3, "rope_theta": 500.0},
    ],
    "starcoder2": [
        UNTIED | ONE_KV_HEAD,
        {"num_key_value_heads": 4, "norm_epsilon": None, "rope_theta": None},
        {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3},
    ],
    "mixtral": [
        TIED | {"num_local_experts": 8, "num_experts_per_tok": 3},
        ONE_KV_HEAD | {"num_experts_per_tok": 1, "rope_traditional": True},
        {"num_local_experts": 3, "rope_theta": None, "rms_norm_eps": 1e-3},
    ],
    "qwen2_moe": [
        {"num_experts": 6, "num_experts_per_tok": 4, "num_key_value_heads": None},
        ONE_KV_HEAD | {"num_experts_per_tok": 1, "shared_expert_intermediate_size": 32},
        {"rope_traditional": True, "rope_theta": None, "moe_intermediate_size": 64},
    ],
    "qwen3_moe": [
        {"norm_topk_prob": False, "decoder_sparse_step": 2, "num_hidden_layers": 4},
        TIED | {"mlp_only_layers": [0], "num_experts": 8, "num_experts_per_tok": 4},
        ONE_KV_HEAD | {"num_experts": 0, "head_dim": 32},
        {"norm_topk_prob": False, "num_experts_per_tok": 4, "moe_intermediate_size": 32},
    ],
    "afm7": [{"num_kv_heads": 1, "num_kv_reuse_layers": 1, "hidden_dim_scale_factor": 2.0}, {"num_kv_reuse_layers": 3, "num_heads": 2}],
    "apertus": [TIED | ONE_KV_HEAD | {"mlp_bias": True, "rope_scaling": LLAMA3}],
    "bitnet": [UNTIED | BIASES | ONE_KV_HEAD | {"rope_scaling": LINEAR, "hidden_size": 128}],
    "cohere": [BIASES | ONE_KV_HEAD | {"layer_norm_bias": True, "use_qk_norm": True}],
    "ernie4_5": [TIED | ONE_KV_HEAD | {"use_bias": True, "head_dim": 24}],
    "exaone": [UNTIED | BIASES | ONE_KV_HEAD | {"head_dim": None, "rope_scaling": YARN}],
    "exaone4": [TIED | {"sliding_window": 6, "sliding_window_pattern": "LG", "num_hidden_layers": 3}],
    "gemma3n": [{"text_config": ONE_KV_HEAD | {"altup_num_inputs": 3, "altup_active_idx": 1, "altup_coef_clip": 0.5, "altup_correct_scale": False, "vocab_size_per_layer_input": 48, "intermediate_size": [96, 64, 96, 128]}}],
    "gemma4": [{"text_config": UNTIED | {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 0}}],
    "gemma4_text": [{"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}, {"num_kv_shared_layers": 1, "use_double_wide_mlp": False, "layer_types": ["full_attention", "sliding_attention"] * 2, "rope_parameters": {"full_attention": {"rope_theta": 5000.0}}}, {"num_kv_shared_layers": 0, "global_head_dim": 0, "rope_traditional": True}],
    "gemma4_unified": [],
    "glm": [UNTIED | ONE_KV_HEAD | {"attention_bias": True, "head_dim": 24}],
    "gpt2": [{"n_head": 2, "layer_norm_epsilon": 1e-3}],
    "gpt_bigcode": [UNTIED | BIASES | {"multi_query": False, "n_head": 2}, {"attention_bias": False, "mlp_bias": False}],
    "gpt_neox": [{"use_parallel_residual": False, "rotary_pct": 1.0, "num_attention_heads": 2}],
    "gptj": [{"rotary_dim": 8, "n_head": 2}],
    "helium": [TIED | BIASES | ONE_KV_HEAD],
    "hunyuan_v1_dense": [TIED | ONE_KV_HEAD | {"attention_bias": True, "use_qk_norm": False, "head_dim": 24}, {"rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0}}],
    "internlm2": [TIED | {"bias": True, "rope_scaling": None, "rope_traditional": True}, ONE_KV_HEAD | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16}],
    "internlm3": [TIED | {"bias": True, "qkv_bias": True, "rope_scaling": None, "num_key_value_heads": None}],
    "iquestloopcoder": [TIED | BIASES | ONE_KV_HEAD | {"loop_window_size": 5, "rope_scaling": YARN}],
    "lille-130m": [{"n_kv_heads": 1, "layer_norm_eps": 1e-3}],
    "llava": [{"text_config": TIED | {"head_dim": 24}}],
    "mimo": [TIED | ONE_KV_HEAD | {"rope_scaling": LINEAR, "rope_traditional": True}],
    "minicpm": [ONE_KV_HEAD | {"rope_scaling": LINEAR, "rope_traditional": True, "scale_depth": 0.7}],
    "ministral3": [TIED | {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}, ONE_KV_HEAD | {"head_dim": None, "rope_parameters": {"rope_theta": 5000.0, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 4}}],
    "mistral3": [{"text_config": {"tie_word_embeddings": None, "model_type": "ministral3", "rope_parameters": {"rope_theta": 5000.0, "llama_4_scaling_beta": 0.5, "original_max_position_embeddings": 4}}}],
    "muse_glimmer": [TIED | {"layer_rope_theta": [0, 1.0, 1.0, 0], "post_norm_eps": None, "head_dim": 32}, ONE_KV_HEAD | {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}],
    "nanbeige": [{"num_loops": 3}, TIED | BIASES | {"loop_loss_weights": [0.5], "skip_loop_final_norm": True, "head_dim": 24}],
    "nanochat": [{"num_key_value_heads": 2, "rope_theta": 500.0, "num_hidden_layers": 3}],
    "nemotron-nas": [
        TIED | BIASES | {
            "hidden_act": "gelu_new",
            "rope_scaling": dict(LLAMA3, rope_type="llama3"),
            "block_configs": [
                {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
                {"attention": {"n_heads_in_group": 1}, "ffn": {"ffn_mult": 4.1}},
                {"attention": {"no_op": True}, "ffn": {"replace_with_linear": True}},
                {"attention": {"n_heads_in_group": 4}, "ffn": {"ffn_mult": 0.7}},
            ],
        }
    ],
    "nemotron": [TIED | BIASES | {"head_dim": 24, "partial_rotary_factor": 1.0, "rope_scaling": None}, ONE_KV_HEAD | {"rope_scaling": {"type": "linear", "factor": 2.5}}],
    "olmo": [{"mlp_hidden_size": 128, "embedding_size": 104, "rope_traditional": True, "n_heads": 2}],
    "olmo3": [TIED | {"layer_types": ["full_attention", "sliding_attention"] * 2, "attention_bias": True, "num_key_value_heads": None, "rope_scaling": YARN, "head_dim": 24}],
    "openelm": [{"share_input_output_layers": False, "normalize_qk_projections": False, "num_query_heads": [2, 6], "num_kv_heads": [1, 3], "ffn_multipliers": [0.6, 2.3]}],
    "phi": [ONE_KV_HEAD | {"partial_rotary_factor": 1.0, "num_hidden_layers": 3}],
    "pixtral": [{"text_config": {"num_attention_heads": None, "head_dim": 8, "num_key_value_heads": 8}}],
    "plamo": [{"n_shared_head": 4, "rope_traditional": True}],
    "plamo3": [UNTIED | {"sliding_window": 5, "sliding_window_pattern": 3, "rope_local_theta": None}],
    "qwen": [{"no_bias": False, "num_attention_heads": 2, "kv_channels": 32}],
    "qwen2_5_vl": [],
    "qwen2_vl": [{"text_config": TIED | ONE_KV_HEAD | {"rope_scaling": MROPE, "num_attention_heads": 8}}],
    "qwen3_vl": [{"text_config": TIED | {"rope_scaling": None}}],
    "seed_oss": [BIASES | ONE_KV_HEAD | {"tie_word_embeddings": False, "rope_scaling": YARN, "rope_traditional": True}],
    "spark2_5": [UNTIED | BIASES | {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}],
    "stablelm": [ONE_KV_HEAD | {"use_qkv_bias": False, "use_parallel_residual": True, "qk_layernorm": True}],
    "talkie": [{"num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16, "rope_theta": 500.0}],
    "telechat3": [TIED | BIASES | ONE_KV_HEAD | {"head_dim": 24, "rope_scaling": YARN}],
}

VARIANTS |= expert_variants.VARIANTS | recurrent_variants.VARIANTS

HF_LAYOUT = (
    "gemma4",
    "gpt2",
    "gpt_neox",
    "gptj",
    "mixtral",
    "qwen2_moe",
    "qwen2_vl",
    "qwen3_moe",
) + expert_variants.HF_LAYOUT + recurrent_variants.HF_LAYOUT

EVERYWHERE = [("affine", 4, 32), ("affine", 8, 64)]
SLOW = ("phi3small",)  # in the reference
NOT_QUANTIZED = ("afm7",)  # the reference can't
# Further formats: bits, group sizes and modes are spread over the families.
QUANTIZED = {
    "llama": [("affine", 2, 32), ("affine", 3, 64), ("nvfp4", 4, 16), ("mxfp8", 8, 32)],
    "qwen2": [("affine", 6, 32), ("mxfp4", 4, 32)],
    "qwen3": [("affine", 5, 32)],
    "gemma3_text": [("affine", 6, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32)],
    "gemma2": [("nvfp4", 4, 16)],
    "phi3": [("affine", 5, 64), ("mxfp4", 4, 32)],
    "glm4": [("affine", 3, 32), ("nvfp4", 4, 16)],
    "mixtral": [("affine", 6, 32), ("mxfp4", 4, 32)],
    "qwen3_moe": [("affine", 3, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)],
    "starcoder2": [("affine", 2, 64)],
}
# Half precision, in part quantized as well: family, dtype, bits.
HALF = [
    ("llama", "bfloat16", None),
    ("llama", "float16", None),
    ("llama", "bfloat16", 4),
    ("qwen2", "float16", 8),
    ("qwen3", "bfloat16", None),
    ("qwen3_moe", "bfloat16", 4),
    ("gemma2", "bfloat16", None),
    ("gemma3_text", "bfloat16", None),
    ("gemma3_text", "float16", 6),
    ("phi3", "bfloat16", None),
    ("cohere2", "bfloat16", None),
]


def changed(config, changes):
    """The configuration with the changes; None removes a field, "null" nulls it."""
    config = dict(config)
    for key, value in changes.items():
        if value is None:
            config.pop(key, None)
        elif value == "null":
            config[key] = None
        elif isinstance(value, dict) and isinstance(config.get(key), dict) and key == "text_config":
            config[key] = changed(config[key], value)
        else:
            config[key] = value
    return config


def find_oracle():
    path = Path(os.environ.get("MLXLM_ORACLE") or ROOT.parent / "shared/oracle/oracle.py")
    return path if path.is_file() else None


def load_oracle(path):
    spec = importlib.util.spec_from_file_location("oracle", path)
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)

    # olmo ends the program without it, but uses nothing of it.
    sys.modules.setdefault("hf_olmo", types.ModuleType("hf_olmo"))

    def not_needed(*args, **kwargs):
        raise NotImplementedError("batches are tested elsewhere")

    oracle.run_batch = not_needed
    return oracle


def note_quantized_runs(oracle):
    """The list that run_greedy's runs with quantized caches are noted in."""
    run_greedy = oracle.run_greedy
    runs = []

    def noting(model, tokens, n, **options):
        result = run_greedy(model, tokens, n, **options)
        if options.get("kv_bits"):
            runs.append((model, tokens, options["kv_bits"], options["kv_group_size"]))
        return result

    oracle.run_greedy = noting
    return runs


def quantized_caches(model, tokens, bits, group):
    """What the caches hold when the first step begins: tests start from it,
    because a number on the edge between two codes may fall to either side."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    tensors = {}
    caches = make_prompt_cache(model)
    model(mx.array(tokens[:-1])[None], cache=caches)
    for i, cache in enumerate(caches):
        if not hasattr(cache, "to_quantized"):
            continue  # a recurrent state
        q = cache.to_quantized(group_size=group, bits=bits)
        for part, rows in (("keys", q.keys), ("values", q.values)):
            for name, array in zip(("data", "scales", "biases"), rows):
                tensors[f"kv{bits}_{i}_{part}_{name}"] = array[:, :, : q.offset]
    return tensors


def add_tensors(path, more):
    import mlx.core as mx

    tensors, metadata = mx.load(str(path), return_metadata=True)
    mx.eval(tensors)  # before the file they are read from is written
    mx.save_safetensors(str(path), tensors | more, metadata)


@contextlib.contextmanager
def evaluated_in_float32(oracle, family):
    """The reference computes in float32 with the weights as they are stored: its
    own sums in half precision, on the CPU, are nothing to compare with."""
    import mlx.core as mx
    from mlx_lm import utils

    load_model = utils.load_model

    def load_in_float32(*args, **kwargs):
        model, config = load_model(*args, **kwargs)
        model.set_dtype(mx.float32)
        return model, config

    utils.load_model = load_in_float32
    oracle.NORMALIZED_ON_LOAD.add(family)  # it differs from the model as built
    try:
        yield
    finally:
        utils.load_model = load_model
        oracle.NORMALIZED_ON_LOAD.discard(family)


@contextlib.contextmanager
def corrected(module_name):
    """The reference without those of its faults that change results; they are
    listed in docs/DIFFERENCES.md."""
    module = importlib.import_module(f"mlx_lm.models.{module_name}")
    names = [n for n in ("create_attention_mask", "Model") if hasattr(module, n)]
    kept = {name: getattr(module, name) for name in names}
    make_mask = kept.get("create_attention_mask")
    if module_name == "olmo":
        module.create_attention_mask = additive(make_mask)

        class Model(module.Model):
            def __call__(self, *args, **kwargs):
                out = super().__call__(*args, **kwargs)
                return out[0] if isinstance(out, tuple) else out

        module.Model = Model
    elif module_name == "phi3small":
        module.create_attention_mask = additive(make_mask)
        module.Attention._block_sparse_mask = blocks_by_position
    elif module_name == "gemma3n":

        class Model(module.Model):
            def __call__(self, inputs, cache=None, **kwargs):
                return super().__call__(inputs, cache=cache or self.make_cache(), **kwargs)

        module.Model = Model
    elif module_name == "plamo3":

        def one_less(h, cache=None, window_size=None, **kwargs):
            window = window_size and window_size - 1
            return make_mask(h, cache, window_size=window, **kwargs)

        module.create_attention_mask = one_less
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(module, name, value)


def blocks_by_position(attention, q_len, kv_len):
    """phi3small's mask where queries begin anywhere in a block."""
    import mlx.core as mx

    size = attention.blocksparse_block_size
    queries = (mx.arange(kv_len - q_len, kv_len) // size)[None, :, None]
    keys = (mx.arange(kv_len) // size)[None, None]
    heads = mx.arange(1, attention.n_heads + 1)[:, None, None]
    near = queries - keys < attention.blocksparse_num_local_blocks
    mask = near | ((keys + heads) % attention.blocksparse_vert_stride == 0)
    mask = mask.reshape(attention.n_kv_heads, attention.n_q_per_kv, q_len, kv_len)
    return None, mask


def additive(make_mask):
    """A function that makes arrays to add, not booleans or names of masks."""
    import mlx.core as mx

    def make(h, cache=None, **kwargs):
        mask = make_mask(h, cache, **dict(kwargs, return_array=True))
        if mask is None or mask.dtype != mx.bool_:
            return mask
        return mx.where(mask, mx.array(0, h.dtype), mx.array(-float("inf"), h.dtype))

    return make


def cases(family, config):
    """(variant, configuration, options) of every model to make."""
    yield "visible", config, {}
    for i, changes in enumerate(VARIANTS[family]):
        yield f"variant{i}", changed(config, changes), {}
    if family in HF_LAYOUT:
        yield "hf", config, {"hf_layout": True}
    # 8 bits take the ways of 4: the dense families show it.
    special = expert_variants.VARIANTS | recurrent_variants.VARIANTS
    short = family in special or family in SLOW
    everywhere = EVERYWHERE[:1] if short else EVERYWHERE
    everywhere = [] if family in NOT_QUANTIZED else everywhere
    for mode, bits, group in everywhere + QUANTIZED.get(family, []):
        options = {"quantize": bits, "group_size": group, "mode": mode}
        yield f"{mode}_{bits}_{group}", config, options
    for name, dtype, bits in HALF:
        if name == family:
            variant = f"{dtype}_{bits}" if bits else dtype
            yield variant, config, {"dtype": dtype, "quantize": bits}


def described(arguments_class):
    """What the reference's arguments have besides what a configuration gives:
    the default of every field, null where it has none."""
    defaults = {}
    for field in dataclasses.fields(arguments_class):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        try:
            json.dumps(value)
        except TypeError:
            value = None
        defaults[field.name] = value
    return defaults


def write_arguments(oracle, family, config, folder):
    """The fields of the reference's ModelArgs, and of those inside: a test checks
    that all of them are read."""
    module = importlib.import_module(f"mlx_lm.models.{oracle.model_file(config)}")
    defaults = described(module.ModelArgs)
    inner = getattr(module, "TextConfig", None) or getattr(module, "TextArgs", None)
    if inner and "text_config" in config:
        defaults["text_config"] = described(inner)
    elif "text_config" in config and "text_config" not in defaults:
        defaults = {"text_config": defaults}  # the fields may be in either
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{family}.json").write_text(json.dumps(defaults))


def make_family(oracle, runs, family, config, folder):
    failed = []
    for variant, changed_config, options in cases(family, config):
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / f"{family}.json"
            path.write_text(json.dumps(changed_config))
            arguments = argparse.Namespace(
                config=str(path),
                out=str(folder / family / variant),
                variant=variant,
                seed=1,
                dtype="float32",
                quantize=None,
                group_size=32,
                mode="affine",
                hf_layout=False,
                keep_cache=False,
            )
            vars(arguments).update(options)
            half = arguments.dtype != "float32"
            # mistral is built by llama's code
            module = oracle.model_file(changed_config)
            try:
                half_cast = evaluated_in_float32(oracle, module) if half else None
                with corrected(module), half_cast or contextlib.nullcontext():
                    runs.clear()
                    oracle.make(arguments)
                    for run in runs:
                        expected = Path(arguments.out) / "expected.safetensors"
                        add_tensors(expected, quantized_caches(*run))
            except Exception as error:  # noqa: BLE001 - named below, all at once
                failed.append(f"{family}/{variant}: {type(error).__name__}: {error}")
    return failed


def in_parts(arguments):
    """Runs this program once per processor, each with a part of the families and
    one of them with the pieces; returns how many failed."""
    count = os.cpu_count() or 1
    processes = []
    for part in range(count):
        families = list(VARIANTS)[part::count]
        command = [sys.executable, __file__, arguments.folder, "--only", ",".join(families)]
        processes.append(subprocess.Popen(command + ["--no-pieces"] * (part > 0)))
    return sum(process.wait() != 0 for process in processes)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="families, separated by commas")
    parser.add_argument("--no-pieces", action="store_true")
    arguments = parser.parse_args()
    models = arguments.folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    path = find_oracle()
    if path is None:
        reason = "there is no oracle.py beside the checkout, nor does MLXLM_ORACLE name one"
        (models / "SKIPPED").write_text(reason + "\n")
        print(reason)
        return 0
    (models / "SKIPPED").unlink(missing_ok=True)
    if not arguments.only and not arguments.no_pieces:
        return 1 if in_parts(arguments) else 0
    oracle = load_oracle(path)
    runs = note_quantized_runs(oracle)
    started = time.time()
    failed = []
    for family in VARIANTS:
        if arguments.only and family not in arguments.only.split(","):
            continue
        config = oracle.strip_comments(oracle.read_json(path.parent / f"configs/{family}.json"))
        failed += make_family(oracle, runs, family, config, models)
        write_arguments(oracle, family, config, arguments.folder / "arguments")
    for line in failed:
        print("failed:", line)
    if not arguments.no_pieces:
        pieces = argparse.Namespace(
            out=str(arguments.folder / "pieces"), seed=1, configs=str(path.parent / "configs")
        )
        if oracle.pieces(pieces):
            failed.append("pieces")
    print(f"{time.time() - started:.0f} s, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
