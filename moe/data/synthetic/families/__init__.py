"""All families, by category; a new module of families is added to ``ALL`` here."""

from __future__ import annotations

from moe.data.synthetic.families import (
    lists_change,
    lists_filter,
    lists_order,
    lists_pairs,
    maps_change,
    maps_group,
    maps_read,
    matrices_rows,
    matrices_shape,
    matrices_values,
    numbers_digits,
    numbers_divisors,
    numbers_formulas,
    numbers_ranges,
    numbers_rules,
    strings_characters,
    strings_shape,
    strings_words,
)
from moe.data.synthetic.family import Family, collect

_MODULES = (
    numbers_divisors,
    numbers_formulas,
    numbers_ranges,
    numbers_rules,
    numbers_digits,
    strings_characters,
    strings_shape,
    strings_words,
    lists_change,
    lists_filter,
    lists_order,
    lists_pairs,
    maps_change,
    maps_group,
    maps_read,
    matrices_rows,
    matrices_shape,
    matrices_values,
)
ALL: tuple[Family, ...] = tuple(found for module in _MODULES for found in collect(vars(module)))
