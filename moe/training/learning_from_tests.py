"""Group relative policy optimization (GRPO, Shao et al., 2024): a mixture learns from its own answers to tasks.

Answers are sampled in groups, one for each task, and a judge that the caller brings says what share of the task's tests
each passes. An answer's advantage is its reward compared with its group.
"""

# M tasks, G answers to each, A = M * G answers, N tokens of them

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moe.data.packing import Example
from moe.data.pairs import Pair
from moe.data.prompt import encode_prompt, end_id, instruction_for, stop_ids
from moe.errors import UserError
from moe.inference.generation import generate_many
from moe.inference.sampling import Sampling
from moe.tokenizer import Tokenizer
from moe.training.config import RunConfig
from moe.training.policy import AnswerBatch, Policy, drawn
from moe.training.policy_losses import clipped_losses, divergence, group_advantages

Judge = Callable[[Sequence[tuple[Pair, str]]], Sequence[float]]  # (task, answer) -> share of the tests that it passes
STATE = "answers/"  # before the names of tensors in a stage's state
ROW_IDS = 1 << 32  # answers of one turn have numbers below it


class LearningFromTests(Policy):
    """What the stage ``tests`` learns from.

    Args:
        tasks: by language, in the mixture's order; pairs with tests, of which text and tests alone are used.
        judge: what share of a task's tests each answer passes; 1 is a pass.

    Attributes:
        too_long: by language, how many tasks leave no room for an answer of ``max_new_tokens`` and were left out.

    Raises:
        UserError: no task of a language is left.
    """

    def __init__(
        self,
        config: RunConfig,
        tasks: Mapping[str, Sequence[Pair]],
        tokenizer: Tokenizer,
        template: str,
        judge: Judge,
        context: int,
    ):
        super().__init__(config, tasks)
        self.temperature, self.tokenizer, self.judge = config.temperature, tokenizer, judge
        self.stop_ids, self.end_id = stop_ids(tokenizer, template), end_id(tokenizer, template)
        self.tasks: dict[str, list[tuple[Pair, list[int]]]] = {}
        self.too_long: dict[str, int] = {}
        room = min(context, config.tokens_per_batch) - config.max_new_tokens - 1
        for language, pairs in tasks.items():
            prompts = (encode_prompt(tokenizer, template, instruction_for(pair.text, language)) for pair in pairs)
            self.tasks[language] = [(pair, ids) for pair, ids in zip(pairs, prompts, strict=True) if len(ids) <= room]
            self.too_long[language] = len(pairs) - len(self.tasks[language])
            if not self.tasks[language]:
                raise UserError(
                    f"none of the {len(pairs)} {language} tasks leaves room for an answer of max_new_tokens "
                    f"{config.max_new_tokens} in tokens_per_batch {config.tokens_per_batch} and the context of "
                    f"{context}; set max_new_tokens lower"
                )
        self._turn = -1
        self._batches: list[AnswerBatch] = []

    def batches(self, step: int) -> list[AnswerBatch]:
        turn = step // self.config.updates_per_group
        self._measured: dict[str, float] = {}
        self._divergence: list[Tensor] = []
        if turn != self._turn:
            examples, advantages = self._sample(turn)
            self._turn, self._batches = turn, self._prepared(examples, advantages)
        return self._batches

    def losses(self, batch: AnswerBatch) -> Tensor:
        assert batch.sampled is not None and batch.advantages is not None
        policy = self.log_probabilities(batch)  # [N]
        held = divergence(policy, batch.reference)
        self._divergence.append(held.detach())
        clipped = clipped_losses(policy, batch.sampled, batch.advantages, self.config.clip_range)
        return clipped + self.config.kl_weight * held

    def measures(self) -> dict[str, float]:
        return {**self._measured, "kl": torch.cat(self._divergence).mean().item()}

    def _sample(self, turn: int) -> tuple[list[Example], Tensor]:
        """Answers to the tasks of a turn, with their advantages [A]; the same seed and weights give the same ones."""
        config, size = self.config, self.config.group_size
        tasks = [
            task
            for language, items in self.tasks.items()
            for task in drawn(items, turn, config.tasks_per_step, f"{config.seed}-{language}")
        ]
        started = time.perf_counter()
        answers = generate_many(
            self.model,
            [ids for _, ids in tasks for _ in range(size)],
            max_new_tokens=config.max_new_tokens,
            batch_size=config.eval_batch_size,
            stop_ids=self.stop_ids,
            sampling=Sampling(config.temperature, seed=config.seed),
            row_ids=[turn * ROW_IDS + place for place in range(len(tasks) * size)],
        )
        sampled = time.perf_counter()
        # An answer that did not end fails. Equal ones are judged once.
        finished = [place for place, answer in enumerate(answers) if answer.finished == "stop"]
        wanted = {place: (tasks[place // size][0], self.tokenizer.decode(answers[place].tokens)) for place in finished}
        different = list(dict.fromkeys(wanted.values()))
        shares = dict(zip(different, self.judge(different), strict=True))
        share = torch.zeros(len(answers))  # [A]
        for place, judged in wanted.items():
            share[place] = shares[judged]
        passed = (share == 1).float()
        rewards = config.test_share_weight * share + (1 - config.test_share_weight) * passed  # [A]
        self._measure(rewards, passed, [pair.language for pair, _ in tasks])
        self._measured |= {"seconds_sampling": sampled - started, "seconds_judging": time.perf_counter() - sampled}
        examples = []
        for place, answer in enumerate(answers):
            pair, prompt = tasks[place // size]
            end = [self.end_id] if answer.finished == "stop" else []
            tokens = (*prompt, *answer.tokens, *end)
            examples.append(Example(tokens, len(prompt), config.languages.index(pair.language)))
        return examples, group_advantages(rewards.view(-1, size)).flatten()

    def _measure(self, rewards: Tensor, passed: Tensor, languages: Sequence[str]) -> None:
        """Notes mean reward and share of passes, of all and by language, and of groups that teach something."""
        size = self.config.group_size
        groups = rewards.view(-1, size)
        telling = (groups != groups[:, :1]).any(1).float().mean().item()
        self._measured |= {"reward": rewards.mean().item(), "passed": passed.mean().item(), "telling": telling}
        for language in self.tasks:
            own = torch.tensor([x == language for x in languages]).repeat_interleave(size)
            self._measured |= {f"reward_{language}": rewards[own].mean().item()}
            self._measured |= {f"passed_{language}": passed[own].mean().item()}

    @torch.no_grad()
    def _prepared(self, examples: Sequence[Example], advantages: Tensor) -> list[AnswerBatch]:
        """Batches with the log-probabilities of now as those of sampling."""
        batches, first = [], 0
        for batch in self.packed([example] for example in examples):
            own = advantages[first : first + len(batch.documents)].to(batch.answers.device)
            first += len(batch.documents)
            sampled = self.log_probabilities(batch)
            batches.append(replace(batch, sampled=sampled, advantages=own[batch.answers]))
        return batches

    def state(self) -> dict[str, Tensor]:
        if self._turn < 0:
            return {}
        found = {
            "turn": torch.tensor([self._turn]),
            "documents": torch.tensor([len(batch.documents) for batch in self._batches]),
            "lengths": torch.tensor([length for batch in self._batches for length in batch.documents]),
            "language": torch.tensor([batch.language for batch in self._batches]),
        }
        for name in ("tokens", "languages", "positions", "targets", "answers", "reference", "sampled", "advantages"):
            found[name] = torch.cat([getattr(batch, name).flatten() for batch in self._batches])
        found["learned"] = torch.tensor([batch.items for batch in self._batches])
        return {STATE + name: tensor for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        if STATE + "turn" not in tensors:
            return
        found = {name.removeprefix(STATE): x.to(self.model.device) for name, x in tensors.items() if STATE in name}
        self._turn, self._batches = int(found["turn"]), []
        documents = found["lengths"].split(found["documents"].tolist())
        read = [lengths.sum().item() for lengths in documents]
        parts = {name: found[name].split(read) for name in ("tokens", "languages")}
        for name in ("positions", "targets", "answers", "reference", "sampled", "advantages"):
            parts[name] = found[name].split(found["learned"].tolist())
        for place, language in enumerate(found["language"].tolist()):
            own = {name: part[place] for name, part in parts.items()}
            own["tokens"] = own["tokens"][None]
            lengths = tuple(documents[place].tolist())
            self._batches.append(AnswerBatch(documents=lengths, language=language, **own))
