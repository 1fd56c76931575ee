#!/usr/bin/env python3
"""Checks mlx-lm on a GPU and times it, on a machine without network.

  gpu.py MLX_LM [--tests PROGRAM] [--reference] [--gpus N] [--llama FOLDER]

MLX_LM is the program, linked or started with MLX's CUDA build; the Python that
runs this has MLX's package and, for --reference, mlx-lm's. First come the kernels'
tests (--tests: cuda_kernels_test), then tokens of small models with the GPU's
kernels, on one GPU and on several, and with plain MLX operations, then a table of
decode or prefill speed, rounds interleaved: medians and range, what is wanted, and
what the weights' bytes allow at the bandwidth measured here.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

import models


@dataclass
class Row:
    model: str
    prompt: int
    generate: int
    batch: int = 1
    wanted: float = 0  # tokens/s on an H100
    key: str = "generation_tps"
    gpus: int = 1

    def name(self):
        text = f"{self.model}, {self.prompt} / {self.generate}"
        if self.gpus > 1:
            text += f", {self.gpus} GPUs"
        if self.key == "prompt_tps":
            return text + ", prefill"
        return text + (f", {self.batch} streams" if self.batch > 1 else "")


ROWS = (Row("8b", 128, 128, wanted=500), Row("8b", 512, 128, wanted=500),
        Row("8b", 8192, 64), Row("8b", 128, 128, 8, 2600),
        Row("8b", 128, 128, 32, 7000), Row("8b", 128, 128, 128, 12000),
        Row("8b", 4096, 16, wanted=25000, key="prompt_tps"),
        Row("8b-bf16", 128, 128, wanted=165),
        Row("8b-bf16", 128, 128, gpus=2), Row("8b", 128, 128, gpus=2),
        Row("8b-mxfp4", 128, 128), Row("8b-nvfp4", 128, 128),
        Row("30b-a3b", 128, 128), Row("30b-a3b", 128, 128, 8))
TOKENS = ",".join(str(7 * i % 900 + 3) for i in range(40))


def output(command, seconds, **environment):
    done = subprocess.run([str(part) for part in command], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          stdin=subprocess.DEVNULL, timeout=seconds,
                          env=os.environ | environment)
    if done.returncode != 0:
        raise ValueError(done.stderr.strip().splitlines()[-1:] or done.returncode)
    return done.stdout


def on_gpus(program, count):
    """How the program is started on so many GPUs."""
    return ([program] if count == 1 else
            [program, "launch", "-n", count, "--backend", "nccl", "--"])


def mlx_lm(program, folder, row):
    return json.loads(output(
        [*on_gpus(program, row.gpus), "benchmark", "--model", folder, "-p",
         row.prompt, "-g", row.generate, "-b", row.batch, "-n", 1, "--json"],
        120))[row.key]


def reference(folder, row):
    text = output([sys.executable, "-m", "mlx_lm", "benchmark", "--model", folder,
                   "-p", row.prompt, "-g", row.generate, "-b", row.batch, "-n", 1],
                  300)
    line = next(each for each in text.splitlines() if "Averages" in each)
    return float(line.split(row.key + "=")[1].split(",")[0])


def llama(programs, gguf, row):
    if row.batch > 1:
        tokens = row.batch * (row.prompt + row.generate)
        text = output(
            [Path(programs) / "llama-batched-bench", "-m", gguf, "-ngl", 99,
             "-fa", "on", "-c", tokens, "-npp", row.prompt, "-ntg", row.generate,
             # Twice: it may end before the last line is written.
             "-npl", f"{row.batch},{row.batch}", "--output-format", "jsonl"], 300)
        line = next(each for each in text.splitlines() if each.startswith("{"))
        return json.loads(line)["speed_tg"]
    reads = row.key == "prompt_tps"
    rows = json.loads(output(
        [Path(programs) / "llama-bench", "-m", gguf, "-ngl", 99, "-fa", 1,
         "-r", 1, "-o", "json",
         "-p", row.prompt if reads else 0, "-n", 0 if reads else row.generate,
         *([] if reads else ["-d", row.prompt])], 300))
    return rows[0]["avg_ts"]


def run_tests(program):
    done = subprocess.run([program, "--gtest_brief=1"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print("\n".join(done.stdout.splitlines()[-12:]), flush=True)
    return done.returncode == 0


def compare_tokens(program, folder, gpus):
    """Greedy tokens with the GPU's kernels, on one and on all GPUs, and with
    plain MLX operations."""
    all_equal = True
    for name, shape in models.SMALL.items():
        small = folder / f"small-{name}"
        models.write(small, shape)
        answers = [json.loads(output(
            [*on_gpus(program, count), "generate", "--model", small, "--tokens",
             TOKENS, "--ignore-eos", "--temp", 0, "-m", 24, "--json"], 200,
            **kernels).splitlines()[-1])["tokens"]
            for count, kernels in ((1, {"MLX_LM_KERNELS": "reference"}),
                                   *((count, {}) for count in {1, gpus}))]
        equal = next((i for i, each in enumerate(zip(*answers))
                      if len(set(each)) > 1), 24)
        print(f"small {name}: {equal} of 24 tokens equal", flush=True)
        all_equal = all_equal and equal == 24
    return all_equal


def bandwidth():
    """Bytes read and written per second."""
    x = mx.zeros((1 << 30,), mx.bfloat16)
    mx.eval(x)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        mx.eval(x + 1)
        times.append(time.perf_counter() - begin)
    return 2 * x.nbytes / min(times)


def limit(row, shape, bytes_per_second):
    if row.key == "prompt_tps":
        return ""
    # Rows of a batch share the weights, unless experts are chosen.
    streams = 1 if shape.experts else row.batch
    each = bytes_per_second / models.bytes_of_token(shape)
    return f"{each * streams * row.gpus:,.0f}"


def measure(args, folder, rows):
    engines = {"mlx-lm": lambda row: mlx_lm(args.mlx_lm, folder / row.model, row)}
    if args.reference:
        engines["reference"] = lambda row: (
            reference(folder / row.model, row) if row.gpus == 1 else None)
    if args.llama:
        engines["llama.cpp"] = lambda row: (
            llama(args.llama, folder / "8b.gguf", row)
            if row.model == "8b" and row.gpus == 1 else None)
    results = {}
    for _ in range(args.rounds):
        for row in rows:
            for name, engine in engines.items():
                try:
                    value = engine(row)
                except (ValueError, OSError, StopIteration, KeyError,
                        subprocess.TimeoutExpired) as fault:
                    print(f"{row.name()}: {name}: {fault}", file=sys.stderr)
                    continue
                if value is not None:
                    results.setdefault((row.name(), name), []).append(value)
    return list(engines), results


def print_table(rows, shapes, names, results, bytes_per_second):
    print("| tokens/s | " + " | ".join(names) + " | wanted (H100) | limit of bytes |")
    print("|---|" + "---|" * (len(names) + 2))
    for row in rows:
        cells = []
        for name in names:
            values = results.get((row.name(), name), [])
            cells.append(f"{statistics.median(values):,.1f} ({min(values):,.1f} to "
                         f"{max(values):,.1f})" if values else "")
        print(f"| {row.name()} | " + " | ".join(cells) + f" | {row.wanted or ''} | "
              f"{limit(row, shapes[row.model], bytes_per_second)} |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mlx_lm", type=Path)
    parser.add_argument("--tests", help="cuda_kernels_test")
    parser.add_argument("--reference", action="store_true",
                        help="the Python package, too: its first use compiles for "
                             "minutes")
    parser.add_argument("--llama", metavar="FOLDER",
                        help="with llama-bench and llama-batched-bench")
    parser.add_argument("--gpus", type=int, default=1,
                        help="how many to run on together, beside one alone")
    parser.add_argument("--models", default=",".join(models.SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"),
                        help="where models are put for as long as this runs")
    parser.add_argument("--small", action="store_true",
                        help="small models, to try this program out")
    args = parser.parse_args()
    args.mlx_lm = args.mlx_lm.resolve()
    shapes = models.SMALL if args.small else models.SHAPES
    rows = [row for row in ROWS if row.model in args.models.split(",")
            and row.gpus <= args.gpus]
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        passed = not args.tests or run_tests(args.tests)
        passed = compare_tokens(args.mlx_lm, folder, args.gpus) and passed
        for name in {row.model for row in rows}:
            models.write(folder / name, shapes[name])
        if args.llama:
            import gguf_file
            gguf_file.write(folder / "8b.gguf", shapes["8b"],
                            list(models.layer_matrices(shapes["8b"])))
        bytes_per_second = bandwidth()
        print(f"\n{mx.device_info().get('device_name', 'CPU')}: reads and writes "
              f"{bytes_per_second / 1e9:,.0f} GB/s; medians of {args.rounds}\n")
        print_table(rows, shapes, *measure(args, folder, rows), bytes_per_second)
    finally:
        shutil.rmtree(folder)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
