"""All families, by category; a new module of families is added to ``MODULES`` here."""

from __future__ import annotations

from importlib import import_module

from moe.data.synthetic.family import Family, collect

MODULES = (
    *("numbers_divisors", "numbers_formulas", "numbers_ranges", "numbers_rules", "numbers_digits"),
    *("strings_characters", "strings_shape", "strings_words"),
    *("lists_change", "lists_filter", "lists_order", "lists_pairs"),
    *("maps_change", "maps_group", "maps_read"),
    *("matrices_rows", "matrices_shape", "matrices_values"),
)
ALL: tuple[Family, ...] = tuple(
    family for name in MODULES for family in collect(vars(import_module(f"{__name__}.{name}")))
)
