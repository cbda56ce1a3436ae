"""``python -m eval score-answers``: CodeBLEU and tests of the answers of a run that was made without tree-sitter."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints.model_card import RESULTS_FILE
from eval.answer_code import answer_code
from eval.reporting.page import write_report
from eval.reporting.record import RunRecord
from eval.scoring import score_each, score_rows
from eval.verdicts import add_verdicts
from moe.data.rows import parse_row
from moe.errors import UserError
from moe.files import json_bytes, replace_file, write_json_lines


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``score-answers`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "score-answers",
        help="score the answers of a run that was made without tree-sitter",
        description="Adds CodeBLEU and the verdicts of tests to the answers and results of runs that were trained "
        "where tree-sitter is not installed, such as a machine with a GPU and no network, and writes their reports. "
        "What is there stays as it is.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's directory")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    for run in [RunRecord(path) for path in arguments.runs]:
        if not run.is_scored:
            score_run(run)
            print("\n".join(write_report([run], run.path)))
        print(f"{run.path}: all answers are scored")
    return 0


def score_run(run: RunRecord) -> None:
    """Writes the scores and verdicts of all answers into the run's answers and results; what is there stays.

    Raises :class:`UserError` where answers are missing that the results count.
    """
    written = {}
    for model in run.models:
        for split, languages in run.results[f"scores of {model}"]["scores"].items():
            path, rows = run.answers_path(model, split), run.answers(model, split)
            for language, score in languages.items():
                own = [row for row in rows if row["language"] == language]
                if len(own) != score["answers"]:
                    raise UserError(f"{path} has {len(own)} {language} answers, expected {score['answers']}")
                if "codebleu" in score:
                    continue
                if model == "base" and run.config["chat_base"]:
                    for row in own:
                        row["raw"] = row["answer"]
                        row["answer"] = answer_code(row["raw"], language).strip("\r\n")
                parsed = [parse_row(row) for row in own]
                for row, found in zip(own, score_each(parsed, language), strict=True):
                    row |= found
                score |= asdict(score_rows(parsed, language))
            written[path] = rows
    for path, rows in written.items():
        write_json_lines(path, rows)
    for model in run.models:
        if f"tests of {model}" not in run.results:
            paths = {split: run.answers_path(model, split) for split in run.splits}
            chosen = run.config.get("test_pairs", 0), run.config["seed"]
            run.results[f"tests of {model}"] = {split: add_verdicts(path, *chosen) for split, path in paths.items()}
    replace_file(run.path / RESULTS_FILE, json_bytes(run.results))
