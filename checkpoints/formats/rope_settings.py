"""Rotary settings of ``config.json``, old and new, to and from :class:`RopeScaling`.

transformers 5 writes ``rope_parameters``; older versions ``rope_theta`` and ``rope_scaling``. Formulas and defaults are
those of transformers' modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.formats.reader import ConfigReader
from moe.config import ModelConfig
from moe.errors import UserError
from moe.rope import RopeScaling, yarn_attention_factor

_ALWAYS = {"rope_type", "type", "rope_theta"}
_ORIGINAL = "original_max_position_embeddings"
_KEYS: Mapping[str, set[str]] = {  # of each rope_type, besides those
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", _ORIGINAL},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", _ORIGINAL}
    | {"finetuned"},  # says how the weights were made
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor", _ORIGINAL},
}


def read_rope(reader: ConfigReader, default_theta: float, context: int) -> tuple[float, RopeScaling | None]:
    """Theta and scaling of a ``config.json``.

    Raises:
        UserError: an unknown type, a key that it does not have, a value that makes no sense, or ``rope_scaling`` and
            ``rope_parameters`` that say different things.
    """
    found = []
    for key in ("rope_scaling", "rope_parameters"):
        value = reader.settings.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise reader.fail(key, value, "an object with rope_type and its numbers")
        if value:
            found.append((key, _read_one(reader, key, value, default_theta, context)))
    if not found:
        return reader.number("rope_theta", default_theta), None
    if any(settings != found[0][1] for _, settings in found):
        raise UserError(f"{reader.source}: rope_scaling and rope_parameters say different things; take one of them out")
    return found[0][1]


def _read_one(
    reader: ConfigReader, key: str, values: Mapping[str, Any], default_theta: float, context: int
) -> tuple[float, RopeScaling | None]:
    inner = _Nested(values, reader.source, key)
    kind = values.get("rope_type", values.get("type", "default"))
    if not isinstance(kind, str) or kind not in _KEYS:
        raise inner.fail("rope_type", kind, f"one of {', '.join(_KEYS)}")
    for name, value in values.items():
        neutral = value is None or (name == "partial_rotary_factor" and value == 1)
        if name not in _ALWAYS | _KEYS[kind] and not neutral:
            raise inner.fail(name, value, f"nothing: rotary embeddings of type {kind!r} with it are unsupported")
    theta = inner.number("rope_theta", reader.number("rope_theta", default_theta))
    return theta, None if kind == "default" else _scaling(kind, inner, reader, context)


def _scaling(kind: str, inner: ConfigReader, reader: ConfigReader, context: int) -> RopeScaling:
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, inner.number("factor"))
    original = reader.size(_ORIGINAL, inner.size(_ORIGINAL, context))
    if kind == "llama3":
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        return RopeScaling(kind, inner.number("factor"), original, low_freq_factor=low, high_freq_factor=high)
    factor = inner.number("factor", context / original)
    if kind == "longrope":
        own = inner.settings.get("short_factor")
        if not isinstance(own, list) or not own or own != inner.settings.get("long_factor"):
            raise inner.fail(
                "long_factor", inner.settings.get("long_factor"), "the list short_factor: factors that change with the "
                "length of a text are unsupported"
            )  # fmt: skip
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in own):
            raise inner.fail("short_factor", own, "a list of numbers")
        grown = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        size = inner.number("attention_factor", grown)
        return RopeScaling("factors", attention_factor=size, frequency_factors=tuple(map(float, own)))
    scales = [inner.settings.get(name) for name in ("mscale", "mscale_all_dim")]
    size = yarn_attention_factor(factor)
    if all(scales):
        above, below = (yarn_attention_factor(factor, inner.number(name)) for name in ("mscale", "mscale_all_dim"))
        size = above / below
    truncate = inner.settings.get("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        raise inner.fail("truncate", truncate, "true or false")
    return RopeScaling(
        kind,
        factor,
        original,
        attention_factor=inner.number("attention_factor", size),
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        truncate=truncate is not False,
    )


class _Nested(ConfigReader):
    """Reads one of the two objects; errors name it before the key."""

    def __init__(self, settings: Mapping[str, Any], source: Path, parent: str) -> None:
        super().__init__(settings, source)
        self.parent = parent

    def fail(self, key: str, value: Any, expected: str) -> UserError:
        return super().fail(f"{self.parent}.{key}", value, expected)


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The rotary keys of a ``config.json``: the new form and, where the frequencies are scaled, the old one too."""
    scaling = config.rope_scaling
    written: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        written = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind in ("yarn", "llama3"):
            written[_ORIGINAL] = scaling.original_max_position
        if scaling.kind == "llama3":
            written |= {name: getattr(scaling, name) for name in ("low_freq_factor", "high_freq_factor")}
        if scaling.kind == "yarn":
            written |= {name: getattr(scaling, name) for name in ("attention_factor", "beta_fast", "beta_slow")}
            written |= {} if scaling.truncate else {"truncate": False}
        if scaling.kind == "factors":
            factors = list(scaling.frequency_factors)
            written = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0}
            written |= {"attention_factor": scaling.attention_factor, _ORIGINAL: config.max_seq_len}
    keys: dict[str, Any] = {
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **written},
    }
    if scaling is not None:  # as versions 4 read it
        keys["rope_scaling"] = {**written, "type": written["rope_type"]}
    return keys
