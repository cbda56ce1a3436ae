"""Random pairs and lengths of a split, as text and as one HTML page."""

from __future__ import annotations

import html
import random
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from moe.data.pairs import Pair

BINS = 12


@dataclass
class Preview:
    """Pairs drawn from one language, and the lengths of all in characters."""

    shown: list[Pair] = field(default_factory=list)
    text: array[int] = field(default_factory=lambda: array("I"))
    code: array[int] = field(default_factory=lambda: array("I"))


def collect(pairs: Iterable[Pair], count: int, seed: int) -> dict[str, Preview]:
    """Draws ``count`` pairs per language by ``seed``; each pair is as likely as any other."""
    found: dict[str, Preview] = {}
    draws: dict[str, random.Random] = {}
    for pair in pairs:
        preview = found.setdefault(pair.language, Preview())
        draw = draws.setdefault(pair.language, random.Random(f"preview-{seed}-{pair.language}"))
        preview.text.append(len(pair.text))
        preview.code.append(len(pair.code))
        seen = len(preview.text)
        place = seen - 1 if seen <= count else draw.randrange(seen)
        if place < count:
            preview.shown[place : place + 1] = [pair]
    return found


def histogram(lengths: Iterable[int]) -> list[tuple[str, int]]:
    """Bins from 0 to the 99th percentile, and one for what is longer: (from and to, how many)."""
    values = np.array(list(lengths))
    high = max(BINS, int(np.percentile(values, 99)) + 1)
    edges = np.unique(np.linspace(0, high, BINS + 1).astype(int))
    counts, _ = np.histogram(values[values < high], edges)
    bins = [(f"{low:,}-{up - 1:,}", int(n)) for low, up, n in zip(edges, edges[1:], counts)]
    longer = int((values >= high).sum())
    return bins + ([(f"{high:,}-", longer)] if longer else [])


def as_text(previews: Mapping[str, Preview]) -> str:
    """For a terminal; control characters in pairs are shown as escapes, so that they cannot drive the terminal."""
    lines: list[str] = []
    for language, preview in previews.items():
        lines += [f"== {language}: {len(preview.text):,} pairs", ""]
        for name, lengths in (("text", preview.text), ("code", preview.code)):
            bins = histogram(lengths)
            most = max(n for _, n in bins)
            lines.append(f"{name}, characters")
            lines += [f"  {span:>15} {'█' * round(40 * n / most)} {n:,}" for span, n in bins]
            lines.append("")
        for pair in preview.shown:
            lines += [f"-- {_title(pair)}", _plain(pair.text), "", _plain(pair.code), ""]
    return "\n".join(lines)


def as_html(previews: Mapping[str, Preview], title: str) -> str:
    """One page without scripts or outside files."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(title)}</title><style>",
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}",
        "pre{background:#8881;padding:.7rem;overflow-x:auto}td{padding:0 .5rem;text-align:right}",
        "td div{background:#47a;height:.8rem}td:nth-child(2){width:20rem}:root{color-scheme:light dark}",
        f"</style><h1>{html.escape(title)}</h1>",
    ]
    for language, preview in previews.items():
        parts.append(f"<h2>{html.escape(language)}: {len(preview.text):,} pairs</h2>")
        for name, lengths in (("text", preview.text), ("code", preview.code)):
            bins = histogram(lengths)
            most = max(n for _, n in bins)
            rows = "".join(
                f"<tr><td>{span}<td><div style='width:{100 * n / most:.1f}%'></div><td>{n:,}" for span, n in bins
            )
            parts.append(f"<details><summary>{name}, characters</summary><table>{rows}</table></details>")
        for pair in preview.shown:
            text, code = html.escape(pair.text), html.escape(pair.code)
            parts.append(f"<p><small>{html.escape(_title(pair))}</small><br>{text}<pre><code>{code}</code></pre>")
    return "\n".join(parts) + "\n"


def _title(pair: Pair) -> str:
    words = [pair.id or "no id", f"{len(pair.text):,} + {len(pair.code):,} characters", pair.license, pair.package]
    return _plain(", ".join(word for word in words if word))


def _plain(text: str) -> str:
    return "".join(x if x.isprintable() or x in "\n\t" else x.encode("unicode_escape").decode() for x in text)
