"""Settings as they are written: values of text and TOML in the setting's type, and names that settings once had."""

from __future__ import annotations

import typing
from typing import Any

from moe.errors import UserError

# Settings of earlier versions that are gone, and what to do.
REMOVED = {
    "pretrain_muon_lr": "AdamW trains the tiny base better; leave it out",
    "ridge": "the router is fitted by logistic regression, which has no such penalty; leave it out",
    "ridge_batches": "the router is fitted on documents; set router_documents in its place",
}
WITHOUT = {"pretrain_muon_lr": 0.0}  # the values with which those changed nothing
# Settings of earlier versions by what they are called now; their values mean the same.
RENAMED = {
    "form": "expert_form",
    "layers": "moe_layers",
    "experts_per_token": "num_experts_per_tok",
    "recompute": "activation_checkpointing",
    "warmup": "warmup_ratio",
    "min_lr": "min_lr_ratio",
    "clip": "max_grad_norm",
    "eval_batch": "eval_batch_size",
}


def coerce(name: str, kind: Any, value: Any) -> Any:
    """``value`` as ``kind``; raises :class:`UserError`, naming the setting, where it does not fit."""
    if typing.get_origin(kind) is tuple:
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
            raise UserError(f"{name} is {value!r}, expected a list of names")
        return tuple(items)
    if isinstance(value, str) and kind is not str:
        word = value.lower()
        if kind is bool:
            if word not in ("true", "false", "1", "0", "yes", "no"):
                raise UserError(f"{name} is {value!r}, expected true or false")
            return word in ("true", "1", "yes")
        try:
            exact = kind is not int or value.strip().lstrip("+-").isdecimal()
            return kind(value) if exact or not float(value).is_integer() else int(float(value))  # 1e6 is a whole number
        except (ValueError, OverflowError):
            wanted = "a whole number" if kind is int else "a number"
            raise UserError(f"{name} is {value!r}, expected {wanted}") from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{name} is {value!r}, expected {kind.__name__}")
    return value
