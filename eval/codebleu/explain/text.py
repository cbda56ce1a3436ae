"""Shows an explanation in the terminal: both texts side by side, then what is missed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.codebleu.explain.explanation import Explanation, Missed

MISSED, ADDED = "bold red", "bold yellow"
MAX_LISTED = 20


def marked_text(text: str, places: Iterable[Missed], style: str) -> Text:
    """The text with line numbers, and the bytes of ``places`` in ``style``."""
    source = text.encode()
    styles = bytearray(len(source))
    for place in places:
        styles[place.start : place.end] = b"\1" * (place.end - place.start)
    shown = Text()
    start = 0
    for number, line in enumerate(source.split(b"\n"), start=1):
        shown.append(f"{number:>4}  ", "dim")
        run = 0
        while run < len(line):
            end = run + 1
            while end < len(line) and styles[start + end] == styles[start + run]:
                end += 1
            shown.append(line[run:end].decode("utf-8", "replace"), style if styles[start + run] else "")
            run = end
        shown.append("\n")
        start += len(line) + 1
    return shown


def summary(explanation: Explanation) -> list[tuple[str, float, str]]:
    """(part, score, what was found) for the score and each of its parts."""
    score, totals = explanation.score, explanation.totals
    found = [total - sum(count for _, count in explanation.ngrams[order]) for order, total in enumerate(totals[:4], 1)]
    grams = ", ".join(f"{n} of {total}" for n, total in zip(found, totals[:4]))
    subtrees = f"{totals[4] - len(explanation.subtrees)} of {totals[4]} subtrees"
    edges = (
        f"{totals[5] - len(explanation.edges)} of {totals[5]} edges" if totals[5] else "no dataflow in the reference"
    )
    return [
        ("CodeBLEU", score.codebleu, f"mode {explanation.mode}, {explanation.language}"),
        ("n-gram match", score.ngram_match_score, f"of the reference's n-grams of order 1 to 4: {grams}"),
        ("weighted n-gram match", score.weighted_ngram_match_score, "keywords count five times"),
        ("syntax match", score.syntax_match_score, subtrees),
        ("dataflow match", score.dataflow_match_score, edges),
    ]


def write_text(explanation: Explanation, file: TextIO, width: int | None = None) -> None:
    """Writes the explanation, in color if ``file`` is a terminal."""
    console = Console(file=file, width=width, highlight=False)
    parts = Table(box=None, show_header=False)
    for name, score, found in summary(explanation):
        parts.add_row(name, f"{score:.4f}", found)
    console.print(parts)
    both = Table(expand=True)
    both.add_column("reference (red: subtrees that the hypothesis lacks)", ratio=1)
    both.add_column("hypothesis (yellow: subtrees that the reference lacks)", ratio=1)
    both.add_row(
        marked_text(explanation.reference, explanation.innermost, MISSED),
        marked_text(explanation.hypothesis, explanation.added, ADDED),
    )
    console.print(both)
    if explanation.partners:
        pairs = ", ".join(f"{name} is {partner}" for name, partner in explanation.partners.items())
        console.print(Text(f"Renamed variables: {pairs}"))
    _list(console, "Subtrees missed", [f"line {one.line}: {one.what}" for one in explanation.subtrees])
    _list(console, "Dataflow edges missed", [f"line {one.line}: {one.what}" for one in explanation.edges])
    for order, grams in explanation.ngrams.items():
        words = [f"{' '.join(gram)}" + (f"  ({count} times)" if count > 1 else "") for gram, count in grams]
        _list(console, f"{order}-grams missed", words)


def _list(console: Console, title: str, lines: list[str]) -> None:
    console.print(Text(f"{title}: {len(lines) or 'none'}", "bold"))
    for line in lines[:MAX_LISTED]:
        console.print(Text("  " + line))
    if len(lines) > MAX_LISTED:
        console.print(Text(f"  and {len(lines) - MAX_LISTED} more"))
