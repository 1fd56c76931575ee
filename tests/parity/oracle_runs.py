"""The oracle, run for what the tests compare with, and nothing twice."""

import contextlib
import importlib.util
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_oracle():
    path = Path(os.environ.get("MLXLM_ORACLE") or ROOT.parent / "shared/oracle/oracle.py")
    return path if path.is_file() else None


def load_oracle(path):
    spec = importlib.util.spec_from_file_location("oracle", path)
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    # olmo ends the program without it, but uses nothing of it.
    sys.modules.setdefault("hf_olmo", types.ModuleType("hf_olmo"))
    return oracle


class Oracle:
    """Runs oracle.make(). Rows of a batch are compared with their prompts alone,
    which the visible variant has, so no batches are run. Of a family's variants
    with the same configuration (other formats, other layouts) only the first looks
    for its weights and runs the caches that other options make; 8-bit caches,
    which take the ways of 4-bit ones, are run for the visible one."""

    def __init__(self, path):
        self.module = load_oracle(path)
        self.judged = {}  # of a configuration: what was found out about its seeds
        self.kv_runs = []
        self.key = None
        self.variant = None
        self.repeats = False
        self._run_greedy = self.module.run_greedy
        self.module.run_greedy = self._greedy
        self.module.run_batch = not_needed
        self.module.N_BATCH = 6  # tokens after each prompt alone
        self.module.condition = self._once(self.module.condition)
        self.module.variety = self._once(self.module.variety)

    def make(self, arguments, config):
        self.kv_runs.clear()
        self.variant = arguments.variant
        self.key = repr(config)
        self.repeats = (self.key, "done") in self.judged
        with without_cache_files():
            self.module.make(arguments)
        self.judged[self.key, "done"] = True

    def _once(self, judge):
        def remembered(model, tokens, seed=None):
            if seed is not None:
                self.seed = seed
            key = (self.key, judge.__name__, self.seed)
            if key not in self.judged:
                given = (model, tokens) if seed is None else (model, tokens, seed)
                self.judged[key] = judge(*given)
            return self.judged[key]

        return remembered

    def _greedy(self, model, tokens, n, **options):
        kv_bits = options.get("kv_bits")
        if n == self.module.N_BATCH and self.variant != "visible":
            not_needed()
        if self.repeats and (kv_bits or "max_kv_size" in options):
            not_needed()
        if kv_bits == 8 and self.variant != "visible":
            not_needed()
        result = self._run_greedy(model, tokens, n, **options)
        if kv_bits:
            self.kv_runs.append((model, tokens, kv_bits, options["kv_group_size"]))
        return result


def not_needed(*args, **kwargs):
    raise NotImplementedError("no test compares with it")


@contextlib.contextmanager
def without_cache_files():
    from mlx_lm.models import cache

    save = cache.save_prompt_cache
    cache.save_prompt_cache = not_needed
    try:
        yield
    finally:
        cache.save_prompt_cache = save


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


def add_to(path, more, **remarks):
    """Tensors and metadata."""
    import mlx.core as mx

    tensors, metadata = mx.load(str(path), return_metadata=True)
    mx.eval(tensors)  # before the file they are read from is written
    mx.save_safetensors(str(path), tensors | more, metadata | remarks)
