"""Which models are made of each family: changed configurations, layouts, formats."""

import os

import dense_variants
import expert_variants
import recurrent_variants

# Per family: what each variant changes in the oracle's configuration.
# None removes a field, "null" nulls it.
VARIANTS = dense_variants.VARIANTS | expert_variants.VARIANTS | recurrent_variants.VARIANTS
HF_LAYOUT = dense_variants.HF_LAYOUT + expert_variants.HF_LAYOUT + recurrent_variants.HF_LAYOUT

EVERYWHERE = [("affine", 4, 32), ("affine", 8, 64)]
# With 4 bits alone: slow in the reference, and families of experts (whose 8 bits
# take the ways of 4) but for one of each kind of expert, router and attention.
SLOW = ("phi3small",)
EIGHT_BITS = (
    "bailing_moe",
    "dbrx",
    "deepseek_v2",
    "deepseek_v32",
    "ernie4_5_moe",
    "gpt_oss",
    "granitemoe",
    "kimi_k2",
    "llama4_text",
    "longcat_flash",
    "minicpm3",
    "minimax_m2",
    "muse_spark",
    "phixtral",
)
EVERY_FORMAT = "MLXLM_PARITY_EVERY_FORMAT"  # set: 4 and 8 bits of all of them
NOT_QUANTIZED = ("prism_hadamard_qwen35",)  # it is already
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


def cases(family, config):
    """(variant, configuration, options) of every model to make."""
    yield "visible", config, {}
    for i, changes in enumerate(VARIANTS[family]):
        yield f"variant{i}", changed(config, changes), {}
    if family in HF_LAYOUT:
        yield "hf", config, {"hf_layout": True}
    short = family in SLOW or (family in expert_variants.VARIANTS and family not in EIGHT_BITS)
    everywhere = EVERYWHERE[:1] if short and EVERY_FORMAT not in os.environ else EVERYWHERE
    everywhere = [] if family in NOT_QUANTIZED else everywhere
    for mode, bits, group in everywhere + QUANTIZED.get(family, []):
        options = {"quantize": bits, "group_size": group, "mode": mode}
        yield f"{mode}_{bits}_{group}", config, options
    for name, dtype, bits in HALF:
        if name == family:
            variant = f"{dtype}_{bits}" if bits else dtype
            yield variant, config, {"dtype": dtype, "quantize": bits}
