"""Sends random requests through a server and checks each answer against the same request alone.

    python -m eval.server_soak --model runs/NAME --requests 2000

Lengths, sampling, stop strings, languages and routing are random, and some clients leave in the middle. Memory is that
of this process, which also runs the server.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.cli import ArgumentParser, run
from checkpoints.model_io import load_model
from checkpoints.runs.finished import model_of
from moe.errors import UserError
from moe.hardware import choose_device, choose_dtype, describe_hardware, dtype_name, keep_freed_memory
from moe.inference.answers import Answer, Writer
from moe.serving.protocol import read_job
from moe.serving.start import open_port

WORDS = (
    "def return for while if else list string number sum max sort even odd index value print (x): \n [i] == + 1".split(
        " "
    )
)
LEAVES = 0.05  # share of the clients that go away after their first piece of text


@dataclass(frozen=True)
class Result:
    """What came of a request: equal, different, left or an error."""

    kind: str
    body: dict[str, Any]
    tokens: int = 0


def random_body(draw: random.Random, languages: Sequence[str], longest: int) -> dict[str, Any]:
    """A request of random length and settings; seeded, so that it has one right answer."""
    text = " ".join(draw.choices(WORDS, k=draw.choice((1, 4, 16, 64))))
    text = text if text.strip() else WORDS[0]  # the server refuses an empty prompt
    body: dict[str, Any] = {"max_tokens": draw.randint(1, longest), "seed": draw.randrange(1 << 32)}
    chat = draw.random() < 0.5
    body |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    if draw.random() < 0.6:
        body |= {"temperature": draw.choice((0.2, 0.8, 1.5)), "top_p": draw.choice((0.5, 0.9, 1.0))}
        body |= {"top_k": draw.choice((0, 1, 40)), "min_p": draw.choice((0.0, 0.05))}
        body["repetition_penalty"] = draw.choice((1.0, 1.0, 1.3))
    if draw.random() < 0.3:
        body["stop"] = draw.choice((["\n\n"], ["return", ")"], "e"))
    if languages and draw.random() < 0.5:
        body |= {"language": draw.choice(languages), "routing": draw.choice(("biased", "forced"))}
    elif len(languages) > 1 and draw.random() < 0.3:
        body["experts"] = draw.sample(range(len(languages)), draw.randint(1, len(languages)))
    body["n"] = draw.choice((1, 1, 1, 2, 3))
    return body | {"stream": draw.random() < 0.5}


def alone(body: dict[str, Any], writer: Writer) -> list[Answer]:
    """The answers of an engine that does nothing else, one after another."""
    job = read_job(body, "messages" in body, writer, 8)
    answers: list[Answer] = []
    for number in range(job.n):
        engine = job.writer.engine(1)
        engine.submit(job.writer.continuation(job.prompts[0], job.language, answers.append, number=number))
        engine.run()
    return answers


def send(body: dict[str, Any], port: int, leave: bool) -> list[tuple[str, str]] | None:
    """Texts and reasons of the end that a server gives; None where the client left."""
    chat = "messages" in body
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        path = "/v1/chat/completions" if chat else "/v1/completions"
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise UserError(f"HTTP {response.status}: {response.read(300).decode('utf-8', 'replace')}")
        texts, ends = [""] * body["n"], [""] * body["n"]
        if not body["stream"]:
            for choice in json.loads(response.read())["choices"]:
                texts[choice["index"]] = choice["message"]["content"] if chat else choice["text"]
                ends[choice["index"]] = choice["finish_reason"]
            return list(zip(texts, ends))
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            if leave:
                return None
            for choice in json.loads(line[6:])["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "") if chat else choice["text"]
                ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
        return list(zip(texts, ends))


def resident_memory() -> float:
    """MiB of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def main(arguments: argparse.Namespace) -> int:
    for name in ("requests", "clients", "max_tokens"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}, expected at least 1")
    listener = open_port(0)
    from moe.serving.app import Service

    device = choose_device(arguments.device)
    keep_freed_memory(device)
    dtype = choose_dtype(device, arguments.dtype)
    loaded = load_model(model_of(arguments.model), dtype, device)
    if loaded.tokenizer is None:
        raise UserError(f"{arguments.model} has no tokenizer")
    writer = Writer(loaded.model, loaded.tokenizer, loaded.template)
    print(f"{describe_hardware(device)}, weights in {dtype_name(dtype)}", flush=True)

    # 1. A server in a thread of this process.
    service = Service(writer, "soak", listener, arguments.batch_size, 4 * arguments.clients)
    ready = threading.Event()
    server = threading.Thread(target=service.run, args=(ready.set,))
    server.start()
    ready.wait()

    # 2. Clients; this thread compares what they get.
    draw = random.Random(arguments.seed)
    bodies = [
        random_body(draw, loaded.config.expert_languages, arguments.max_tokens) for _ in range(arguments.requests)
    ]
    leaving = [body["stream"] and draw.random() < LEAVES for body in bodies]
    memory = [resident_memory()]

    def ask(place: int) -> list[tuple[str, str]] | str:
        try:
            found = send(bodies[place], listener.getsockname()[1], leaving[place])
        except (OSError, ValueError) as error:
            return f"error: {error}"
        return "left" if found is None else found

    def check(body: dict[str, Any], found: list[tuple[str, str]] | str) -> Result:
        if isinstance(found, str):
            return Result(found, body)
        wanted = alone(body, writer)
        same = found == [(answer.text, answer.finished) for answer in wanted]
        return Result("equal" if same else "different", body, sum(answer.tokens for answer in wanted))

    started, results = time.monotonic(), []
    try:
        with ThreadPoolExecutor(arguments.clients) as pool:
            for body, found in zip(bodies, pool.map(ask, range(len(bodies)))):
                results.append(check(body, found))  # in this thread alone: each thread would keep memory of its own
                if len(results) % max(1, len(bodies) // 10) == 0:
                    memory.append(resident_memory())
                    print(f"{len(results)} requests, {memory[-1]:.0f} MiB", flush=True)
    finally:
        idle = time.monotonic() + 30
        while service.batcher.load and time.monotonic() < idle:
            time.sleep(0.05)
        held = service.batcher.load
        service.stop()
        server.join()

    # 3. The account.
    counts = {kind: sum(result.kind == kind for result in results) for kind in ("equal", "different", "left")}
    errors = [result for result in results if result.kind.startswith("error")]
    tokens, seconds = sum(result.tokens for result in results), time.monotonic() - started
    print(
        f"{len(results)} requests, {tokens} tokens in {seconds:.0f} s: {counts['equal']} equal to the request alone, "
        f"{counts['different']} different, {counts['left']} clients left, {len(errors)} errors; "
        f"{held} rows held; memory {memory[len(memory) // 4]:.0f} MiB after a quarter, {memory[-1]:.0f} at the end"
    )
    for result in [*errors, *(result for result in results if result.kind == "different")][:5]:
        print(f"{result.kind}: {json.dumps(result.body)}")
    return 1 if errors or counts["different"] or held else 0


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m eval.server_soak", description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="a model or run directory")
    add("--requests", type=int, default=2000, metavar="N", help="how many to send")
    add("--clients", type=int, default=24, metavar="N", help="how many at the same time")
    add("--batch-size", type=int, default=16, metavar="N", help="rows of the server's batch")
    add("--max-tokens", type=int, default=120, metavar="N", help="longest answer")
    add("--seed", type=int, default=0, metavar="N", help="of the requests")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", default="float32", help="float64, float32, bfloat16 or auto; batches round differently if narrow")
    return parser


if __name__ == "__main__":
    sys.exit(run(make_parser(), main))
