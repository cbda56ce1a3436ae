"""Writes a large data directory: each line has several functions of the shared pairs, in a new order.

Of 20 training lines one repeats another and one is a near copy of another, so that what the checks should find is
known. ``python tests/moe/data/make_large.py SHARED/data/pairs OUT --lines 1000000`` writes 2 GB.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from moe.data.pairs import Pair, read_pairs

LANGUAGES = ("python", "java", "javascript", "cpp")
LENGTH, EACH = 900, 20  # characters of code from which a line is long enough; lines of which one is a copy


def line(language: str, number: int, text: str, code: str) -> str:
    row = {"id": f"{language}-{number}", "language": language, "text": text, "code": code}
    return json.dumps({**row, "package": f"package-{number % 100}"}, ensure_ascii=False) + "\n"


def functions(pairs: list[Pair], draw: random.Random) -> tuple[str, str]:
    """Text and code of a line: functions until it is long enough."""
    chosen: list[Pair] = []
    while len(chosen) < 3 or sum(len(pair.code) for pair in chosen) < LENGTH:
        chosen.append(draw.choice(pairs))
    return " ".join(pair.text for pair in chosen), "\n\n".join(pair.code for pair in chosen)


def write(pairs: list[Pair], language: str, count: int, copies: bool, path: Path) -> None:
    draw = random.Random(f"large-{language}-{path.parent.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            place = number % EACH if copies else -1
            if place == 0:
                old = text, code = functions(pairs, draw)
            elif place == EACH // 2:
                text, code = old
            elif place == EACH - 1:
                text, code = f"{old[0]} Again.", f"{old[1]}\n\nlater({number})"
            else:
                text, code = functions(pairs, draw)
            file.write(line(language, number, text, code))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--lines", type=int, default=1_000_000)
    arguments = parser.parse_args()
    for language in LANGUAGES:
        for split, count in (("train", arguments.lines // len(LANGUAGES)), ("test", 250)):
            pairs = read_pairs(arguments.pairs / split / f"{language}.jsonl.gz")
            write(pairs, language, count, split == "train", arguments.output / split / f"{language}.jsonl")


if __name__ == "__main__":
    main()
