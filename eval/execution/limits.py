"""Limits of the programs that are judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["bubblewrap", "namespaces", "none"]
MODES: tuple[Mode, ...] = ("bubblewrap", "namespaces", "none")


@dataclass(frozen=True)
class Limits:
    """Limits of one run of a program.

    seconds, compile_seconds: wall time. memory: bytes of all its processes together. disk: bytes of all its files.
    processes: at a time, threads included. sanitize: run C++ again under AddressSanitizer and
    UndefinedBehaviorSanitizer. containment: ``auto`` takes the first of :data:`MODES` that works, ``none`` only if
    ``unsafe`` is set; else :class:`UserError`. cache: a folder that keeps what was compiled (default: one of this
    process, which goes with it).
    """

    seconds: float = 10.0
    compile_seconds: float = 120.0
    memory: int = 1 << 30
    disk: int = 64 << 20
    processes: int = 64
    sanitize: bool = True
    unsafe: bool = False
    containment: Literal["auto"] | Mode = "auto"
    cache: Path | None = None
