"""The shape of a model: one frozen dataclass, checked when it is made; and sets of layers as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from moe.errors import UserError
from moe.rope import RopeScaling

EXPERT_FORMS = ("full", "delta")
ROUTER_CONTEXTS = ("none", "mean", "ema", "filter")
ROUTER_LAYERS = ("each", "first")
ATTENTION_EXPERTS = ("q", "k", "v", "o")
ALL_LAYERS = "all"
_RANGE = re.compile(r"(\d{1,6})(?:(-)(\d{1,6})?)?", re.ASCII)
_EXAMPLE = "write for example 16-31 or 0-3,8,12-"


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 40  # larger ones overflow sizes and floats later


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(fits, value))


# What JSON may hold for a field of each type: in words, and as a check.
_JSON_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", _is_int),
    "int | None": ("a whole number or null", lambda value: value is None or _is_int(value)),
    "float": ("a number", lambda value: _is_int(value) or (type(value) is float and math.isfinite(value))),
    "bool": ("true or false", lambda value: type(value) is bool),
    "str": ("a text", lambda value: type(value) is str),
    "tuple[str, ...]": ("a list of texts", _list_of(lambda value: type(value) is str)),
    "tuple[int, ...] | None": (
        "a list of layer numbers or null",
        lambda value: value is None or _list_of(_is_int)(value),
    ),
    "RopeScaling | None": ("an object or null", lambda value: value is None or isinstance(value, dict | RopeScaling)),
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a Mistral-family decoder, dense or with a mixture of experts in its feed-forwards.

    ``num_experts == 0`` is a dense model. With ``expert_form == "full"`` every expert owns its three matrices (the
    Mixtral form). With ``"delta"`` the dense feed-forward stays, frozen and shared, and is changed by low-rank deltas:
    ``W_e = W + delta_scale * (B0 A0 + B_e A_e)`` with ``shared_rank`` for ``A0`` and ``expert_rank`` for ``A_e``. A
    delta model with ``num_experts == 0`` has the shared delta alone: a dense model with a low-rank adapter.
    ``moe_layers`` names the layers that have experts (or the adapter); the others stay dense. None: all layers.

    ``rope_scaling`` changes the rotary frequencies. ``sliding_layers`` are the layers that ``sliding_window`` applies
    to; None: all layers. ``attention_bias`` adds a bias to each projection of the attention, as some Llama models have.

    ``router_context`` is what a token's routing decision sees: its own state (``none``, Mixtral's router), the mean of
    its document so far (``mean``), an exponential mean (``ema``), or a Bayes filter over it (``filter``). Within
    ``router_half_life`` tokens without evidence the last two forget half of what they know.
    ``router_layers`` says who decides: each sparse layer, or the first for all of them.
    ``attention_experts`` names projections of the attention (of q, k, v and o) that have deltas, too, in the sparse
    layers. A block then decides once, by what its attention reads, for both.

    Raises :class:`UserError` for sizes that do not fit together.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    head_dim: int = 0  # 0: dim // n_heads
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_seq_len: int = 32768
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    attention_bias: bool = False
    tie_embeddings: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 2
    expert_form: str = "full"
    expert_languages: tuple[str, ...] = ()
    shared_rank: int = 0
    expert_rank: int = 0
    delta_scale: float = 2.0
    moe_layers: tuple[int, ...] | None = None
    balance_loss_weight: float = 0.01
    z_loss_weight: float = 0.001
    router_context: str = "none"
    router_half_life: float = 64.0
    router_layers: str = "each"
    attention_experts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.n_heads > 0:
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        object.__setattr__(self, "expert_languages", tuple(self.expert_languages))
        object.__setattr__(self, "attention_experts", checked_projections(self.attention_experts))
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "head_dim", "max_seq_len"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected a positive number")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; rotary embeddings need an even head_dim")
        if self.sliding_window is not None and self.sliding_window <= 0:
            raise UserError(f"sliding_window is {self.sliding_window}, expected a positive number of tokens or null")
        if self.expert_form not in EXPERT_FORMS:
            raise UserError(f"expert_form is {self.expert_form!r}, expected one of {', '.join(EXPERT_FORMS)}")
        for name, known in (("router_context", ROUTER_CONTEXTS), ("router_layers", ROUTER_LAYERS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if not 0 < self.router_half_life < math.inf:
            raise UserError(f"router_half_life is {self.router_half_life}, expected a positive number of tokens")
        if self.num_experts < 0 or self.shared_rank < 0 or self.expert_rank < 0:
            raise UserError("num_experts, shared_rank and expert_rank cannot be negative")
        if self.num_experts and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise UserError(
                f"num_experts_per_tok is {self.num_experts_per_tok}, expected 1 to num_experts = {self.num_experts}"
            )
        if self.expert_languages and len(self.expert_languages) != self.num_experts:
            raise UserError(
                f"expert_languages names {len(self.expert_languages)} languages for num_experts = {self.num_experts}"
            )
        if len(set(self.expert_languages)) < len(self.expert_languages):
            raise UserError(f"expert_languages names one twice: {' '.join(self.expert_languages)}; name each once")
        if self.is_delta and self.num_experts and not self.expert_rank:
            raise UserError("delta experts need expert_rank of at least 1")
        if self.attention_experts and not self.is_delta:
            raise UserError("attention_experts are low-rank deltas; set expert_form to delta, or leave them out")
        if self.rope_scaling is not None and self.rope_scaling.kind == "factors":
            factors = len(self.rope_scaling.frequency_factors)
            if factors != self.head_dim // 2:
                raise UserError(f"rope_scaling has {factors} frequency_factors, expected {self.head_dim // 2}")
        if self.moe_layers is not None:
            if not (self.is_moe or self.is_delta):
                raise UserError("moe_layers names layers with experts, but this model has none; expected null")
            object.__setattr__(self, "moe_layers", self._checked_layers("moe_layers"))
        if self.sliding_layers is not None:
            if self.sliding_window is None:
                raise UserError("sliding_layers names layers with a window, but sliding_window is null; expected null")
            object.__setattr__(self, "sliding_layers", self._checked_layers("sliding_layers"))

    def _checked_layers(self, name: str) -> tuple[int, ...] | None:
        """A list of layers in order, each once; None when they are all layers, so that equal models compare equal."""
        layers = getattr(self, name)
        if not isinstance(layers, Sequence) or not all(type(layer) is int for layer in layers):
            raise UserError(f"{name} is {str(layers)[:80]!r}, expected a list of layer numbers or null")
        if not layers or not 0 <= min(layers) <= max(layers) < self.n_layers:
            wrong = next((layer for layer in layers if not 0 <= layer < self.n_layers), "no layer")
            raise UserError(f"{name} names {wrong}, expected layers between 0 and {self.n_layers - 1}")
        chosen = tuple(sorted(set(layers)))
        return None if len(chosen) == self.n_layers else chosen

    @property
    def is_moe(self) -> bool:
        """Whether a router chooses between experts."""
        return self.num_experts > 0

    @property
    def is_mixtral(self) -> bool:
        """Whether every sparse layer routes each token by its own state, as Mixtral and its readers do."""
        return self.is_moe and self.router_context == "none" and self.router_layers == "each"

    @property
    def is_delta(self) -> bool:
        """Whether low-rank deltas change a shared dense feed-forward."""
        return self.expert_form == "delta" and (self.num_experts > 0 or self.shared_rank > 0)

    @property
    def sparse_layers(self) -> Sequence[int]:
        """The layers whose feed-forward has a router or deltas, in order; none in a dense model."""
        if not (self.is_moe or self.is_delta):
            return range(0)
        return range(self.n_layers) if self.moe_layers is None else self.moe_layers

    @property
    def router_places(self) -> Sequence[int]:
        """The layers that have a router, in order: every sparse layer, or the first; none without experts."""
        if not self.is_moe:
            return range(0)
        return self.sparse_layers if self.router_layers == "each" else self.sparse_layers[:1]

    @property
    def delta_names(self) -> dict[str, tuple[str, ...]]:
        """Short names of the matrices that the deltas of a sparse layer change, by part of the layer."""
        return {"feed_forward": ("1", "2", "3"), "attention": self.attention_experts}

    @property
    def weights_per_token(self) -> int:
        """Numbers that a step of decoding multiplies one token by: matrices and output, without routers and deltas."""
        sizes = {name: inputs * outputs for name, (inputs, outputs) in self.matrix_sizes.items()}
        layers, visits = sum(sizes.values()) * self.n_layers, self.num_experts_per_tok if self.is_moe else 1
        if not self.is_delta:
            layers += (visits - 1) * len(self.sparse_layers) * sum(sizes[name] for name in "123")
        return layers + self.vocab_size * self.dim

    @property
    def matrix_sizes(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices by short name: w1, w2, w3 and the attention's wq, wk, wv, wo."""
        query, key = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        inner = {"1": self.hidden_dim, "3": self.hidden_dim, "q": query, "k": key, "v": key}
        outer = {"2": self.hidden_dim, "o": query}
        return {n: (self.dim, size) for n, size in inner.items()} | {n: (size, self.dim) for n, size in outer.items()}

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer in tokens; None where it attends to everything before it."""
        return self.sliding_window if self.sliding_layers is None or layer in self.sliding_layers else None

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The different windows that the layers have."""
        return (self.sliding_window,) if self.sliding_layers is None else (self.sliding_window, None)

    def dense(self) -> ModelConfig:
        """The configuration of the dense model underneath."""
        nothing: dict[str, Any] = {
            "num_experts": 0,
            "expert_languages": (),
            "shared_rank": 0,
            "expert_rank": 0,
            "moe_layers": None,
            "router_context": "none",
            "router_half_life": 64.0,
            "router_layers": "each",
            "attention_experts": (),
        }
        return replace(self, expert_form="full", **nothing)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        values = asdict(self)
        for name in ("expert_languages", "moe_layers", "sliding_layers", "attention_experts"):
            values[name] = None if values[name] is None else list(values[name])
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of :meth:`to_dict`; raises :class:`UserError` for an unknown key or a value of another type."""
        known = {field.name: str(field.type) for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UserError(f"unknown model setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        for name, value in values.items():
            expected, fits = _JSON_TYPES[known[name]]
            if not fits(value):
                raise UserError(f"{name} is {str(value)[:80]!r}, expected {expected}")
        if isinstance(scaling := values.get("rope_scaling"), dict):
            values = {**values, "rope_scaling": RopeScaling.from_dict(scaling)}
        return cls(**values)


def checked_projections(names: Iterable[str]) -> tuple[str, ...]:
    """Projections of the attention, each once, in the order q, k, v, o; raises :class:`UserError` for another name."""
    names = tuple(names)
    if wrong := [name for name in names if name not in ATTENTION_EXPERTS]:
        raise UserError(f"attention_experts names {wrong[0]!r}, expected some of {', '.join(ATTENTION_EXPERTS)}")
    return tuple(name for name in ATTENTION_EXPERTS if name in names)


def parse_layers(text: str, n_layers: int | None = None) -> tuple[int, ...] | None:
    """Turns ``0-3,8,12-`` into layer numbers, smallest first; ``all`` into None.

    Args:
        n_layers: of the model, where it is known: gives ``12-`` its end, and checks that the layers are there.

    Raises:
        UserError: nothing named, no number, a range that runs backwards, or a layer that the model does not have.
    """
    if text.strip().lower() == ALL_LAYERS:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            what = f"{part.strip()!r} is not a layer" if part.strip() else f"{text!r} names no layer"
            raise UserError(f"{what}; {_EXAMPLE}, or {ALL_LAYERS}")
        first = last = int(match[1])
        if match[3]:
            last = int(match[3])
        elif match[2]:
            last = max(first, (n_layers or 0) - 1)
        if last < first:
            raise UserError(f"layers {part.strip()} run backwards; write {last}-{first}")
        if n_layers is not None and last >= n_layers:
            raise UserError(f"layers {part.strip()} were asked for; this model has the layers 0 to {n_layers - 1}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def format_layers(layers: Iterable[int]) -> str:
    """The short form of layer numbers: ``0-3, 8`` for 0, 1, 2, 3 and 8."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def describe_layers(config: ModelConfig) -> str:
    """For the terminal, after a model's size: where its experts are; nothing when they are in every layer."""
    return "" if config.moe_layers is None else f" in layers {format_layers(config.moe_layers)} of {config.n_layers}"
