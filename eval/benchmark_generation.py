"""Speed of generation beside transformers, and beside llama.cpp: rounds of one after the other, and ratios.

    python -m eval.benchmark_generation WORKDIR [--base MODEL] [--threads 1 2] [--converter convert_hf_to_gguf.py]

Makes a mixture of four full experts of MODEL (default: SmolLM2-135M-Instruct, where it is installed) in WORKDIR, loads
it with this project and with transformers in every ``experts_implementation`` that runs here, and has all of them do
the same work in turn, so that other load on the machine meets all alike. A ratio is the median over rounds of the time
of transformers' fastest implementation over ours. With ``--converter`` (llama.cpp's; needs llama-cpp-python) int8 and
int4 stand beside Q8_0 and Q4_0 of the same model.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints.cli import ArgumentParser, run
from checkpoints.model_io import load_model
from moe.errors import UserError
from moe.files import optional_library
from moe.hardware import describe_hardware, keep_freed_memory
from moe.inference.generation import generate_many
from moe.model import Transformer

PROMPT, PREFILL, NEW, BATCH = 64, 1024, 16, 16
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
COPYING = "batched_mm"  # copies the experts of each token: more than 20 GB for 16 prompts of 64 tokens in float32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGETS = {
    "float32": {"decode 1": 2.5, "decode 16": 2.0, "prefill 1024": 1.1, "first token": 3.0},
    "bfloat16": {"decode 1": 2.0, "decode 16": 1.5, "prefill 1024": 1.1, "first token": 3.0},
}
Work = Callable[[list[list[int]], int], object]  # (prompts, new tokens)


def ours(model: Transformer) -> Work:
    """Writes with this project's engine."""
    return lambda prompts, new: generate_many(model, prompts, max_new_tokens=new)


def theirs(model: Any, implementation: str) -> Work:
    """Writes with ``generate`` of transformers."""

    def write(prompts: list[list[int]], new: int) -> object:
        model.set_experts_implementation(implementation)
        tokens = torch.tensor(prompts)
        mask = torch.ones_like(tokens)
        settings = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 0}
        with torch.inference_mode():
            return model.generate(tokens, attention_mask=mask, **settings)

    return write


def llama_cpp(path: Path, threads: int) -> Work:
    """Writes with llama.cpp, one sequence at a time."""
    library = optional_library("llama_cpp", "comparing with llama.cpp")
    model = library.Llama(str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)

    def write(prompts: list[list[int]], new: int) -> object:
        model.reset()
        model.eval(prompts[0])
        for _ in range(new - 1):
            model.eval([int(model.sample(temp=0.0))])
        return model.sample(temp=0.0)

    return write


def prompts_of(count: int, length: int) -> list[list[int]]:
    """Random prompts, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, 40000, (count, length), generator=generator).tolist()


def seconds_per_task(write: Work, task: str) -> float:
    """Seconds of a step of decoding (a longer answer's time minus a short one's), or of reading a prompt.

    On one thread they are seconds of CPU time, in which other load on the machine does not count.
    """

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def timed(prompts: list[list[int]], new: int) -> float:
        started = clock()
        write(prompts, new)
        return clock() - started

    if task.startswith("prefill"):
        return timed(prompts_of(1, PREFILL), 1)
    prompts = prompts_of(int(task.split()[1]), PROMPT)
    return max(1e-9, timed(prompts, NEW + 2) - timed(prompts, 2)) / NEW


def alternate(runners: dict[str, Work], tasks: Sequence[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """{task: {runner: seconds of each round}}; within a round all do the task one after another.

    After the first round, a warm-up, those of the others go on that were not far slower than the fastest of them.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for task in tasks:
        takes_part = {name: write for name, write in runners.items() if name != COPYING or task == "decode 1"}
        first = {name: seconds_per_task(write, task) for name, write in takes_part.items()}
        fastest = min(seconds for name, seconds in first.items() if name != "ours")
        kept = [name for name, seconds in first.items() if name == "ours" or seconds < 1.5 * fastest]
        found[task] = {name: [] for name in kept}
        for _ in range(rounds):
            for name in kept:
                found[task][name].append(seconds_per_task(runners[name], task))
    return found


def worker(arguments: argparse.Namespace) -> dict[str, Any]:
    """One process of the benchmark: models in one dtype, with one number of threads."""
    torch.set_num_threads(arguments.threads[0])
    keep_freed_memory(torch.device("cpu"))
    dtype = DTYPES.get(arguments.worker, torch.bfloat16)
    runners: dict[str, Work] = {}
    if arguments.worker in DTYPES:
        model = load_model(arguments.workdir / "full", dtype, packed=True).model
        runners["ours"] = ours(model)
        transformers = optional_library("transformers", "comparing with transformers")
        other = transformers.AutoModelForCausalLM.from_pretrained(arguments.workdir / "full", dtype=dtype).eval()
        other.generation_config.eos_token_id = None
        for name in IMPLEMENTATIONS:
            try:
                theirs(other, name)(prompts_of(1, 8), 2)
            except (RuntimeError, NotImplementedError, ImportError):
                continue  # not on this processor, or not in this dtype
            runners[name] = theirs(other, name)
        tasks: Sequence[str] = ("decode 1", f"decode {BATCH}", f"prefill {PREFILL}")
    else:
        model = load_model(arguments.workdir / arguments.worker, dtype, packed=True).model
        runners["ours"] = ours(model)
        quant = {"int8": "Q8_0", "int4": "Q4_0"}[arguments.worker]
        runners[quant] = llama_cpp(arguments.workdir / f"{quant}.gguf", arguments.threads[0])
        tasks = ("decode 1",)
    gc.collect()
    return {"found": alternate(runners, tasks, arguments.rounds), "bytes": bytes_per_token(model)}


def bytes_per_token(model: Transformer) -> int:
    """Bytes of weights that a step for one sequence reads: all but unvisited experts and the embeddings' other rows."""
    total = 0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.startswith("tok_embeddings") and model.output is not None:
            continue
        visited = model.config.num_experts_per_tok / model.config.num_experts if ".experts." in name else 1
        total += int(tensor.nbytes * visited)
    return total


FIRST_TOKEN = {
    "ours": "from checkpoints.model_io import load_model\n"
    "from moe.inference.generation import generate_many\n"
    "model = load_model(path, dtype, packed=True).model\n"
    "generate_many(model, [[5, 6, 7]], max_new_tokens=1)\n",
    "transformers": "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    "model, tokenizer = AutoModelForCausalLM.from_pretrained(path, dtype=dtype), AutoTokenizer.from_pretrained(path)\n"
    "model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=1, pad_token_id=0)\n",
}


def first_token(path: Path, dtype: str, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds from loading model and tokenizer to the first token, in processes of their own, imports not counted."""
    found: dict[str, list[float]] = {name: [] for name in FIRST_TOKEN}
    for _ in range(rounds):
        for name, work in FIRST_TOKEN.items():
            lines = work.split("\n")
            imports = [line for line in lines if line.startswith("from ")]
            rest = [line for line in lines if not line.startswith("from ")]
            code = ["import time, torch", *imports, f"torch.set_num_threads({threads})", "start = time.perf_counter()"]
            code += [f"path, dtype = {str(path)!r}, torch.{dtype}", *rest, "print(time.perf_counter() - start)"]
            printed = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", "\n".join(code)], capture_output=True, text=True, check=True
            ).stdout
            found[name].append(float(printed.split()[-1]))
    return found


def memory_bandwidth(threads: int) -> float:
    """Bytes per second of reading a large buffer: the best of several sums."""
    torch.set_num_threads(threads)
    buffer = torch.ones(64 << 20)
    best = min(_timed(buffer.sum) for _ in range(8))
    return buffer.nbytes / best


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio_of(rounds: dict[str, list[float]]) -> tuple[str, float]:
    """The fastest of the others by its median, and the median over rounds of its time over ours."""
    others = {name: statistics.median(times) for name, times in rounds.items() if name != "ours"}
    best = min(others, key=lambda name: others[name])
    return best, statistics.median(t / o for t, o in zip(rounds[best], rounds["ours"]))


def prepare(arguments: argparse.Namespace) -> None:
    """Makes the mixture and what is compared with it, where it is not there."""
    work = arguments.workdir
    work.mkdir(parents=True, exist_ok=True)
    commands = [["upcycle", arguments.base, "full", "--expert-form", "full", "--no-proof"]]
    if arguments.converter is not None:
        commands.append(["quantize", "full", "int8", "--bits", "8", "--no-perplexity"])
        commands.append(["quantize", "full", "int4", "--rest", "int8", "--no-perplexity"])
    for command in commands:
        if not (work / command[2]).exists():
            full = [sys.executable, "-m", "checkpoints", *command]
            env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
            if subprocess.run(full, cwd=work, env=env).returncode:
                raise UserError(f"could not make {work / command[2]}; the lines above say why")
    if arguments.converter is None:
        return
    library = optional_library("llama_cpp", "comparing with llama.cpp")
    plain = work / "F16.gguf"
    if not plain.exists():
        command = [sys.executable, str(arguments.converter), "full", "--outfile", plain.name, "--outtype", "f16"]
        if subprocess.run(command, cwd=work).returncode:
            raise UserError(f"{arguments.converter} could not convert {work / 'full'}; the lines above say why")
    for name, kind in (("Q8_0", library.LLAMA_FTYPE_MOSTLY_Q8_0), ("Q4_0", library.LLAMA_FTYPE_MOSTLY_Q4_0)):
        if not (work / f"{name}.gguf").exists():
            parameters = library.llama_model_quantize_default_params()
            parameters.ftype = kind
            target = str(work / f"{name}.gguf")
            if library.llama_model_quantize(str(plain).encode(), target.encode(), parameters):
                raise UserError(f"llama.cpp could not quantize {plain}")


def main(arguments: argparse.Namespace) -> int:
    """Runs everything and prints a table in Markdown; 1 if a measurement failed."""
    if arguments.worker:
        print(json.dumps(worker(arguments)))
        return 0
    prepare(arguments)
    print(f"{describe_hardware(torch.device('cpu'))}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    print("\n| threads | weights | task | ours | other | ratio | target |\n|---|---|---|---|---|---|---|")
    missed = False
    for threads in arguments.threads:
        bandwidth = memory_bandwidth(threads)
        kinds = [*arguments.dtypes, *(("int8", "int4") if arguments.converter else ())]
        for kind in kinds:
            command = [sys.executable, "-W", "ignore", "-m", "eval.benchmark_generation", str(arguments.workdir)]
            command += ["--worker", kind, "--threads", str(threads), "--rounds", str(arguments.rounds)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                said = (done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1]
                print(f"| {threads} | {kind} | not measured: {said} | | | | |", flush=True)
                missed = True
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            found = result["found"]
            if kind in DTYPES:
                found["first token"] = first_token(
                    arguments.workdir / "full", kind, threads, max(2, arguments.rounds // 2)
                )
            for task, times_of in found.items():
                name, ratio = ratio_of(times_of)
                target = TARGETS[kind][task] if kind in TARGETS else 0.7
                mine = statistics.median(times_of["ours"])
                share = f", {result['bytes'] / mine / bandwidth:.0%} of bandwidth" if task == "decode 1" else ""
                times = f"{mine * 1e3:.1f} ms{share} | {name} {statistics.median(times_of[name]) * 1e3:.1f} ms"
                print(f"| {threads} | {kind} | {task} | {times} | {ratio:.2f} | {target} |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}; ratios above 1: ours is faster")
    return int(missed)


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m eval.benchmark_generation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=Path, help="where models are made and kept")
    parser.add_argument("--base", default="smollm2", help="a dense model (default: SmolLM2 as this project finds it)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=5, help="how often each does each task")
    parser.add_argument("--converter", type=Path, metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(run(build_parser(), main))
