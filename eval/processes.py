"""Processes with a time limit, whose output goes to a file."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GRACE = 8.0  # seconds that a process has to save what it has after Ctrl-C


class Part(NamedTuple):
    """``seconds`` is the part's limit; ``command`` what runs it."""

    name: str
    seconds: float
    command: list[str]


class Running:
    """A part's process, in its own process group so that a limit ends its children too; output goes to NAME.log."""

    def __init__(self, part: Part, output: Path):
        self.part, self.begin = part, time.monotonic()
        self.log = output / f"{part.name}.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def finish(self, seconds: float) -> dict[str, Any]:
        """Waits at most ``seconds``, the last of which are for saving after Ctrl-C, then kills the part."""
        grace = min(GRACE, seconds / 4)
        try:
            code = self.process.wait(max(0.0, seconds - grace))
            status = "ok" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            status = f"stopped at its limit of {seconds:.0f} s"
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, signal.SIGINT)
                self.process.wait(grace)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        entry = {"status": status, "seconds": round(time.monotonic() - self.begin, 1), "log": self.log.name}
        if status != "ok":
            entry["last_lines"] = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return entry
