"""Writes foreign_weights.json: what mlx-lm 0.32.2 makes of other tools' tensors.

    python make_foreign_weights.py > foreign_weights.json

Needs mlx and mlx-lm; the tests only read the file.
"""

import json
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
from mlx_lm import utils
from mlx_lm.models import deepseek_v3, deepseek_v41, gpt_oss, minimax_m3_vl, mistral4

rng = np.random.default_rng(3)


def ints(shape, dtype):
    info = np.iinfo(dtype)
    return mx.array(rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True))


def floats(shape, dtype=mx.float16):
    return mx.array(rng.uniform(0.1, 1, shape).astype(np.float32)).astype(dtype)


def fp8(shape):
    """Bytes of e4m3 numbers other than NaN."""
    low = rng.integers(0, 0x7F, shape, dtype=np.uint8)
    return mx.array(low | (rng.integers(0, 2, shape, dtype=np.uint8) << 7))


def dump(tensors):
    def one(x):
        floating = mx.issubdtype(x.dtype, mx.floating)
        flat = (x.astype(mx.float32) if floating else x).reshape(-1).tolist()
        return {"dtype": str(x.dtype).split(".")[-1], "shape": list(x.shape), "data": flat}

    return {name: one(x) for name, x in sorted(tensors.items())}


cases = []


def case(name, settings, weights, outputs, f8=()):
    cases.append(
        {
            "name": name,
            "quantization_config": settings,
            "fp8": list(f8),
            "weights": dump(weights),
            "expected": dump(outputs),
        }
    )


def awq(name, extra, scale_dtype=mx.float16):
    weights = {
        "a.qweight": ints((64, 2), np.int32),
        "a.scales": floats((2, 16), scale_dtype),
        "norm.weight": floats((4,), mx.float32),
        "other.weight": floats((2, 2), mx.bfloat16),
    }
    if "qzeros" in extra:
        weights["a.qzeros"] = ints((2, 2), np.int32)
    settings = {"quant_method": "awq", "bits": 4, "group_size": 32}
    outputs, _ = utils._transform_awq_weights(weights, settings)
    case(name, settings, weights, outputs)


awq("awq with zeros", ["qzeros"])
awq("awq without zeros", [])
awq("awq in bfloat16", ["qzeros"], mx.bfloat16)

deepseek = SimpleNamespace(args=SimpleNamespace(num_hidden_layers=0))
fp8_settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
for shape, blocks in [((3, 130), (1, 2)), ((130, 2), (2, 1))]:
    weights = {
        "a.weight": fp8(shape),
        "a.weight_scale_inv": floats(blocks, mx.float32),
        "norm.weight": floats((4,), mx.bfloat16),
    }
    out = deepseek_v3.Model.sanitize(deepseek, dict(weights))
    case(f"fp8 {shape}", fp8_settings, weights, out, ["a.weight"])

for scale_shape, shape in [((), (3, 8)), ((2, 1, 1), (2, 3, 8)), ((1,), (4, 4))]:
    weights = {
        "a.weight": fp8(shape),
        "a.weight_scale_inv": floats(scale_shape, mx.bfloat16),
        "a.activation_scale": floats((), mx.bfloat16),
    }
    out = mistral4.Model.sanitize(deepseek, dict(weights))
    settings = {"quant_method": "fp8", "weight_block_size": None}
    case(f"fp8 broadcast {scale_shape}", settings, weights, out, ["a.weight"])

weights = {
    "a.weight_packed": ints((4, 8), np.int32),
    "a.weight_scale": floats((4, 2), mx.bfloat16),
    "a.weight_shape": mx.array([4, 64]),
}
settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
out = deepseek_v3.Model.sanitize(deepseek, dict(weights))
case("compressed-tensors integers", settings, weights, out)

weights = {
    "mlp.experts.down_proj_blocks": ints((2, 3, 2, 16), np.uint8),
    "mlp.experts.down_proj_scales": ints((2, 3, 2), np.uint8),
}
out = gpt_oss.Model.sanitize(None, dict(weights))
case("mxfp4 blocks", {"quant_method": "mxfp4"}, weights, out)

weights = {
    "a.weight": fp8((3, 64)),
    "a.weight_scale_inv": ints((3, 2), np.uint8),
}
text = SimpleNamespace(num_hidden_layers=0, tie_word_embeddings=False)
m3 = SimpleNamespace(args=SimpleNamespace(text_config=text))
out = minimax_m3_vl.Model.sanitize(m3, dict(weights))
case("mxfp8", {"quant_method": "mxfp8"}, weights, out, ["a.weight"])

weight = fp8((40, 64))
scale = mx.array(2.0 ** rng.integers(-9, 3, (2, 2))).astype(mx.float32)
weights = {"a.weight": weight, "a.weight_scale_inv": scale}
value, scales = deepseek_v41._repack(weight, scale)
settings = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]}
case("fp8 in 32x32 blocks", settings, weights, {"a.weight": value, "a.scales": scales}, ["a.weight"])

print(json.dumps({"cases": cases}, separators=(",", ":")))
