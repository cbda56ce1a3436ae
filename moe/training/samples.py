"""Sample answers during training: what the model writes for a few held-out prompts, one per language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from moe.data.pairs import Pair
from moe.data.prompt import encode_prompt, instruction_for, stop_ids
from moe.inference.generation import generate_many
from moe.model import Transformer
from moe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """An answer: ``text`` to ``prompt``, both without control tokens."""

    language: str
    prompt: str
    text: str


class Samples:
    """Greedy answers to the first held-out pair of each language that fits the context; nothing random is drawn.

    Args:
        pairs: held-out pairs by language.
        max_new_tokens: longest answer, in tokens.
    """

    def __init__(
        self,
        pairs: Mapping[str, Sequence[Pair]],
        tokenizer: Tokenizer,
        template: str,
        max_new_tokens: int,
        context: int,
    ):
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        self.stop_ids = stop_ids(tokenizer, template)
        self.prompts: list[tuple[str, str, list[int]]] = []
        for language, items in pairs.items():
            for pair in items:
                instruction = instruction_for(pair.text, language)
                ids = encode_prompt(tokenizer, template, instruction)
                if len(ids) < context:
                    self.prompts.append((language, instruction, ids))
                    break

    def write(self, model: Transformer) -> tuple[Sample, ...]:
        """The answers of a model in training, which stays in training mode."""
        if not self.prompts:
            return ()
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                ids = [ids for _, _, ids in self.prompts]
                found = generate_many(
                    model, ids, max_new_tokens=self.max_new_tokens, stop_ids=self.stop_ids, batch_size=len(ids)
                )
        finally:
            model.train(was_training)
        texts = [self.tokenizer.decode(answer.tokens) for answer in found]
        return tuple(Sample(*prompt[:2], text) for prompt, text in zip(self.prompts, texts, strict=True))
