"""Rewrites the scores in goldens.jsonl with those of the published implementation.

    pip install --no-deps codebleu==0.7.0
    PYTHONHASHSEED=0 python tests/eval/codebleu/make_goldens.py

To add a golden, append a line with id, lang, hypothesis, references and optionally weights, all written for this
project, and run this. The scores hold for the grammars that constraints.txt pins.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from codebleu import calc_codebleu

GOLDENS = Path(__file__).with_name("goldens.jsonl")


def main() -> None:
    """Rewrites the file."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        raise SystemExit("error: the published scores depend on the hash seed; set PYTHONHASHSEED=0")
    logging.disable(logging.WARNING)  # it warns about every pair without dataflow
    rows = [json.loads(line) for line in GOLDENS.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        weights = row.get("weights", (0.25,) * 4)
        row["scores"] = calc_codebleu([row["references"]], [row["hypothesis"]], row["lang"], weights)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    GOLDENS.write_text("".join(lines), encoding="utf-8")
    print(f"{len(rows)} goldens written to {GOLDENS}")


if __name__ == "__main__":
    main()
