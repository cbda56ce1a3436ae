"""Stages that train the experts of a finished mixture on answers; here on preferences between two of them (DPO).

Each language's expert alone learns from the answers in its language; what the model was at the start is the same model
with the experts' first weights put back for a moment.
"""

# S tokens of a packed row, N tokens of answers in it, A answers, P pairs of answers

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from moe.data.packing import Batch, Example, make_batch
from moe.data.preferences import Preference
from moe.data.prompt import encode_example, instruction_for
from moe.errors import UserError
from moe.losses import token_losses
from moe.model import Transformer
from moe.tokenizer import Tokenizer
from moe.training.config import RunConfig
from moe.training.policy_losses import margins, preference_losses

Item = TypeVar("Item")


@dataclass(frozen=True)
class AnswerBatch(Batch):
    """Packed answers in one language.

    Attributes:
        language: its index.
        answers: [N] int64, which of the packed answers each learned token is of.
        reference: log-probabilities at the start, of tokens [N] or of the answers of preferences [P, 2].
        sampled, advantages: [N] log-probabilities when they were sampled, and what GRPO credits their answer with.
    """

    language: int
    answers: Tensor
    reference: Tensor
    sampled: Tensor | None = None
    advantages: Tensor | None = None

    @property
    def items(self) -> int:
        """How many losses a step's mean is over: one a token or a preference."""
        return len(self.reference)


class Policy(ABC):
    """What a :class:`~moe.training.trainer.Trainer` learns from in place of batches of pairs.

    Attributes:
        languages: those that there are answers in; the experts of others stay as they are.
        temperature: what logits are divided by, as when answers are sampled.
    """

    def __init__(self, config: RunConfig, languages: Collection[str]):
        self.config, self.languages, self.temperature = config, tuple(languages), 1.0

    def begin(self, model: Transformer, parameters: Mapping[str, nn.Parameter]) -> None:
        """Takes the model as it is at the start, with the parameters that will be trained."""
        self.model, self.parameters = model, parameters
        self._first = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @abstractmethod
    def batches(self, step: int) -> Sequence[AnswerBatch]:
        """What step ``step``, from 0, learns from: one or more batches of each language."""

    @abstractmethod
    def losses(self, batch: AnswerBatch) -> Tensor:
        """The loss of each item of a batch; their mean over a step is what falls."""

    @abstractmethod
    def measures(self) -> dict[str, float]:
        """Numbers of the newest step by name."""

    def state(self) -> dict[str, Tensor]:
        """What :meth:`restore` needs beside the weights."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`; other tensors are not read."""
        assert not self.state(), "a policy with a state restores it"

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Puts the first weights back while the block runs; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self._first[name] = self._first[name], parameter.data

    def log_probabilities(self, batch: Batch) -> Tensor:
        """[N] log-probabilities of the learned tokens."""
        checkpointing = self.config.activation_checkpointing
        output = self.model(
            batch.tokens, documents=batch.documents, logits=False, activation_checkpointing=checkpointing
        )
        hidden = output.hidden[0, batch.positions] / self.temperature
        return -token_losses(hidden, self.model.output_weight, batch.targets)

    @torch.no_grad()
    def packed(self, groups: Iterable[Sequence[Example]]) -> Iterator[AnswerBatch]:
        """Packs groups of answers, in their order; the answers of a group share a language and a batch."""
        for examples in fill(groups, self.config.tokens_per_batch):
            batch = make_batch(examples).to(self.model.device)
            learned = torch.tensor([len(x.tokens) - x.response_start for x in examples])
            answers = torch.arange(len(examples)).repeat_interleave(learned).to(self.model.device)  # [N]
            with self.at_start():
                reference = self.log_probabilities(batch)
            yield AnswerBatch(**vars(batch), language=examples[0].language, answers=answers, reference=reference)


def fill(groups: Iterable[Sequence[Example]], room: int) -> Iterator[list[Example]]:
    """Joins groups, in their order, to rows of up to ``room`` tokens in one language each."""
    row: list[Example] = []
    for group in groups:
        tokens = sum(len(example.tokens) for example in (*row, *group))
        if row and (tokens > room or row[0].language != group[0].language):
            yield row
            row = []
        row = [*row, *group]
    if row:
        yield row


class LearningFromPreferences(Policy):
    """Direct preference optimization.

    Args:
        preferences: by language, in the mixture's order.

    Attributes:
        too_long: by language, how many pairs do not fit into ``max_tokens`` each and ``tokens_per_batch`` together, and
            were left out.

    Raises:
        UserError: none of a language fits.
    """

    def __init__(
        self,
        config: RunConfig,
        preferences: Mapping[str, Sequence[Preference]],
        tokenizer: Tokenizer,
        template: str,
    ):
        super().__init__(config, preferences)
        self.pairs: dict[str, list[tuple[Example, Example]]] = {}
        self.too_long: dict[str, int] = {}
        for language, items in preferences.items():
            index = config.languages.index(language)
            fitting = []
            for item in items:
                instruction = instruction_for(item.prompt, language)
                chosen, rejected = (
                    Example(tuple(tokens), start, index)
                    for tokens, start in (
                        encode_example(tokenizer, template, instruction, answer)
                        for answer in (item.chosen, item.rejected)
                    )
                )
                lengths = len(chosen.tokens), len(rejected.tokens)
                if max(lengths) <= config.max_tokens and sum(lengths) <= config.tokens_per_batch:
                    fitting.append((chosen, rejected))
            self.too_long[language] = len(items) - len(fitting)
            if not fitting:
                raise UserError(
                    f"none of the {len(items)} {language} preferences fits into max_tokens {config.max_tokens} an "
                    f"answer and tokens_per_batch {config.tokens_per_batch} a pair; set them higher"
                )
            self.pairs[language] = fitting

    def batches(self, step: int) -> list[AnswerBatch]:
        self._margins: list[Tensor] = []
        groups: list[tuple[Example, Example]] = []
        for language, pairs in self.pairs.items():
            groups += drawn(pairs, step, self.config.tasks_per_step, f"{self.config.seed}-{language}")
        return [replace(batch, reference=_of_pairs(batch.reference, batch)) for batch in self.packed(groups)]

    def losses(self, batch: AnswerBatch) -> Tensor:
        policy = _of_pairs(self.log_probabilities(batch), batch)
        self._margins.append(margins(policy.detach(), batch.reference))
        return preference_losses(policy, batch.reference, self.config.kl_weight)

    def measures(self) -> dict[str, float]:
        found = torch.cat(self._margins)
        return {"margin": found.mean().item(), "preferred": (found > 0).float().mean().item()}


def _of_pairs(of_tokens: Tensor, batch: AnswerBatch) -> Tensor:
    """[P, 2] sums over the tokens [N] of each answer."""
    return of_tokens.new_zeros(len(batch.documents)).index_add(0, batch.answers, of_tokens).view(-1, 2)


def drawn(items: Sequence[Item], step: int, count: int, seed: str) -> list[Item]:
    """The ``count`` items of step ``step``: all in a random order, then all again in another one."""
    found, orders = [], dict[int, list[int]]()
    for place in range(step * count, (step + 1) * count):
        epoch, index = divmod(place, len(items))
        if epoch not in orders:
            orders[epoch] = random.Random(f"{seed}-{epoch}").sample(range(len(items)), len(items))
        found.append(items[orders[epoch][index]])
    return found
