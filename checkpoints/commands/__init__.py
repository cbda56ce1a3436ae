"""The subcommands of ``python -m checkpoints``: a module each, with ``add_parser`` and ``main``."""

from __future__ import annotations

from types import ModuleType


def registry() -> tuple[ModuleType, ...]:
    """The modules of all subcommands, in the order in which ``--help`` lists them."""
    from checkpoints.commands import (
        adapters,
        collapse,
        compose,
        convert,
        diff,
        extract,
        inspect,
        merge,
        quantize,
        relink,
        remove_language,
        upcycle,
        verify,
    )

    return (
        *(inspect, upcycle, merge, extract, adapters, remove_language, compose),
        *(collapse, convert, quantize, diff, verify, relink),
    )
