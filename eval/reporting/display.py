"""Live progress display of training."""

# G languages, E experts

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from checkpoints.progress import PLAIN_SECONDS, say
from eval.reporting.metrics import MetricsWriter
from eval.reporting.tables import routing_table, share_text
from moe.training.progress import StepReport
from moe.training.stages import Stage

SETTLED = 20  # steps of a stage before its routing is judged
STARVED = 0.2  # of an equal share of the gate weight
COLLAPSED = 0.9  # of each language's gate weight on one expert


def routing_faults(table: torch.Tensor, languages: Sequence[str]) -> list[str]:
    """What is wrong with routing [G, E], the share of each language's gate weight that each expert gets."""
    languages_seen, experts = table[~table.isnan().any(-1)], table.shape[1]
    names = languages if experts == len(languages) else [str(number) for number in range(experts)]
    if len(languages_seen) > 1 and (languages_seen.min(0).values > COLLAPSED).any():
        return ["the router sends all languages to one expert"]
    if len(languages_seen) < len(table):  # the experts of the others have nothing to do
        return []
    return [
        f"expert {name} starves, with less than {STARVED / experts:.0%} of the gate weight"
        for name, share in zip(names, languages_seen.mean(0).tolist())
        if share * experts < STARVED
    ]


class StageDisplay:
    """Progress of one stage: a bar, loss per language, tokens/s, time left, and the routing table as it changes.

    On a terminal it is drawn in place; elsewhere (a log file) a line comes every few seconds.
    """

    def __init__(self, console: Console, languages: Sequence[str], title: str, steps: int, done: int = 0):
        self.console, self.languages, self.title = console, tuple(languages), title
        self._last = 0.0
        self._rate = 0.0
        self._routing: torch.Tensor | None = None
        self._validation = ""
        self._faults: list[str] = []
        self._seen = 0  # steps with a router
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
        self._warn(report)
        if report.validation is not None:
            self._validation = f", validation {sum(report.validation) / len(report.validation):.3f}"
        losses = " ".join(f"{x} {v:.3f}" for x, v in zip(self.languages, report.language_losses) if v is not None)
        measured = "".join(f", {name} {value:.3f}" for name, value in report.measured.items() if "_" not in name)
        loss, speed = f"loss {report.loss:.3f} ({losses}){self._validation}{measured}", f"{self._rate:,.0f} tokens/s"
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

    def _warn(self, report: StepReport) -> None:
        """Says that a step was skipped, and, once, what is wrong with the routing."""
        where = f"warning: {report.stage}, step {report.step}"
        if report.skipped:
            say(self.console, f"{where} skipped, {report.skipped} ({report.all_skipped} so far)")
        self._seen += report.routing is not None
        if self._routing is not None and self._seen >= SETTLED:
            faults = routing_faults(self._routing, self.languages)
            for fault in faults:
                if fault not in self._faults:
                    say(self.console, f"{where}: {fault}; a higher balance_loss_weight spreads the load")
            self._faults = sorted({*self._faults, *faults})


class TrainingMonitor:
    """Shows the steps of each stage live and appends them to the run's metrics files."""

    def __init__(
        self,
        console: Console,
        directory: Path,
        languages: Sequence[str],
        matmul_rate: float = 0.0,
        tracker: str = "",
    ):
        self.console, self.languages = console, tuple(languages)
        self.metrics = MetricsWriter(directory, languages, matmul_rate, tracker)

    @contextmanager
    def __call__(self, stage: Stage, done: int) -> Iterator[Callable[[StepReport], None]]:
        """Opens the display of a stage whose first ``done`` steps were made earlier; takes the report of each step."""
        self.metrics.resume(stage.name, done)
        with StageDisplay(self.console, self.languages, stage.name, stage.steps, done) as display:

            def show(report: StepReport) -> None:
                display.update(report)
                self.note(report)

            yield show

    def note(self, report: StepReport) -> None:
        """Adds a step that was shown to the metrics files."""
        self.metrics.write(report)

    def close(self) -> None:
        """Closes the metrics files."""
        self.metrics.close()
