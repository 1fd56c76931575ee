"""The reference without what would make its results no measure."""

import contextlib
import importlib


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


class WithoutBfloat16:
    """mlx.core for a module that rounds to bfloat16 whatever its weights are."""

    def __init__(self, core):
        self._core = core
        self.bfloat16 = core.float32

    def __getattr__(self, name):
        return getattr(self._core, name)


# The oracle takes their results for numbers in bfloat16.
ROUNDED = ("muse_spark",)


@contextlib.contextmanager
def corrected(module_name):
    """The reference without those of its faults that change results; they are
    listed in docs/DIFFERENCES.md."""
    module = importlib.import_module(f"mlx_lm.models.{module_name}")
    names = [n for n in ("create_attention_mask", "Model") if hasattr(module, n)]
    kept = {name: getattr(module, name) for name in names}
    make_mask = kept.get("create_attention_mask")
    if module_name in ROUNDED:
        kept["mx"] = module.mx
        module.mx = WithoutBfloat16(module.mx)
    if module_name == "olmo":
        module.create_attention_mask = additive(make_mask)

        class Model(module.Model):
            def __call__(self, *args, **kwargs):
                out = super().__call__(*args, **kwargs)
                return out[0] if isinstance(out, tuple) else out

        module.Model = Model
    elif module_name == "afm7":
        linear = module.FusedLinear
        kept["FusedLinear"] = linear

        class FusedLinear(linear):
            def to_quantized(self, mode="affine", **kwargs):
                return super().to_quantized(**kwargs)

        module.FusedLinear = FusedLinear
    elif module_name == "phi3small":
        module.create_attention_mask = additive(make_mask)
        module.Attention._block_sparse_mask = blocks_by_position
    elif module_name == "gemma3n":

        class Model(module.Model):
            def __call__(self, inputs, cache=None, **kwargs):
                return super().__call__(inputs, cache=cache or self.make_cache(), **kwargs)

        module.Model = Model
    elif module_name == "prism_hadamard_qwen35":
        embedding = module.HadamardQuantizedEmbedding
        kept["HadamardQuantizedEmbedding"] = embedding

        class InFloat32(embedding):
            def __call__(self, indices):
                return rows_in_float32(module, self, indices)

        module.HadamardQuantizedEmbedding = InFloat32
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


def rows_in_float32(module, table, indices):
    """Rows of prism's embedding, which the reference rounds to float16."""
    import mlx.core as mx

    parts = (table.weight, table.scales, table.biases)
    data, scales, biases = (part[indices] for part in parts)
    rows = mx.dequantize(
        data,
        scales.astype(mx.float32),
        biases.astype(mx.float32),
        group_size=table.group_size,
        bits=table.bits,
    )
    if table.block:
        rows = module.hadamard_rotate(rows, table.block, table.signs, inverse=True)
    return rows


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
