"""The shape of a model: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from moe.errors import UserError

EXPERT_FORMS = ("full", "delta")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a Mistral-family decoder, dense or with a mixture of experts in every feed-forward.

    ``num_experts == 0`` is a dense model. With ``expert_form == "full"`` every expert owns its three matrices (the
    Mixtral form). With ``"delta"`` the dense feed-forward stays, frozen and shared, and is changed by low-rank deltas:
    ``W_e = W + delta_scale * (B0 A0 + B_e A_e)`` with ``shared_rank`` for ``A0`` and ``expert_rank`` for ``A_e``. A
    delta model with ``num_experts == 0`` has the shared delta alone: a dense model with a low-rank adapter.

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
    max_seq_len: int = 32768
    sliding_window: int | None = None
    tie_embeddings: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 2
    expert_form: str = "full"
    expert_languages: tuple[str, ...] = ()
    shared_rank: int = 0
    expert_rank: int = 0
    delta_scale: float = 2.0
    balance_loss_weight: float = 0.01
    z_loss_weight: float = 0.001

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.n_heads > 0:
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        object.__setattr__(self, "expert_languages", tuple(self.expert_languages))
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
        if self.is_delta and self.num_experts and not self.expert_rank:
            raise UserError("delta experts need expert_rank of at least 1")

    @property
    def is_moe(self) -> bool:
        """Whether a router chooses between experts."""
        return self.num_experts > 0

    @property
    def is_delta(self) -> bool:
        """Whether low-rank deltas change a shared dense feed-forward."""
        return self.expert_form == "delta" and (self.num_experts > 0 or self.shared_rank > 0)

    def dense(self) -> ModelConfig:
        """The configuration of the dense model underneath."""
        return replace(self, num_experts=0, expert_languages=(), expert_form="full", shared_rank=0, expert_rank=0)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        return {**asdict(self), "expert_languages": list(self.expert_languages)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of :meth:`to_dict`; raises :class:`UserError` for a key that is no field."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"unknown model setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return cls(**values)
