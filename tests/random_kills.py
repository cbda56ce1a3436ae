"""``python -m tests.random_kills [--kills 100]``: runs of train.py killed at random moments end as an undisturbed one.

Each run is started, killed, resumed and killed again until it gets through. Kills are SIGKILL, SIGTERM, SIGHUP and
SIGINT, at a random time or, every second one, while a file or a state is being written. What is compared: every weight,
the metrics, the answers and the report, without the columns and lines that tell the time.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints.storage.files import sha256_file

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    "--preset tiny --train-pairs 60 --pretrain-steps 6 --branch-steps 3 --mix-steps 6 --router-documents 40 "
    "--languages python javascript --eval-pairs 3 --test-pairs 1 --loss-pairs 4 --max-new-tokens 8 --eval-batch-size 2 "
    "--shared-rank 2 --expert-rank 2 --max-tokens 256 --tokens-per-batch 512 --validation-steps 2 "
    "--validation-pairs 2 --sample-steps 2 --save-minutes 0"
).split()
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGKILL, signal.SIGINT)
CLOCKS = ("seconds", "tokens_per_second", "mfu", "memory_gib")  # columns of metrics.csv
MOST = 3600.0  # seconds of one try


@dataclass
class Outcome:
    """Kills by signal and by whether a write was going on, tries that got through, and what differed."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    differences: list[str] = field(default_factory=list)


def start(arguments: list[str], log: Path) -> int:
    """Runs train.py in a child process of one thread; returns its process id."""
    with log.open("a") as file:
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # sums in another order differ in their last bits
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file).pid


def finished(child: int) -> int | None:
    """The exit code of a child, negative for a signal; None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait(child: int, until: Callable[[], bool]) -> int | None:
    """Waits until a child ends, whose exit code it returns, or ``until`` is true."""
    began = time.monotonic()
    while not until():
        if (code := finished(child)) is not None:
            return code
        if time.monotonic() - began > MOST:
            os.kill(child, signal.SIGKILL)
            raise RuntimeError("a try took too long")
        time.sleep(0.002)
    return None


def contents(run: Path) -> dict[str, str]:
    """What a run left, by file: checksums, and of files with times in them the text without those."""
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = str(path.relative_to(run))
        if name in ("run.json", "report.html", "curves.png") or name.startswith("tensorboard"):
            continue  # date and command, and drawn from what is compared
        if name == "metrics.csv":
            head, *rows = [line.split(",") for line in path.read_text().splitlines()]
            found[name] = str([[x for n, x in zip(head, row) if n not in CLOCKS] for row in [head, *rows]])
        elif name == "report.md":
            text = re.sub(r"(?m)^.*(train\.py|\d{4}-\d\d-\d\d).*$|\| [\d,]+ \|$", "", path.read_text())
            found[name] = re.sub(r"(?m)^(\| \w+ \| \d+ \| [\d,]+ \|) [\d,]+ \|", r"\1", text)  # seconds of a stage
        elif path.suffix == ".json":
            found[name] = path.read_text()
        else:
            found[name] = sha256_file(path)
    return found


def random_kills(kills: int, place: Path, seed: int = 0, say: Callable[[str], None] = print) -> Outcome:
    """Kills runs ``kills`` times in all and compares each with an undisturbed one."""
    draw, outcome = random.Random(seed), Outcome()
    run, log = place / "the-run", place / "log.txt"  # all at one path, which models hold
    begin = [*FLAGS, "--runs", str(place), "--name", run.name]
    began = time.monotonic()
    if (code := wait(start(begin, log), lambda: False)) != 0:
        raise RuntimeError(f"the undisturbed run ended with {code}: {log.read_text()[-2000:]}")
    duration = time.monotonic() - began
    wanted = contents(run)
    while outcome.kills.total() < kills:
        if run.exists():
            shutil.rmtree(run)
        code = None
        while code != 0:
            child = start(["--resume", str(run)] if (run / "run.json").exists() else begin, log)
            if outcome.kills.total() >= kills:
                code = wait(child, lambda: False)
                if code != 0:
                    raise RuntimeError(f"a run that was not killed ended with {code}: {log.read_text()[-2000:]}")
                continue
            number = SIGNALS[outcome.kills.total() % len(SIGNALS)]
            at = time.monotonic() + draw.uniform(0, 1.1 * duration)
            writing = draw.random() < 0.5

            def moment(at: float = at, writing: bool = writing) -> bool:
                late = time.monotonic() >= at
                return late and (not writing or any(run.glob(".*.tmp")) or any(run.glob("*/*/.*.tmp")))

            code = wait(child, moment)
            if code is None:
                os.kill(child, number)
                code = wait(child, lambda: False)
                outcome.kills[f"{number.name}{' in a write' if writing else ''}"] += 1
            if code not in (0, -number, 128 + number):  # -number: while importing
                raise RuntimeError(f"a try ended with {code} after {number.name}: {log.read_text()[-2000:]}")
        outcome.runs += 1
        found = contents(run)
        names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        outcome.differences += [f"run {outcome.runs}: {name}" for name in names]
        for name in names:
            say(f"- {wanted.get(name)}\n+ {found.get(name)}")
        say(f"{outcome.runs} runs, {outcome.kills.total()} kills, {len(outcome.differences)} differences")
    return outcome


def main() -> int:
    """Kills, compares and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        outcome = random_kills(arguments.kills, Path(place), arguments.seed)
    for name, count in sorted(outcome.kills.items()):
        print(f"{name}: {count}")
    print("\n".join(outcome.differences) or f"all {outcome.runs} runs ended as the undisturbed one")
    return 1 if outcome.differences else 0


if __name__ == "__main__":
    sys.exit(main())
