"""The end of a run: its tables on the terminal, and ``report.md``."""

from __future__ import annotations

import shlex
from typing import Any

import torch
from rich.console import Console

from checkpoints.cli import script_command
from checkpoints.progress import say
from checkpoints.runs.directory import RunDirectory
from eval.reporting.tables import loss_table, markdown_report, routing_table, score_table
from moe.hardware import describe_hardware
from moe.training.config import RunConfig

MODELS = ("base", "dense adapter", "mixture")


def report(directory: RunDirectory, config: RunConfig, device: torch.device, console: Console) -> None:
    """Prints what the run measured, writes it to ``report.md``, and says what to type to use the model."""
    scored = {name: directory.results.get(f"scores of {name}") for name in MODELS}
    results: dict[str, dict[str, Any]] = {
        split: {name: found["scores"][split] for name, found in scored.items() if found} for split in config.test_sets
    }
    found = directory.results["scores of mixture"]["specialization"]
    for split in config.test_sets:
        console.print(loss_table(results, split, config.languages))
    title = "Routing of held-out response tokens: gate weight of each expert"
    console.print(routing_table(found["table"], config.languages, title))
    bits = " ".join(f"{x:.2f}" for x in found["information"])
    chance = max(found["shuffled"])
    say(console, f"I(language; first-choice expert) per layer, bits: {bits} (shuffled labels: at most {chance:.3f})")
    for split in config.test_sets:
        console.print(score_table(results, split, config.languages))
    summary = {
        "name": directory.path.name,
        "command": directory.settings["command"],
        "date": directory.settings["date"],
        "hardware": describe_hardware(device),
        "languages": list(config.languages),
        "results": results,
        "specialization": found,
    }
    (directory.path / "report.md").write_text(markdown_report(summary), encoding="utf-8")
    say(console, f"report: {directory.path / 'report.md'}")
    example = "Return the sum of all even numbers in a list."
    model = shlex.quote(str(directory.path / "model"))
    command = f'{script_command("generate")} "{example}" --language {config.languages[0]} --model {model}'
    say(console, f"write code with it: {command}")
