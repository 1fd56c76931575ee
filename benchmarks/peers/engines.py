"""One measurement of one engine: each function runs a program once and returns
tokens/s, or seconds and bytes."""

import json
import os
import subprocess
import tempfile
import time

# Reads the model, warms up, and prints prefill and decode speed.
OPENVINO_PROGRAM = """
import json, sys
import numpy, openvino, openvino_genai
path, prompt, generate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pipeline = openvino_genai.LLMPipeline(path, "CPU")
random = numpy.random.default_rng(0)
config = openvino_genai.GenerationConfig()
config.max_new_tokens = generate
config.ignore_eos = True
config.do_sample = False
for _ in range(2):  # other prompts: the same one would not be read again
    ids = random.integers(100, 30000, (1, prompt))
    inputs = openvino_genai.TokenizedInputs(
        openvino.Tensor(ids.astype(numpy.int64)),
        openvino.Tensor(numpy.ones_like(ids, numpy.int64)))
    metrics = pipeline.generate(inputs, config).perf_metrics
print(json.dumps({
    "prefill": prompt / metrics.get_ttft().mean * 1000,
    "decode": 1000 / metrics.get_tpot().mean}))
"""


def threads():
    return len(os.sched_getaffinity(0))


def output(command, messages=subprocess.DEVNULL, folder=None):
    done = subprocess.run([str(part) for part in command], check=True, text=True,
                          stdout=subprocess.PIPE, stderr=messages,
                          stdin=subprocess.DEVNULL, cwd=folder)
    return done.stdout


def llama_bench(program, model, shape, options=()):
    """Prefill of `prompt` tokens; decode after `depth` others."""
    common = [program, "-m", model, "-t", threads(), "-r", 1, "-o", "json",
              *options]
    rows = json.loads(output(
        [*common, "-p", shape.prompt, "-n", 0]))
    rows += json.loads(output(
        [*common, "-p", 0, "-n", shape.generate, *shape.depth_options()]))
    return {"decode" if row["n_prompt"] == 0 else "prefill": row["avg_ts"]
            for row in rows}


def llama_batched_bench(program, model, shape, options=()):
    context = shape.batch * (shape.prompt + shape.generate)
    with tempfile.TemporaryDirectory() as folder:  # it leaves a log there
        text = output([program, "-m", model, "-t", threads(), "-c", context,
                       "-npp", shape.prompt, "-ntg", shape.generate,
                       "-npl", shape.batch, *options],
                      messages=subprocess.STDOUT,  # ik_llama.cpp's table
                      folder=folder)
    # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | ...
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines() if line.startswith("|")]
    row = next(row for row in rows if row[0] == str(shape.prompt))
    return {"prefill": float(row[5]), "decode": float(row[7])}


def mlx_lm(program, mode, model, shape):
    def benchmark(prompt):
        return json.loads(output(
            [program, "benchmark", "--model", model, "--cpu-mode", mode,
             "-p", prompt, "-g", shape.generate, "-n", 1, "-b", shape.batch,
             "--json"]))
    row = benchmark(shape.prompt)
    result = {"prefill": row["prompt_tps"], "decode": row["generation_tps"]}
    if shape.batch == 1:  # as llama-bench: not after the prompt
        result["decode"] = benchmark(max(shape.depth, 1))["generation_tps"]
    return result


def openvino(python, model, shape):
    def pipeline(prompt):
        text = output([python, "-c", OPENVINO_PROGRAM, model, prompt,
                       shape.generate])
        return json.loads(text.splitlines()[-1])
    prefill = pipeline(shape.prompt)["prefill"]
    return {"prefill": prefill,
            "decode": pipeline(max(shape.depth, 1))["decode"]}


def start(command):
    """A process that answers with one token: seconds, and the most memory."""
    command = [os.path.abspath(command[0]), *map(str, command[1:])]
    with tempfile.TemporaryDirectory() as folder:  # some leave a log there
        begin = time.monotonic()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL,
                                 stdin=subprocess.DEVNULL, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - begin
    if status != 0:
        raise subprocess.CalledProcessError(status, command)
    return {"seconds": seconds,
            "MB": usage.ru_maxrss * 1024 / 1e6}


def mlx_lm_start(program, model):
    return start([program, "generate", "--model", model, "--prompt", "Hello",
                  "--ignore-chat-template", "--max-tokens", 1])


def llama_start(program, model, options):
    return start([program, "-m", model, "-p", "Hello", "-n", 1, "--no-warmup",
                  "-t", threads(), *options])
