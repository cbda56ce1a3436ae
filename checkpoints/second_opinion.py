"""A second reading of a model, by transformers: our own proof compares two models that both went through our reader."""

# S sequence, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from checkpoints.formats import Checkpoint
from checkpoints.proof import logit_bound, prompt_ids
from moe.errors import UserError
from moe.hardware import dtype_name
from moe.model import Transformer
from moe.tokenizer import Tokenizer

READERS = ("transformers",)


@dataclass(frozen=True)
class Agreement:
    """How far the logits of a model of ours are from those that another program computes from the same files.

    Attributes:
        reader: the other program and its version.
        bound: the largest difference that rounding in another order explains: 1e-5 of the largest logit in float32.
    """

    reader: str
    dtype: str
    positions: int
    max_abs_logit_difference: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether both read the same model, up to rounding."""
        return self.max_abs_logit_difference <= self.bound

    def to_json(self) -> dict[str, Any]:
        """All fields, for ``proof.json``."""
        return {**asdict(self), "holds": self.holds}

    def describe(self) -> str:
        """One line for the terminal."""
        verdict = "the same model" if self.holds else "NOT the same model"
        return (
            f"read by {self.reader}: max |Δlogit| {self.max_abs_logit_difference:.3e} over {self.positions} positions "
            f"in {self.dtype} (bound {self.bound:.0e}): {verdict}"
        )


@torch.no_grad()
def compare_with_transformers(model: Transformer, files: Checkpoint, tokenizer: Tokenizer | None) -> Agreement:
    """Compares the logits of ``model`` on the proof's prompts with what transformers computes from ``files``.

    Raises:
        UserError: transformers is missing, or cannot read the files.
    """
    prompts = [ids[: max(8, model.config.max_seq_len)] for ids in prompt_ids(tokenizer, model.config.vocab_size)]
    reader, theirs = _logits_of_transformers(files, prompts, model.dtype)
    difference = size = 0.0
    for ids, expected in zip(prompts, theirs, strict=True):
        found = model(torch.tensor([ids], device=model.device)).logits[0].cpu()  # [S, V]
        difference = max(difference, (found - expected).abs().max().item())
        size = max(size, expected.abs().max().item())
    positions = sum(map(len, prompts))
    return Agreement(reader, dtype_name(model.dtype), positions, difference, logit_bound(model.dtype, 10 * size))


def _logits_of_transformers(
    files: Checkpoint, prompts: Sequence[Sequence[int]], dtype: torch.dtype
) -> tuple[str, list[Tensor]]:
    try:
        import transformers
    except ImportError:
        raise UserError("--verify-with transformers needs it: pip install transformers") from None
    if files.format == "consolidated":
        raise UserError(f"{files.path} is in Mistral's own format, which transformers does not read; convert it first")
    options = {"gguf_file": files.path.name} if files.format == "gguf" else {}
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        other = transformers.AutoModelForCausalLM.from_pretrained(files.directory, dtype=dtype, **options).eval()
        reader = f"transformers {transformers.__version__}"
        return reader, [other(torch.tensor([list(ids)])).logits[0] for ids in prompts]
    except Exception as error:  # whatever transformers raises
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"transformers cannot read {files.path}: {reason}") from None
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
