"""Files of pairs for tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from moe.data.pairs import Pair
from moe.files import write_json_lines

MIT = """MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software ... subject to:
The above copyright notice and this permission notice shall be included in all copies.
"""


def write_pairs(pairs: Iterable[Pair], path: Path) -> None:
    """Writes pairs as ``read_pairs`` reads them; keys that are None are left out."""
    write_json_lines(path, ({k: v for k, v in asdict(pair).items() if v is not None} for pair in pairs))
