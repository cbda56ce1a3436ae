"""Proof that an upcycled mixture still computes the dense model: logits and greedy text on real prompts."""

# S sequence, V vocabulary

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from moe.hardware import dtype_name
from moe.inference.generation import generate_many
from moe.model import Transformer
from moe.tokenizer import Tokenizer

PROOF_FILE = "proof.json"
GREEDY_TOKENS = 32
PROMPTS: tuple[tuple[str, str], ...] = (
    (
        "python",
        "Write a Python function that returns the second largest number of a list.\n\ndef second_largest(values):\n",
    ),
    ("python", "def word_counts(text: str) -> dict[str, int]:\n    counts = {}\n    for word in text.split():\n"),
    ("java", "Write a Java method that reverses a string.\n\npublic static String reverse(String text) {\n"),
    (
        "java",
        "class Stack<T> {\n    private final List<T> items = new ArrayList<>();\n\n    void push(T item) {\n",
    ),
    ("javascript", "Write a JavaScript function that removes duplicates from an array.\n\nfunction unique(items) {\n"),
    ("javascript", "const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);\n\nfunction average(numbers) {\n"),
    ("cpp", "Write a C++ function that checks whether a number is prime.\n\nbool is_prime(int n) {\n"),
    ("cpp", "#include <vector>\n\nstd::vector<int> prefix_sums(const std::vector<int>& values) {\n"),
)


@dataclass(frozen=True)
class Proof:
    """How far a mixture is from its dense base.

    Attributes:
        max_abs_logit_difference: over all prompts, positions and tokens.
        max_abs_logit: the largest dense logit, for scale.
        same_greedy_text: whether all greedy continuations agree token for token.
        greedy: per prompt its language, the dense continuation as text (or ids), and whether the mixture's is the same.
        bound: the largest difference that rounding explains in this dtype.
    """

    dtype: str
    positions: int
    max_abs_logit_difference: float
    max_abs_logit: float
    same_greedy_text: bool
    greedy: tuple[dict[str, Any], ...]
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the two models are the same up to rounding."""
        return self.max_abs_logit_difference <= self.bound and self.same_greedy_text

    def to_json(self) -> dict[str, Any]:
        """All fields, for ``proof.json``."""
        return {**asdict(self), "greedy": list(self.greedy), "holds": self.holds}

    def describe(self) -> str:
        """Two lines for the terminal."""
        same = sum(entry["same"] for entry in self.greedy)
        return (
            f"max |Δlogit| {self.max_abs_logit_difference:.3e} over {self.positions} positions in {self.dtype} "
            f"(logits up to {self.max_abs_logit:.1f}; bound {self.bound:.0e})\n"
            f"same greedy text: {'yes' if self.same_greedy_text else 'NO'}, {same} of {len(self.greedy)} prompts"
        )


def logit_bound(dtype: torch.dtype, max_abs_logit: float) -> float:
    """The largest |Δlogit| that rounding explains: 1e-12 in float64, 1e-5 in float32, for logits of size 1 to 10."""
    scale = max(1.0, max_abs_logit / 10.0)
    return {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.05) * scale


def prompt_ids(tokenizer: Tokenizer | None, vocab_size: int) -> list[list[int]]:
    """The prompts as token ids; without a tokenizer their UTF-8 bytes, folded into the vocabulary."""
    if tokenizer is not None:
        return [tokenizer.encode(text, bos=tokenizer.add_bos) for _, text in PROMPTS]
    return [[byte % vocab_size for byte in text.encode()] for _, text in PROMPTS]


@torch.no_grad()
def prove(
    dense: Transformer, mixture: Transformer, tokenizer: Tokenizer | None = None, greedy_tokens: int = GREEDY_TOKENS
) -> Proof:
    """Compares two models of the same vocabulary on the embedded prompts.

    The dense model continues each prompt greedily; both models then read prompt and continuation once. The mixture
    would have written the same text if and only if its best token is the dense model's at every step of it.
    """
    assert dense.config.vocab_size == mixture.config.vocab_size
    limit = max(8, dense.config.max_seq_len - greedy_tokens)
    prompts = [ids[:limit] for ids in prompt_ids(tokenizer, dense.config.vocab_size)]
    answers = generate_many(dense, prompts, max_new_tokens=greedy_tokens)
    rows = [prompt + answer.tokens for prompt, answer in zip(prompts, answers)]
    difference = size = 0.0
    greedy = []
    positions = 0
    for (language, _), prompt, row in zip(PROMPTS, prompts, rows):
        tokens = torch.tensor([row], device=dense.device)
        ours, theirs = mixture(tokens).logits[0], dense(tokens).logits[0]  # [S, V]
        difference = max(difference, (ours - theirs).abs().max().item())
        size = max(size, theirs.abs().max().item())
        positions += len(row)
        written = row[len(prompt) :]
        steps = slice(len(prompt) - 1, len(row) - 1)
        same = bool((ours[steps].argmax(-1) == theirs[steps].argmax(-1)).all())
        text = tokenizer.decode(written) if tokenizer is not None else written
        greedy.append({"language": language, "dense": text, "same": same})
    all_same = all(entry["same"] for entry in greedy)
    dtype = dtype_name(dense.dtype)
    return Proof(dtype, positions, difference, size, all_same, tuple(greedy), logit_bound(dense.dtype, size))
