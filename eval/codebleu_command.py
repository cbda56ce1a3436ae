"""``python -m eval codebleu``: scores pairs from files and explains scores."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from eval.codebleu.counts import EQUAL_WEIGHTS, CodeBLEUScore, Counts, check_weights, merge_all
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.explain.explanation import explain
from eval.codebleu.explain.html import render_html
from eval.codebleu.explain.text import write_text
from eval.codebleu.files import PairRow, count_lines, read_line_files
from eval.codebleu.languages import find_language
from eval.codebleu.pool import count_pairs, usable_cores
from eval.codebleu.score import MODES, score_of
from moe.data.rows import BadRow, read_each

SOME_FAILED = 1  # exit code when a pair could not be scored
PAIRS_PER_JOB = 500  # starting a process is not worth it for fewer
ANY = "\0"  # --explain without an id


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``codebleu`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "codebleu",
        help="score code with CodeBLEU",
        description="Scores each answer against its references and writes one JSON object per line, then prints "
        "the mean scores of each language. A pair that cannot be scored gives a line with 'error', and exit code 1 "
        "once all others are scored.",
    )
    parser.add_argument(
        "--pairs",
        type=Path,
        help="JSON Lines (also .gz) with language, reference and answer (or lang, references, hypothesis), optionally "
        "id, weights; the answers of train.py and generate.py are such files",
    )
    parser.add_argument("--hyp", type=Path, help="CodeXGLUE format: a file with one hypothesis per line")
    parser.add_argument(
        "--refs", type=Path, nargs="+", help="files with one reference per line, as many lines as --hyp"
    )
    parser.add_argument("--lang", help="language of --hyp and --refs")
    parser.add_argument("--output", type=Path, help="write the scores to this file (default: standard output)")
    parser.add_argument("--corpus", action="store_true", help="one score for all pairs of a language")
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="reference",
        help="reference: the numbers of the published metric; corrected: its known faults fixed",
    )
    parser.add_argument(
        "--weights",
        type=_weights,
        metavar="A,B,C,D",
        help="of n-gram, weighted n-gram, syntax and dataflow match, for lines without their own (default: 0.25 each)",
    )
    parser.add_argument("--jobs", type=int, help="number of processes (default: one per core for long input)")
    parser.add_argument(
        "--explain",
        nargs="?",
        const=ANY,
        metavar="ID",
        help="show why a pair (the first, or this id) scores as it does",
    )
    parser.add_argument("--html", type=Path, help="with --explain: write an HTML page to this file")
    return parser


def _weights(text: str) -> tuple[float, ...]:
    try:
        return check_weights(text.split(","))
    except CodeBLEUError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    _check(args)
    try:
        code = _score(args) if args.explain is None else _explain(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the scores has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED


def _score(args: argparse.Namespace) -> int:
    errors: list[str] = []
    corpora: dict[str, list[tuple[Counts, tuple[float, ...] | None]]] = {}
    scores: dict[str, list[CodeBLEUScore]] = {}
    pairs = 0
    with _output(args.output) as out:
        for row, outcome in _outcomes(args):
            pairs += 1
            try:
                if isinstance(outcome, str):
                    raise CodeBLEUError(outcome)
                language = find_language(row.language)
                if args.corpus:
                    corpora.setdefault(language, []).append((outcome, row.weights))
                else:
                    score = score_of(args.mode)(outcome, row.weights or args.weights or EQUAL_WEIGHTS)
                    scores.setdefault(language, []).append(score)
                    _write(out, {"id": row.id, **score.as_dict()})
            except CodeBLEUError as error:
                errors.append(f"line {row.line} (id {row.id}): {error}")
                _write(out, {"id": row.id, "error": errors[-1]})
        for language, found in corpora.items():
            weights = _corpus_weights(language, {weights for _, weights in found}, args.weights)
            score = score_of(args.mode)(merge_all(counts for counts, _ in found), weights)
            _write(out, {"lang": language, "pairs": len(found), **score.as_dict()})
    if not pairs:
        raise CodeBLEUError("nothing to score; the input has no pairs")
    sys.stdout.flush()
    for line in _means(scores):  # standard output holds only JSON, unless that goes to a file
        print(line, file=sys.stdout if args.output else sys.stderr)
    if errors:
        message = f"error: {len(errors)} of {pairs} pairs were not scored; first: {errors[0]}"
        print(printable(" ".join(message.split())), file=sys.stderr)
    return SOME_FAILED if errors else 0


def _means(scores: dict[str, list[CodeBLEUScore]]) -> list[str]:
    """A table of the mean scores of each language and of all pairs; nothing if no pair was scored."""
    names = ("CodeBLEU", "n-gram", "weighted", "syntax", "dataflow")
    lines = [f"{'mean of':<12}{'pairs':>8}" + "".join(f"{name:>10}" for name in names)]
    for language, found in (*scores.items(), ("all", [score for group in scores.values() for score in group])):
        columns = zip(*(score.as_dict().values() for score in found))
        means = "".join(f"{sum(column) / len(found):>10.4f}" for column in columns)
        lines.append(f"{language:<12}{len(found):>8}{means}")
    return lines if scores else []


def printable(text: str) -> str:
    """The text with lone surrogates, which cannot be encoded, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _corpus_weights(
    language: str, own: set[tuple[float, ...] | None], given: tuple[float, ...] | None
) -> tuple[float, ...]:
    if len(own) == 1 and (weights := next(iter(own))) is not None:
        return weights
    weights = given or EQUAL_WEIGHTS
    if own != {None}:
        print(
            f"note: the {language} pairs have different weights; the corpus is scored with {weights}", file=sys.stderr
        )
    return weights


def _check(args: argparse.Namespace) -> None:
    if bool(args.pairs) == bool(args.hyp):
        raise CodeBLEUError("one source of pairs is required; give --pairs FILE, or --hyp FILE --refs FILE --lang L")
    if args.hyp and not (args.refs and args.lang):
        raise CodeBLEUError("--hyp also needs references and a language; give --refs FILE and --lang L")
    if args.pairs and (args.refs or args.lang):
        raise CodeBLEUError("--refs and --lang belong to --hyp; with --pairs each line has its own references and lang")
    if args.html and args.explain is None:
        raise CodeBLEUError("--html writes an explanation; also give --explain")
    if args.jobs is not None and args.jobs < 1:
        raise CodeBLEUError(f"--jobs is {args.jobs}; it must be at least 1")
    if args.lang:
        args.lang = find_language(args.lang)
    inputs = [path for path in (args.pairs, args.hyp, *(args.refs or ())) if path]
    for path in inputs:
        if not path.is_file():
            raise CodeBLEUError(f"{path} is not a file; expected one with pairs")
    for path in (args.output, args.html):
        if path and path.is_dir():
            raise CodeBLEUError(f"{path} is a directory; expected the name of a file to write")
        if path and not path.parent.is_dir():
            raise CodeBLEUError(f"{path.parent} is not a directory; create it, or give another path")
        if path and path.exists() and any(path.samefile(read) for read in inputs):
            raise CodeBLEUError(f"{path} is where pairs are read from; give another file to write")


def _rows(args: argparse.Namespace) -> Iterator[PairRow]:
    if args.pairs:
        return read_pairs(args.pairs)
    return read_line_files(args.hyp, args.refs, args.lang)


def read_pairs(path: Path) -> Iterator[PairRow]:
    """Reads rows to score; an invalid line gives a row with an error.

    Raises:
        UserError: the file cannot be read, or is one JSON array.
    """
    for number, row in read_each(path, ("language", "answer", "reference")):
        if isinstance(row, BadRow):
            yield PairRow(number, row.id, error=row.problem)
            continue
        assert row.language is not None and row.answer is not None, "both are required"
        try:
            weights = None if row.weights is None else check_weights(row.weights)
        except CodeBLEUError as error:
            yield PairRow(number, row.id, error=str(error))
        else:
            yield PairRow(number, row.id, row.language, row.references, row.answer, weights)


def _outcomes(args: argparse.Namespace) -> Iterator[tuple[PairRow, Counts | str]]:
    """Every row with its counts or its error, in the order of the file."""
    total = count_lines(args.pairs or args.hyp)
    jobs = args.jobs or max(1, min(usable_cores(), total // PAIRS_PER_JOB))
    rows: deque[PairRow] = deque()  # read but not yet yielded

    def tasks() -> Iterator[tuple[str, tuple[str, ...], str]]:
        for row in _rows(args):
            rows.append(row)
            if row.error is None:
                yield row.language, row.references, row.hypothesis

    with _progress(total) as advance:
        for done, outcome in enumerate(count_pairs(tasks(), args.mode, jobs), start=1):
            while rows[0].error is not None:
                yield rows[0], rows.popleft().error or ""
            yield rows.popleft(), outcome
            advance(done)
        for row in rows:
            yield row, row.error or ""


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on a terminal; yields a function that takes the number of pairs done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("scoring", total=total)
        yield lambda done: progress.update(bar, completed=done)


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    """A file that is replaced atomically once everything is written, or standard output."""
    if path is None:
        yield sys.stdout
        return
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise CodeBLEUError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _write(out: TextIO, row: dict[str, Any]) -> None:
    out.write(json.dumps(row) + "\n")


def _explain(args: argparse.Namespace) -> int:
    wanted = None if args.explain == ANY else args.explain
    row = next((row for row in _rows(args) if wanted is None or str(row.id) == wanted), None)
    if row is None:
        raise CodeBLEUError("there is no pair" if wanted is None else f"there is no pair with the id {wanted!r}")
    weights = row.weights or args.weights or EQUAL_WEIGHTS
    try:
        if row.error:
            raise CodeBLEUError(row.error)
        if not row.references:
            raise CodeBLEUError("no reference; expected at least one")
        found = [explain(text, row.hypothesis, row.language, weights, args.mode) for text in row.references]
    except CodeBLEUError as error:
        raise CodeBLEUError(printable(f"line {row.line} (id {row.id}): {error}")) from None
    pages = []
    for number, explanation in enumerate(found, start=1):
        title = f"CodeBLEU of {printable(str(row.id))}"
        title += f", reference {number} of {len(found)}" if len(found) > 1 else ""
        pages.append(render_html(explanation, title))
        if not args.html:
            print(title)
            write_text(explanation, sys.stdout)
    if args.html:
        best = max(range(len(found)), key=lambda i: found[i].score.codebleu)
        with _output(args.html) as out:
            out.write(pages[best])
        print(f"wrote {args.html}")
    return 0
