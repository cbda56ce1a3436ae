"""Finished runs for tests, written without training: what train.py leaves, with numbers of the test's choice."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.scoring import ScoredAnswer, save_answers, score_answers
from moe.data.rows import Row
from moe.files import json_bytes, read_json_lines, replace_file, write_json_lines
from moe.training.config import RunConfig

LANGUAGES = ("python", "cpp")
REFERENCE = "def total(values):\n    result = 0\n    for value in values:\n        result += value\n    return result"
FINGERPRINTS = {"training data": "a", "test sets": {"test": "b"}, "base": "c", "tokenizer": "d"}


def answer(quality: float, draw: random.Random) -> str:
    """The reference with about a share of 1 - quality of its lines changed."""
    lines = REFERENCE.splitlines()
    return "\n".join(line if draw.random() < quality else "    pass  # ?" for line in lines)


def write_run(
    path: Path,
    seed: int = 0,
    models: Mapping[str, float] = {"base": 0.2, "dense adapter": 0.6, "mixture": 0.7},
    pairs: int = 12,
    answers: Mapping[str, str] | None = None,
    text: str = "Adds the values.",
    fingerprints: Mapping[str, Any] | None = FINGERPRINTS,
    layers: int = 3,
    languages: Sequence[str] = LANGUAGES,
    **settings: Any,
) -> Path:
    """Writes a run whose models have these qualities (0 to 1).

    Args:
        answers: texts by model in the place of made ones.
        text: of every pair.
    """
    path.mkdir(parents=True)
    config = {**RunConfig(seed=seed, languages=tuple(languages), num_experts_per_tok=1).to_dict(), **settings}
    document = {"config": config, "command": f"python train.py --seed {seed}", "date": "2026-11-26", "torch": "2"}
    replace_file(path / "run.json", json_bytes(document))
    results: dict[str, Any] = {"hardware": "a CPU"}
    if fingerprints is not None:
        results["fingerprints"] = fingerprints
    noise = random.Random(seed)
    difficulty = {x: [noise.uniform(0.5, 1.5) for _ in range(pairs)] for x in languages}
    for model, quality in models.items():
        draw = random.Random(f"{seed} {model}")
        given = (answers or {}).get(model)
        scored = {
            language: [
                ScoredAnswer(_row(i, language, text, answer(quality, draw) if given is None else given), "", "stop")
                for i in range(pairs)
            ]
            for language in languages
        }
        name = f"{model.replace(' ', '-')}-test.jsonl"
        save_answers(scored, path / "answers" / name)
        rows = [row for _, row in read_json_lines(path / "answers" / name, "a row")]
        tests: dict[str, Any] = {}
        for language in languages:
            own = [row for row in rows if row["language"] == language]
            for row in own:
                row["verdict"] = "passed" if row["answer"] == REFERENCE else "failed"
            passed = sum(row["verdict"] == "passed" for row in own)
            tests[language] = {"tested": pairs, "passed": passed, "verdicts": {}, "why": ""}
        write_json_lines(path / "answers" / name, rows)
        losses = [
            {"id": f"task {i}", "language": x, "nats": 20 * difficulty[x][i] * (1.5 - quality), "tokens": 10 + i}
            for x in languages
            for i in range(pairs)
        ]
        write_json_lines(path / "losses" / name, losses)
        scores = {}
        for language, score in score_answers(scored).items():
            own = [row for row in losses if row["language"] == language]
            tokens = sum(row["tokens"] for row in own)
            loss = sum(row["nats"] for row in own) / tokens
            scores[language] = {**vars(score), "loss": loss, "tokens": tokens, "examples": pairs}
        cost = {"parameters": 1_353_120, "trained": 0, "active": 1_353_120, "flops_per_token": 4e6}
        results[f"scores of {model}"] = {"scores": {"test": scores}, "cost": cost}
        results[f"tests of {model}"] = {"test": tests}
    if "mixture" in models:
        count = len(languages)
        rest = 0.1 / max(1, count - 1)
        table = [[0.9 if i == j else rest for j in range(count)] for i in range(count)]
        even = [[1 / count] * count] * count
        results["scores of mixture"]["specialization"] = {
            "table": table,
            "layers": [table, even, table][:layers],
            "information": [0.5] * layers,
            "shuffled": [0.01] * layers,
            "layer_numbers": [2, 5, 7][:layers],
        }
    replace_file(path / "results.json", json_bytes(results))
    lines = ["stage,step,loss,tokens,seconds"]
    for stage in ("pretrain", "branch", "mix", "adapter"):
        lines += [f"{stage},{step},{3 / step:.3f},100,0.5" for step in range(1, 6)]
    (path / "metrics.csv").write_text("\n".join([*lines, "mix,6"]) + "\n")
    return path


def _row(number: int, language: str, text: str, answer: str) -> Row:
    return Row(f"task {number}", language, text, (REFERENCE,), "{}", answer)
