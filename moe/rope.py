"""Rotary embeddings (Su et al., 2021) and how models of longer contexts scale their frequencies."""

# B batch, S sequence, C head dim

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe.errors import UserError

KINDS = ("linear", "dynamic", "yarn", "llama3", "factors")


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies of a model differ from ``1 / theta^(2i/C)``.

    Attributes:
        kind: ``linear`` divides them by ``factor`` (Chen et al., 2023). ``dynamic`` raises theta once a sequence is
            longer than the model's context (NTK-aware scaling). ``yarn`` divides the low ones only and scales cosine
            and sine by ``attention_factor`` (Peng et al., 2023). ``llama3`` divides those whose wavelength is long
            against ``original_max_position``. ``factors`` divides each by its own of ``frequency_factors``.
        beta_fast, beta_slow, truncate: rotations over the original context between which ``yarn`` interpolates, and
            whether their dimensions are rounded outwards.
        low_freq_factor, high_freq_factor: context lengths per wavelength between which ``llama3`` interpolates.

    Raises :class:`UserError` for a kind or a number that makes no sense.
    """

    kind: str
    factor: float = 1.0
    original_max_position: int = 0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    frequency_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequency_factors", tuple(self.frequency_factors))
        if self.kind not in KINDS:
            raise UserError(f"the kind of rope_scaling is {self.kind!r}, expected one of {', '.join(KINDS)}")
        numbers = ("factor", "attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor")
        for name, value in [(name, getattr(self, name)) for name in numbers] + [
            ("frequency_factors", value) for value in self.frequency_factors
        ]:
            if not 0 < value < math.inf:
                raise UserError(f"{name} of rope_scaling is {value}, expected a positive number")
        if self.kind in ("yarn", "llama3") and self.original_max_position <= 0:
            raise UserError(f"rope_scaling {self.kind} needs original_max_position, the context before scaling")
        if self.kind == "llama3" and self.low_freq_factor == self.high_freq_factor:
            raise UserError(f"low_freq_factor and high_freq_factor of rope_scaling are both {self.low_freq_factor}")
        if (self.kind == "factors") != bool(self.frequency_factors):
            raise UserError("rope_scaling of kind factors, and no other, needs frequency_factors")

    def describe(self) -> str:
        """A few words for the terminal."""
        return "scaled by own factors" if self.kind == "factors" else f"scaled by {self.factor:g} ({self.kind})"

    @classmethod
    def from_dict(cls, values: Any) -> RopeScaling:
        """From the JSON object of its fields; raises :class:`UserError` for any other value."""
        kinds: dict[str, Any] = {name: type(default) for name, default in vars(cls("linear")).items()}
        if not isinstance(values, dict) or not set(values) <= set(kinds) or "kind" not in values:
            raise UserError(f"rope_scaling is {str(values)[:80]!r}, expected null or an object with kind and numbers")
        for name, value in values.items():
            allowed = (int, float) if kinds[name] is float else (list, tuple) if kinds[name] is tuple else kinds[name]
            inner = value if kinds[name] is tuple and isinstance(value, list | tuple) else ()
            if not isinstance(value, allowed) or (isinstance(value, bool) and kinds[name] is not bool):
                raise UserError(f"{name} of rope_scaling is {str(value)[:80]!r}, expected {kinds[name].__name__}")
            if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in inner):
                raise UserError(f"{name} of rope_scaling is {str(value)[:80]!r}, expected a list of numbers")
        return cls(**values)


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies cosine and sine by: ``0.1 scale ln(factor) + 1``, 1 without scaling."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def rope_angles(
    positions: Tensor,
    head_dim: int,
    theta: float,
    dtype: torch.dtype,
    scaling: RopeScaling | None = None,
    context: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles for ``positions``.

    Args:
        positions: [B, S] int64.
        context: the model's context in tokens, from which ``dynamic`` scaling starts.

    Returns:
        cos and sin, each [B, 1, S, C], computed in float32 and cast to ``dtype``.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    base: float | Tensor = theta
    if scaling is not None and scaling.kind == "dynamic" and head_dim > 2:
        longest = positions.amax(-1, keepdim=True).clamp_min(context - 1)[..., None] + 1.0  # [B, 1, 1]
        stretch = scaling.factor * longest.double() / context - (scaling.factor - 1)
        base = (theta * stretch ** (head_dim / (head_dim - 2))).float()
    frequencies = 1.0 / base**exponents  # [C/2], dynamic: [B, 1, C/2]
    if scaling is not None:
        frequencies = _scaled(frequencies, theta, head_dim, scaling)
    angles = positions[..., None].float() * frequencies  # [B, S, C/2]
    angles = torch.cat((angles, angles), dim=-1)[:, None]  # [B, 1, S, C]
    size = 1.0 if scaling is None else scaling.attention_factor
    cos, sin = angles.cos(), angles.sin()
    if size != 1.0:
        cos, sin = cos * size, sin * size
    return cos.to(dtype), sin.to(dtype)


def _scaled(frequencies: Tensor, theta: float, head_dim: int, scaling: RopeScaling) -> Tensor:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "factors":
        return frequencies / torch.tensor(scaling.frequency_factors, device=frequencies.device)
    if scaling.kind == "yarn":
        low, high = (
            head_dim * math.log(scaling.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(theta))
            for rotations in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = high - low if high != low else 0.001
        ramp = (torch.arange(head_dim // 2, dtype=torch.float32, device=frequencies.device) - low) / width
        kept = 1 - ramp.clamp(0, 1)  # 1: as before, 0: divided by the factor
        return frequencies / scaling.factor * (1 - kept) + frequencies * kept
    if scaling.kind == "llama3":
        lengths = scaling.original_max_position * frequencies / (2 * math.pi)  # wavelengths in the original context
        kept = (lengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        between = (1 - kept) * frequencies / scaling.factor + kept * frequencies
        slow, fast = lengths < scaling.low_freq_factor, lengths > scaling.high_freq_factor
        return torch.where(slow, frequencies / scaling.factor, torch.where(fast, frequencies, between))
    return frequencies
