"""Reads pairs from JSON Lines and from CodeXGLUE's files with one example per line."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.codebleu.counts import check_weights
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


def read_pairs(path: Path) -> Iterator[PairRow]:
    """Reads JSON Lines; an invalid line gives a row with an error, blank lines are skipped.

    Raises:
        CodeBLEUError: the file cannot be read.
    """
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _read_row(number, line)


def _read_row(number: int, line: bytes) -> PairRow:
    name: Any = None
    try:
        row = json.loads(line.decode("utf-8"))
        if not isinstance(row, dict):
            raise CodeBLEUError(f"the line is not a JSON object but {_kind(row)}")
        name = row.get("id")
        language = _field(row, "lang", str)
        hypothesis = _field(row, "hypothesis", str)
        references = row.get("references")
        references = [references] if isinstance(references, str) else _field(row, "references", list)
        wrong = next((text for text in references if not isinstance(text, str)), None)
        if wrong is not None or None in references:
            raise CodeBLEUError(f"references hold {_kind(wrong)}; expected only strings")
        weights = None if row.get("weights") is None else check_weights(_field(row, "weights", list))
        return PairRow(number, name, language, tuple(references), hypothesis, weights)
    except CodeBLEUError as error:
        return PairRow(number, name, error=str(error))
    except UnicodeDecodeError as error:
        return PairRow(number, None, error=f"the line is not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError) as error:  # a ValueError besides: a number with thousands of digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"
        return PairRow(number, None, error=f"the line is not JSON: {getattr(error, 'msg', reason)}")


def _field(row: dict[str, Any], name: str, kind: type) -> Any:
    if name not in row:
        raise CodeBLEUError(f"{name!r} is missing; the line has {', '.join(map(repr, row)) or 'nothing'}")
    if not isinstance(row[name], kind):
        raise CodeBLEUError(f"{name!r} is {_kind(row[name])}; expected {'a string' if kind is str else 'a list'}")
    return row[name]


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


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
