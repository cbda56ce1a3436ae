"""Compares greedy text of this project with that of transformers and llama.cpp on the exports of a run.

    python -m eval.other_programs RUN PROMPTS WORKDIR --converter convert_hf_to_gguf.py [--mixtral DIR] [--site DIR]

A run with deltas gives ``extract`` (a dense model per language) and ``adapters``, which llama.cpp runs, the adapters on
one base with another one for each request; ``--mixtral`` is a merged directory, which transformers generates from and,
where its routers see tokens alone, llama.cpp. ``--site`` holds another version of transformers (made by
``pip install --target``). Everything runs in float32 on the same token ids.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from checkpoints.cli import ArgumentParser, run
from checkpoints.formats.delta import is_delta
from checkpoints.model_io import load_model
from checkpoints.runs.finished import model_of
from moe.errors import UserError
from moe.files import optional_library
from moe.inference.answers import Writer
from moe.inference.generation import generate_many
from moe.inference.questions import read_questions

Texts = list[list[int]]  # tokens of answers

TRANSFORMERS = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM
path, new = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch.float32, trust_remote_code=True).eval()
model.generation_config.eos_token_id = None
answers, settings = [], {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
for prompt in json.load(sys.stdin):
    tokens = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
    answers.append(out[0, len(prompt):].tolist())
print(json.dumps([transformers.__version__, answers]))
"""


def by_transformers(path: Path, prompts: Texts, new: int, site: Path | None) -> tuple[str, Texts]:
    """The version of transformers, in a process of its own, and its greedy answers."""
    environment = os.environ if site is None else {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-W", "ignore", "-c", TRANSFORMERS, str(path), str(new)]
    done = subprocess.run(command, input=json.dumps(prompts), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise UserError(f"transformers failed on {path}: {(done.stderr.splitlines() or ['no message'])[-1]}")
    version, answers = json.loads(done.stdout.splitlines()[-1])
    return f"transformers {version}", answers


class LlamaCpp:
    """A GGUF file in llama.cpp, in float32 throughout, with an adapter for each request."""

    def __init__(self, path: Path, context: int):
        self.library = optional_library("llama_cpp", "running GGUF files")
        wide = self.library.GGML_TYPE_F32
        settings: dict[str, Any] = {"n_ctx": context, "n_threads": 1, "n_threads_batch": 1, "n_gpu_layers": 0}
        self.model = self.library.Llama(str(path), type_k=wide, type_v=wide, verbose=False, **settings)
        self._adapters: dict[Path, Any] = {}

    def use(self, adapter: Path) -> None:
        """Puts an adapter in the place of the last one."""
        if adapter not in self._adapters:
            loaded = self.library.llama_adapter_lora_init(self.model.model, str(adapter).encode())
            if not loaded:
                raise UserError(f"llama.cpp does not read the adapter {adapter}")
            self._adapters[adapter] = loaded
        chosen = (self.library.llama_adapter_lora_p_ctypes * 1)(self._adapters[adapter])
        if self.library.llama_set_adapters_lora(self.model.ctx, chosen, 1, (ctypes.c_float * 1)(1.0)):
            raise UserError(f"llama.cpp does not take the adapter {adapter}")

    def write(self, prompt: list[int], new: int) -> list[int]:
        """A greedy answer."""
        self.model.reset()
        self.model._ctx.kv_cache_clear()
        self.model.eval(prompt)
        answer = []
        for _ in range(new):
            answer.append(int(self.model.sample(temp=0.0)))
            if len(answer) < new:
                self.model.eval(answer[-1:])
        return answer


def convert(script: Path, source: Path, target: Path, *flags: str) -> Path:
    """A GGUF file in float32 by one of llama.cpp's converters, made once."""
    if target.exists():
        return target
    command = [sys.executable, str(script), str(source), "--outfile", str(target), "--outtype", "f32", *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{script.name} failed on {source}: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return target


def export(target: Path, *command: str) -> Path:
    """A directory made by ``python -m checkpoints``, once."""
    if not target.exists():
        full = [sys.executable, "-m", "checkpoints", command[0], command[1], str(target), *command[2:]]
        if subprocess.run(full, stdout=subprocess.DEVNULL).returncode:
            raise UserError(f"{command[0]} failed; the lines above say why")
    return target


def main(arguments: argparse.Namespace) -> int:
    """Prints how many answers are equal; 1 where some are not."""
    torch.set_num_threads(1)
    path, new = model_of(arguments.run), arguments.tokens
    loaded = load_model(path)
    if loaded.tokenizer is None or not is_delta(path):
        raise UserError(f"{path}: expected a model made of deltas, with a tokenizer")
    questions = read_questions(arguments.prompts)[: arguments.count]
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    writer = Writer(loaded.model, loaded.tokenizer, loaded.template, new)
    prompts = [writer.encode(question) for question in questions]
    context = max(map(len, prompts)) + new
    same = True

    def report(what: str, wanted: Texts, found: Texts) -> None:
        nonlocal same
        equal = sum(a == b for a, b in zip(wanted, found, strict=True))
        same &= equal == len(wanted)
        print(f"{what}: {equal} of {len(wanted)} answers equal", flush=True)

    # 1. Each language's expert, dense and as an adapter of the base.
    if arguments.converter is not None:
        base = Path(json.loads((path / "config.json").read_bytes())["base"]["path"])
        adapters = export(arguments.workdir / "adapters", "adapters", str(path))
        lora = arguments.converter.with_name("convert_lora_to_gguf.py")
        server = LlamaCpp(convert(arguments.converter, base, arguments.workdir / "base.gguf"), context)
        wanted, dense, adapted = dict[int, list[int]](), dict[int, list[int]](), dict[int, list[int]]()
        files: dict[str, Path] = {}
        for language in loaded.config.expert_languages:
            own = [place for place, question in enumerate(questions) if question.language == language]
            single = export(arguments.workdir / language, "extract", str(path), "--language", language)
            model = load_model(single).model
            wanted |= zip(own, greedy(model, [prompts[place] for place in own], new))
            whole = LlamaCpp(convert(arguments.converter, single, arguments.workdir / f"{language}.gguf"), context)
            dense |= {place: whole.write(prompts[place], new) for place in own}
            target = arguments.workdir / f"{language}-adapter.gguf"
            files[language] = convert(lora, adapters / language, target, "--base", str(base))
        for place in sorted(wanted):  # in the order of the prompts: the adapter changes with each
            server.use(files[str(questions[place].language)])
            adapted[place] = server.write(prompts[place], new)
        order = sorted(wanted)
        report("extracted, in llama.cpp", [wanted[p] for p in order], [dense[p] for p in order])
        report("adapters by request, in llama.cpp", [wanted[p] for p in order], [adapted[p] for p in order])

    # 2. Merged mixtures.
    for mixtral in arguments.mixtral:
        merged = load_model(mixtral)
        ours = greedy(merged.model, prompts, new)
        for site in (None, *arguments.site):
            version, theirs = by_transformers(mixtral, prompts, new, site)
            report(f"{mixtral.name}, in {version}", ours, theirs)
        if arguments.converter is not None and merged.config.router_context == "none":
            file = convert(arguments.converter, mixtral, arguments.workdir / f"{mixtral.name}.gguf")
            whole = LlamaCpp(file, context)
            report(f"{mixtral.name}, in llama.cpp", ours, [whole.write(prompt, new) for prompt in prompts])
    return 0 if same else 1


def greedy(model: Any, prompts: Sequence[list[int]], new: int) -> Texts:
    """This project's greedy answers."""
    return [answer.tokens for answer in generate_many(model, prompts, max_new_tokens=new, batch_size=8)]


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m eval.other_programs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a run or model directory made of deltas")
    parser.add_argument("prompts", type=Path, help="a file of prompts, as generate.py takes it")
    parser.add_argument("workdir", type=Path, help="where exports are made and kept")
    parser.add_argument("--converter", type=Path, metavar="FILE", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--mixtral", type=Path, nargs="+", default=[], metavar="DIR", help="merged directories")
    parser.add_argument(
        "--site", type=Path, nargs="+", default=[], metavar="DIR", help="other versions of transformers"
    )
    parser.add_argument("--count", type=int, default=200, metavar="N", help="how many prompts")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens of an answer")
    return parser


if __name__ == "__main__":
    sys.exit(run(build_parser(), main))
