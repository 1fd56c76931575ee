#!/usr/bin/env python3
"""make_models.py FOLDER: tiny models of every family with the reference's results.

FOLDER/models/<family>/<variant>/ holds config.json, model.safetensors and
expected.safetensors; FOLDER/pieces the reference's samplers, caches and
tokenizers. The work is done by oracle.py, which is looked for where
MLXLM_ORACLE says and beside the checkout, in ../shared/oracle. Without it
FOLDER/models/SKIPPED says why there is nothing, and the tests skip.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from oracle_runs import Oracle, add_to, find_oracle, load_oracle, quantized_caches
from reference_faults import ROUNDED, corrected, evaluated_in_float32
from variants import VARIANTS, cases

PIECES = "the pieces"


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


def make_family(oracle, family, config, folder):
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
            module = oracle.module.model_file(changed_config)
            try:
                half_cast = evaluated_in_float32(oracle.module, module) if half else None
                with corrected(module), half_cast or contextlib.nullcontext():
                    oracle.make(arguments, changed_config)
                    expected = Path(arguments.out) / "expected.safetensors"
                    for run in oracle.kv_runs:
                        add_to(expected, quantized_caches(*run))
                    if module in ROUNDED:
                        add_to(expected, {}, logits_dtype="float32")
            except Exception as error:  # noqa: BLE001 - named below, all at once
                failed.append(f"{family}/{variant}: {type(error).__name__}: {error}")
    return failed


def make_pieces(folder):
    path = find_oracle()
    arguments = argparse.Namespace(
        out=str(folder / "pieces"), seed=1, configs=str(path.parent / "configs")
    )
    return [PIECES] if load_oracle(path).pieces(arguments) else []


def make(task, folder):
    """One family or the pieces; returns what failed. Runs in its own process."""
    if task == PIECES:
        return make_pieces(folder)
    oracle = Oracle(find_oracle())
    module = oracle.module
    path = find_oracle().parent / f"configs/{task}.json"
    config = module.strip_comments(module.read_json(path))
    failed = make_family(oracle, task, config, folder / "models")
    write_arguments(module, task, config, folder / "arguments")
    return failed


def in_parallel(tasks, folder):
    """As many at a time as there are processors, the longest first."""
    number = {family: len(list(cases(family, {}))) for family in VARIANTS}
    tasks = sorted(tasks, key=lambda task: -number.get(task, 1000))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), context) as pool:
        return [line for failed in pool.map(make, tasks, [folder] * len(tasks)) for line in failed]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="families, separated by commas")
    arguments = parser.parse_args()
    models = arguments.folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    if find_oracle() is None:
        reason = "there is no oracle.py beside the checkout, nor does MLXLM_ORACLE name one"
        (models / "SKIPPED").write_text(reason + "\n")
        print(reason)
        return 0
    (models / "SKIPPED").unlink(missing_ok=True)
    started = time.time()
    tasks = arguments.only.split(",") if arguments.only else [PIECES, *VARIANTS]
    failed = in_parallel(tasks, arguments.folder)
    for line in failed:
        print("failed:", line)
    print(f"{time.time() - started:.0f} s, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
