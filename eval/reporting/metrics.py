"""The measurements of each training step on disk: ``metrics.csv``, TensorBoard, Weights & Biases or Trackio."""

# G languages, R routers, E experts

from __future__ import annotations

import contextlib
import csv
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.specialization import mutual_information
from moe.errors import Notice, UserError
from moe.files import json_lines, naming, optional_library, replacing, write_json_lines
from moe.training.progress import StepReport

METRICS_FILE = "metrics.csv"
SAMPLES_FILE = "samples.jsonl"  # a line per sample answer: stage, step, language, prompt, text
TRACKERS = ("wandb", "trackio")  # of one interface: init, log, finish


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a run's ``metrics.csv`` by column; those that a kill or a bad disk left unreadable are left out."""
    if not path.is_file():
        return []
    head, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    names, rows = head.strip().split(","), []
    for line in lines:
        row = {**dict.fromkeys(names, ""), **dict(zip(names, line.strip().split(",")))}
        try:
            int(row["step"]), float(row["loss"]), int(row["tokens"]), float(row["seconds"])
        except (KeyError, ValueError):
            continue
        rows.append(row)
    return rows


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``samples.jsonl``, but for those that a kill cut short."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


class MetricsWriter:
    """Appends each step to ``metrics.csv``, its sample answers to ``samples.jsonl``, and both to a tracker and, where
    TensorBoard is installed, to event files in ``tensorboard/STAGE/``.

    Args:
        matmul_rate: operations per second that the device reaches in matrix products, for the share that training
            reaches (MFU); 0 where it is not known.
        tracker: one of :data:`TRACKERS`, which gets the same numbers; "" for none.
    """

    def __init__(self, directory: Path, languages: Sequence[str], matmul_rate: float = 0.0, tracker: str = ""):
        directory.mkdir(parents=True, exist_ok=True)
        self.languages, self.matmul_rate = tuple(languages), matmul_rate
        losses = ["loss", *(f"loss_{x}" for x in languages), "validation_loss"]
        losses += [f"validation_loss_{x}" for x in languages]
        numbers = ["balance_loss", "z_loss", "learning_rate", "gradient_norm", "skipped_steps"]
        costs = ["tokens", "seconds", "tokens_per_second", "mfu", "memory_gib"]
        shares = [f"share_{a}_to_{b}" for a in languages for b in languages]
        self.columns = ["stage", "step", *losses, *numbers, *costs, *shares]
        self._path, self._samples = directory / METRICS_FILE, directory / SAMPLES_FILE
        self._rewrite(read_metrics(self._path))
        self._events, self._summary_writer = directory / "tensorboard", _summary_writer()
        self._boards: dict[str, Any] = {}  # by stage, as each counts its steps from 1
        self._tracker: Any = _start(tracker, directory) if tracker else None

    def _rewrite(self, rows: Sequence[Mapping[str, str]], more: Sequence[str] = ()) -> None:
        self.columns = list(dict.fromkeys([*self.columns, *(rows[0] if rows else ()), *more]))
        with replacing(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def resume(self, stage: str, step: int) -> None:
        """Drops the rows of ``stage`` after ``step``, which will be made again, and rows that were cut short."""
        self._rewrite([x for x in read_metrics(self._path) if x["stage"] != stage or int(x["step"]) <= step])
        if self._samples.exists():
            kept = [x for x in read_samples(self._samples) if x["stage"] != stage or x["step"] <= step]
            write_json_lines(self._samples, kept)
        if self._summary_writer is not None:
            self._boards[stage] = self._summary_writer(str(self._events / stage), purge_step=step + 1)

    def row(self, report: StepReport) -> dict[str, float | str]:
        """The numbers of one step by column; what was not measured is left out."""
        found: dict[str, float | str] = {"loss": report.loss}
        found |= {f"loss_{x}": v for x, v in zip(self.languages, report.language_losses) if v is not None}
        if report.validation is not None:
            found["validation_loss"] = sum(report.validation) / len(report.validation)
            found |= {f"validation_loss_{x}": v for x, v in zip(self.languages, report.validation)}
        found |= {"balance_loss": report.balance, "z_loss": report.z, "learning_rate": report.learning_rate}
        found |= {"gradient_norm": report.gradient_norm, "skipped_steps": report.all_skipped}
        rate = report.tokens / max(report.seconds, 1e-9)
        found |= {"tokens": report.tokens, "seconds": report.seconds, "tokens_per_second": rate}
        if self.matmul_rate:
            found["mfu"] = report.flops_per_token * rate / self.matmul_rate
        if report.memory:
            found["memory_gib"] = report.memory / 2**30
        found |= report.measured
        if report.routing is not None and report.routers is not None:
            names = [f"share_{a}_to_{b}" for a in self.languages for b in self.languages]
            shares = zip(names, report.routing.flatten().tolist())
            found |= {name: share for name, share in shares if not math.isnan(share)}
            found |= {f"bits_router_{i}": mutual_information(x) for i, x in enumerate(report.routers)}
        return found

    def write(self, report: StepReport) -> None:
        """Adds one step."""
        found = self.row(report)
        if not found.keys() <= set(self.columns):  # the first step with a router, or of another kind
            self._rewrite(read_metrics(self._path), list(found))
        cells = [found.get(name, "") for name in self.columns[2:]]
        with naming(self._path), self._path.open("a", newline="", encoding="utf-8") as file:
            written = (f"{x:.6g}" if isinstance(x, float) else x for x in cells)
            csv.writer(file).writerow([report.stage, report.step, *written])
        named = {f"{report.stage}/{name}": value for name, value in found.items()}
        if (board := self._boards.get(report.stage)) is not None:
            for name, value in named.items():
                board.add_scalar(name, value, report.step)
        if self._tracker is not None:
            self._tracker.log({**named, f"{report.stage}/step": report.step})
        self._write_samples(report)

    def _write_samples(self, report: StepReport) -> None:
        where = {"stage": report.stage, "step": report.step}
        if report.samples:
            with naming(self._samples), self._samples.open("a", encoding="utf-8") as file:
                file.write(json_lines({**where, **asdict(sample)} for sample in report.samples))
        if (board := self._boards.get(report.stage)) is not None:
            for sample in report.samples:
                text = f"{sample.prompt}\n\n```\n{sample.text}\n```"
                board.add_text(f"{report.stage}/samples/{sample.language}", text, report.step)
        if self._tracker is not None and report.samples:
            texts = {f"{report.stage}/samples/{sample.language}": sample.text for sample in report.samples}
            self._tracker.log({**texts, f"{report.stage}/step": report.step})

    def close(self) -> None:
        """Ends what is still open."""
        for board in self._boards.values():
            board.close()
        if self._tracker is not None:
            self._tracker.finish()


def check_tracker(name: str) -> str:
    """``name``, a tracker that is installed, or ""; raises :class:`UserError` with what to install."""
    if name and name not in TRACKERS:
        raise UserError(f"unknown tracker {name!r}; expected {' or '.join(TRACKERS)}")
    if name:
        optional_library(name, f"metrics are to go to {name}")
    return name


def _start(name: str, directory: Path) -> Any:
    tracker = optional_library(check_tracker(name), f"metrics are to go to {name}")
    tracker.init(project="language-experts", name=directory.resolve().name)
    return tracker


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn("TensorBoard is not installed; metrics go to metrics.csv alone", Notice, stacklevel=2)
        return None
    return SummaryWriter
