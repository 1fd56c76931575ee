#!/usr/bin/env python3
"""Compares mlx-lm with other engines on the same weights and machine.

  peers.py setup FOLDER           downloads and builds the others (minutes)
  peers.py run FOLDER MLX_LM      prints a table: medians, range, our speed as a
                                  multiple of each engine's
  peers.py start FOLDER MLX_LM    from the command to its first token: seconds,
                                  and the most memory

llama.cpp and ik_llama.cpp are built natively from the sources inside the PyPI
source packages of their Python bindings, OpenVINO GenAI is PyPI's wheel. Rounds
are interleaved, so that a slow moment of the machine hits all alike. Models are
smollm2 (Q4_1, as shipped), smollm2-q4_0, gemma (Q4_K_M), and 1b and 8b: llamas
with random weights, for the others as Q4_0, for mlx-lm in MLX's format (4 bits,
groups of 64); both have 4.5 bits a weight.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path

import engines

SOURCES = {
    "llama.cpp": ("llama-cpp-python==0.3.36", "vendor/llama.cpp",
                  "llama-completion"),
    "ik_llama.cpp": ("ik-llama-cpp-python==0.1.5", "vendor/ik_llama.cpp",
                     "llama-cli"),
}
PACKAGES = ("openvino-genai==2026.4.1.0", "gguf==0.19.0", "numpy",
            "scikit-build-core", "pathspec")
MODELS = ("smollm2", "smollm2-q4_0", "gemma", "1b", "8b")


@dataclass
class Shape:
    prompt: int
    generate: int
    depth: int  # tokens before the first that is decoded; of batches the prompt
    batch: int

    def depth_options(self):
        return ["-d", str(self.depth)] if self.depth else []


def run(command):
    subprocess.run([str(part) for part in command], check=True)


def compiler_launcher():
    if not shutil.which("ccache"):
        return []
    return [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache"
            for language in ("C", "CXX")]


def build(folder, name, package, source, starter):
    targets = ["llama-bench", "llama-quantize", "llama-batched-bench", starter]
    if all((folder / name / "bin" / each).exists() for each in targets):
        return
    stem = package.replace("-", "_").replace("==", "-")
    tree = folder / "sources" / stem
    if not tree.exists():
        run([folder / "venv/bin/pip", "download", "-q", "--no-deps",
             "--no-binary", ":all:", "--no-build-isolation", "-d",
             folder / "sources", package])
        with tarfile.open(folder / "sources" / f"{stem}.tar.gz") as tar:
            tar.extractall(folder / "sources", filter="data")
    write_build_info_script(tree / source / "common")
    run(["cmake", "-S", tree / source, "-B", folder / name, "-G", "Ninja",
         "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
         "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF",
         # ik_llama.cpp's attention to 4-bit keys takes longer to compile than
         # all the rest, and is not compared.
         "-DGGML_IQK_FA_ALL_QUANTS=OFF",
         "-DLLAMA_BUILD_TESTS=OFF", *compiler_launcher()])
    run(["cmake", "--build", folder / name, "--target", *targets])


def write_build_info_script(folder):
    """A source package can lack the script that its build calls for this."""
    script = folder / "cmake" / "build-info-gen-cpp.cmake"
    if (folder / "build-info.cpp.in").exists() and not script.exists():
        script.parent.mkdir(exist_ok=True)
        script.write_text("set(BUILD_NUMBER 0)\n"
                          "configure_file(common/build-info.cpp.in "
                          "common/build-info.cpp)\n")


def setup(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "venv").exists():
        venv.create(folder / "venv", with_pip=True)
    run([folder / "venv/bin/pip", "install", "-q", *PACKAGES])
    run(["c++", "-std=c++20", "-O3", "-march=native", "-pthread",
         Path(__file__).with_name("machine.cc"), "-o", folder / "machine"])
    for name, source in SOURCES.items():
        build(folder, name, *source)


def files(folder, name):
    """The model's file for the others and for us."""
    known = Path(os.environ.get("MLX_LM_MODELS_DIR",
                                Path.home() / ".cache/mlx-lm/models"))
    (folder / "models").mkdir(exist_ok=True)
    program = ("import models, sys; from pathlib import Path;"
               "print(*models.files(*map(Path, sys.argv[1:])), sep='\\n')")
    done = subprocess.run(
        [folder / "venv/bin/python", "-c", program, folder / "models", name,
         known, folder / "llama.cpp/bin/llama-quantize"],
        check=True, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent)
    return done.stdout.splitlines()


def speeds(args, shape, theirs, ours):
    found = {
        "mlx-lm fast": lambda: engines.mlx_lm(args.mlx_lm, "fast", ours, shape),
        "mlx-lm exact": lambda: engines.mlx_lm(args.mlx_lm, "exact", ours, shape),
        "mlx-lm fastest": lambda: engines.mlx_lm(
            args.mlx_lm, "fastest", ours, shape),
    }
    bins = {name: args.folder / name / "bin" for name in SOURCES}
    if shape.batch > 1:
        # With flash attention ik_llama.cpp stops at an assertion here.
        for name, options in (("llama.cpp", []), ("ik_llama.cpp", ["-no-fa"])):
            found[name] = lambda f=bins[name], o=options: (
                engines.llama_batched_bench(
                    f / "llama-batched-bench", theirs, shape, o))
        return found
    found["llama.cpp"] = lambda: engines.llama_bench(
        bins["llama.cpp"] / "llama-bench", theirs, shape, ["-fa", "on"])
    if not shape.depth:  # which its llama-bench has no option for
        found["ik_llama.cpp"] = lambda: engines.llama_bench(
            bins["ik_llama.cpp"] / "llama-bench", theirs, shape,
            ["-rtr", 1, "-fa", 1])
    found["OpenVINO GenAI"] = lambda: engines.openvino(
        args.folder / "venv/bin/python", theirs, shape)
    return found


def starts(args, theirs, ours):
    found = {"mlx-lm fast": lambda: engines.mlx_lm_start(args.mlx_lm, ours)}
    for name, (_, _, program) in SOURCES.items():
        options = ["-no-cnv"] if program == "llama-completion" else []
        found[name] = lambda p=args.folder / name / "bin" / program, o=options: (
            engines.llama_start(p, theirs, o))
    return found


def measure(args, found):
    results = {}
    for _ in range(args.rounds):
        for name, engine in found.items():
            if any(skipped in name for skipped in args.without):
                continue
            try:
                row = engine()
            except (subprocess.CalledProcessError, OSError, ValueError,
                    KeyError, IndexError, StopIteration) as fault:
                print(f"{name}: {fault}", file=sys.stderr)
                continue
            for key, value in row.items():
                results.setdefault(name, {}).setdefault(key, []).append(value)
    return results


def ratio(key, ours, theirs):
    """Above 1: we are better."""
    return ours / theirs if key in ("prefill", "decode") else theirs / ours


def print_table(keys, results):
    print("| | " + " | ".join(f"{key} | against it" for key in keys) + " |")
    print("|---|" + "---|---|" * len(keys))
    ours = results.get("mlx-lm fast", {})
    for name, row in results.items():
        cells = []
        for key in keys:
            values = row.get(key)
            if not values:
                cells += ["", ""]
                continue
            middle = statistics.median(values)
            cells.append(f"{middle:.4g} ({min(values):.4g}-{max(values):.4g})")
            cells.append(
                f"{ratio(key, statistics.median(ours[key]), middle):.2f}"
                if ours.get(key) and not name.startswith("mlx-lm") else "")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(flush=True)


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def print_machine(args):
    bandwidth, products = engines.output(
        [args.folder / "machine", engines.threads()]).split()
    print(f"{processor()}, {engines.threads()} threads: reads {bandwidth} GB/s, "
          f"{products} * 10^12 products of bytes a second\n", flush=True)


def compare_speeds(args):
    print_machine(args)
    for name in args.models.split(","):
        theirs, ours = files(args.folder, name)
        for depth in map(int, args.depths.split(",")):
            for batch in map(int, args.batches.split(",")):
                shape = Shape(args.prompt, args.generate, depth, batch)
                print(f"{name}, prompt {shape.prompt}, generate "
                      f"{shape.generate}, depth {depth}, batch {batch}; "
                      f"tokens/s, medians of {args.rounds}\n")
                print_table(("prefill", "decode"),
                            measure(args, speeds(args, shape, theirs, ours)))


def compare_starts(args):
    for name in args.models.split(","):
        theirs, ours = files(args.folder, name)
        print(f"{name}, from the command to its end after one token; medians of "
              f"{args.rounds}\n")
        print_table(("seconds", "MB"), measure(args, starts(args, theirs, ours)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup").add_argument("folder", type=Path)
    for name in ("run", "start"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("mlx_lm")
        command.add_argument("--models", default="smollm2",
                             help="with commas: " + ", ".join(MODELS))
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--without", action="append", default=[],
                             help="leaves an engine out")
        if name == "run":
            command.add_argument("--prompt", type=int, default=512)
            command.add_argument("--generate", type=int, default=128)
            command.add_argument("--depths", default="0", help="with commas")
            command.add_argument("--batches", default="1", help="with commas")
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    if args.command == "setup":
        setup(args.folder)
    elif args.command == "run":
        compare_speeds(args)
    else:
        compare_starts(args)


if __name__ == "__main__":
    main()
