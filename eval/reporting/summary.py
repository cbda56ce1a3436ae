"""The end of a run: its tables on the terminal, and its report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from checkpoints.cli import script_command
from checkpoints.progress import say
from checkpoints.runs.directory import RunDirectory
from eval.reporting.page import write_report
from eval.reporting.record import RunRecord
from eval.reporting.tables import loss_table, routing_table, score_table

ROUNDING = 1e-3  # nats


def report(directory: RunDirectory, console: Console) -> None:
    """Prints what the run measured, writes its report, and says what to type to use the model.

    Of several processes the main one alone calls it, so it may wait for no other.
    """
    run = RunRecord(directory.path)
    results = {split: run.titled(run.scores(split)) for split in run.splits}
    for split in run.splits:
        console.print(loss_table(results, split, run.languages))
    if (found := run.routing) is not None:
        title = "Routing of held-out response tokens: gate weight of each expert"
        console.print(routing_table(found["table"], run.languages, title))
        bits = " ".join(f"{x:.2f}" for x in found["information"])
        chance = max(found["shuffled"])
        say(
            console, f"I(language; first-choice expert) per layer, bits: {bits} (shuffled labels: at most {chance:.3f})"
        )
    if not run.is_scored:
        say(console, f"the answers have no CodeBLEU, as tree-sitter is not installed here; where it is, type: "
                     f"python -m eval score-answers {shlex.quote(str(directory.path))}")  # fmt: skip
        return
    for split in run.splits:
        console.print(score_table(results, split, run.languages))
    for line in write_report([run], directory.path):
        say(console, line)
    example = "Return the sum of all even numbers in a list."
    model = shlex.quote(str(directory.path / "model"))
    command = f'{script_command("generate")} "{example}" --language {run.languages[0]} --model {model}'
    say(console, f"write code with it: {command}")


def worse_than_base(results: Mapping[str, Any]) -> str:
    """Where training made the mixture worse than its base, in one line; "" if it did not.

    Compares the mean held-out loss over splits and languages; a mixture that learned nothing is no worse.
    """
    losses = []
    for name in ("base", "mixture"):
        scores = results[f"scores of {name}"]["scores"].values()
        found = [score["loss"] for split in scores for score in split.values()]
        losses.append(sum(found) / len(found))
    base, mixture = losses
    if mixture <= base + ROUNDING:
        return ""
    return (
        f"the mixture is worse than its base: held-out loss {mixture:.3f}, the base's is {base:.3f}; train it anew "
        "with a lower --mix-lr and --branch-lr"
    )
