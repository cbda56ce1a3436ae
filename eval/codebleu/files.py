"""One line of input, and CodeXGLUE's files with one example per line."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.codebleu.errors import CodeBLEUError


@dataclass(frozen=True)
class PairRow:
    """One line of input: a pair to score, or an ``error`` that says what is wrong with the line."""

    line: int
    id: Any
    language: str = ""
    references: tuple[str, ...] = ()
    hypothesis: str = ""
    weights: tuple[float, ...] | None = None
    error: str | None = None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file, decompressing ``.gz``; errors while it is read become a CodeBLEUError."""
    if path.is_dir():
        raise CodeBLEUError(f"{path} is a directory; expected a file")
    try:
        with gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise CodeBLEUError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def count_lines(path: Path) -> int:
    """Number of lines in a file, for a progress bar."""
    with _open(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) + 1


def read_line_files(hypotheses: Path, references: Sequence[Path], language: str) -> Iterator[PairRow]:
    """Reads CodeXGLUE's files: line n of every reference file belongs to line n of the hypotheses.

    Raises:
        CodeBLEUError: a file cannot be read, or has more or fewer lines than the hypotheses.
    """
    texts = [_read_lines(path) for path in (hypotheses, *references)]
    for path, lines in zip(references, texts[1:]):
        if len(lines) != len(texts[0]):
            raise CodeBLEUError(f"{path} has {len(lines)} lines and {hypotheses} has {len(texts[0])}; expected as many")
    for number, (hypothesis, *refs) in enumerate(zip(*texts), start=1):
        bad = next((path for path, text in zip((hypotheses, *references), (hypothesis, *refs)) if text is None), None)
        if bad is not None:
            yield PairRow(number, number, error=f"the line is not UTF-8 in {bad}")
        else:
            yield PairRow(number, number, language, tuple(refs), hypothesis)


def _read_lines(path: Path) -> list[str | None]:
    with _open(path) as file:
        lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    return [_decode(line) for line in lines]


def _decode(line: bytes) -> str | None:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return None
