"""All families, by category; a new module of families is added to ``ALL`` here."""

from __future__ import annotations

from moe.data.synthetic.families import lists, maps, matrices, numbers, strings
from moe.data.synthetic.family import Family, collect

ALL: tuple[Family, ...] = tuple(
    found for module in (numbers, strings, lists, maps, matrices) for found in collect(vars(module))
)
