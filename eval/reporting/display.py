"""Live progress display and metrics files (CSV, TensorBoard)."""

from __future__ import annotations

import csv
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from checkpoints.progress import PLAIN_SECONDS
from eval.reporting.tables import routing_table, share_text
from moe.files import replacing
from moe.training.stages import Stage
from moe.training.trainer import StepReport


class MetricsWriter:
    """Appends each step to ``metrics.csv`` and, where TensorBoard is installed, to event files in ``tensorboard/``."""

    def __init__(self, directory: Path, languages: Sequence[str]):
        directory.mkdir(parents=True, exist_ok=True)
        self.languages = tuple(languages)
        path = directory / "metrics.csv"
        fresh = not path.exists() or path.stat().st_size == 0
        self._path = path
        self._file = path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        if fresh:
            experts = [f"share_{a}_to_{b}" for a in languages for b in languages]
            names = ["loss", *(f"loss_{x}" for x in languages), "balance_loss", "z_loss", "learning_rate"]
            self._csv.writerow(["stage", "step", *names, "gradient_norm", "tokens", "seconds", *experts])
            self._file.flush()
        self._board = _tensorboard(directory / "tensorboard")

    def resume(self, stage: str, step: int) -> None:
        """Drops the rows of ``stage`` after ``step``, which will be made again, and rows that were cut short."""
        self._file.close()
        with self._path.open(newline="", encoding="utf-8", errors="replace") as file:
            head, *found = csv.reader(file)
        whole = (len(head), len(head) - len(self.languages) ** 2)  # with the shares of experts, and without
        rows = [head, *(x for x in found if len(x) in whole and (x[0] != stage or int(x[1]) <= step))]
        with replacing(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)

    def write(self, report: StepReport) -> None:
        """Adds one step."""
        shares = [] if report.routing is None else report.routing.flatten().tolist()
        losses = ["" if x is None else f"{x:.5f}" for x in report.language_losses]
        numbers = [report.balance, report.z, report.learning_rate, report.gradient_norm]
        row = [report.stage, report.step, f"{report.loss:.5f}", *losses, *(f"{x:.6g}" for x in numbers)]
        self._csv.writerow(
            [*row, report.tokens, f"{report.seconds:.3f}", *("" if math.isnan(x) else f"{x:.4f}" for x in shares)]
        )
        self._file.flush()
        if self._board is None:
            return
        scalars = {"loss": report.loss, "balance_loss": report.balance, "z_loss": report.z}
        scalars |= {"learning_rate": report.learning_rate, "gradient_norm": report.gradient_norm}
        scalars |= {f"loss/{x}": v for x, v in zip(self.languages, report.language_losses) if v is not None}
        for name, value in scalars.items():
            self._board.add_scalar(f"{report.stage}/{name}", value, report.step)

    def close(self) -> None:
        """Ends both files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _tensorboard(directory: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        warnings.warn("TensorBoard is not installed; metrics go to metrics.csv alone", stacklevel=2)
        return None
    return SummaryWriter(str(directory))


class StageDisplay:
    """Progress of one stage: a bar, loss per language, tokens/s, time left, and the routing table as it changes.

    On a terminal it is drawn in place; elsewhere (a log file) a line comes every few seconds.
    """

    def __init__(self, console: Console, languages: Sequence[str], title: str, steps: int, done: int = 0):
        self.console, self.languages, self.title = console, tuple(languages), title
        self._last = 0.0
        self._rate = 0.0
        self._routing: torch.Tensor | None = None
        self._progress = Progress(  # with 4-digit steps 80 columns wide; losses have a line of their own
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        self._task = self._progress.add_task(title, total=steps, completed=done, rate="left")
        self._live = Live(self._progress, console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> StageDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, report: StepReport) -> None:
        """Shows one step."""
        rate = report.tokens / max(report.seconds, 1e-9)
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate
        if report.routing is not None:
            new = report.routing
            old = new if self._routing is None else torch.where(self._routing.isnan(), new, self._routing)
            self._routing = torch.where(new.isnan(), old, 0.9 * old + 0.1 * new)  # a language may miss in a step
        losses = " ".join(f"{x} {v:.3f}" for x, v in zip(self.languages, report.language_losses) if v is not None)
        loss, speed = f"loss {report.loss:.3f} ({losses})", f"{self._rate:,.0f} tokens/s"
        self._progress.update(self._task, completed=report.step, rate=f"left, {speed}")
        if self._live is not None:
            shown: list[RenderableType] = [self._progress, Text(loss)]
            if self._routing is not None:
                shown.append(routing_table(self._routing.tolist(), self.languages, "routing so far"))
            self._live.update(Group(*shown))
        elif time.monotonic() - self._last > PLAIN_SECONDS or report.step == report.steps:
            self._last = time.monotonic()
            left = (report.steps - report.step) * report.tokens / max(self._rate, 1e-9)
            line = f"{self.title} {report.step}/{report.steps} {loss} {speed}, {left:.0f} s left"
            if self._routing is not None:
                own = (self._routing[i, i].item() for i in range(len(self.languages)))
                line += f", to own expert {' '.join(share_text(share) for share in own)}"
            self.console.print(line, highlight=False, soft_wrap=True)


class TrainingMonitor:
    """Shows the steps of each stage live and appends them to the run's metrics files."""

    def __init__(self, console: Console, directory: Path, languages: Sequence[str]):
        self.console, self.languages = console, tuple(languages)
        self.metrics = MetricsWriter(directory, languages)

    @contextmanager
    def __call__(self, stage: Stage, done: int) -> Iterator[Callable[[StepReport], None]]:
        """Opens the display of a stage whose first ``done`` steps were made earlier; takes the report of each step."""
        self.metrics.resume(stage.name, done)
        with StageDisplay(self.console, self.languages, stage.name, stage.steps, done) as display:

            def show(report: StepReport) -> None:
                display.update(report)
                self.metrics.write(report)

            yield show

    def close(self) -> None:
        """Closes the metrics files."""
        self.metrics.close()
