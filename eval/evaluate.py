"""Everything that is measured of a run's models on held-out pairs: answers and CodeBLEU, loss, routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from checkpoints.model_io import LoadedModel
from checkpoints.progress import CountDisplay, say
from checkpoints.runs.directory import RunDirectory
from eval.scoring import AnswerSettings, save_answers, score_answers, write_answers
from eval.specialization import RoutingCounter
from moe.data.packing import encode_pairs
from moe.data.pairs import Pair
from moe.data.sources import sample_all
from moe.training.config import RunConfig
from moe.training.held_out_loss import held_out_loss


class Evaluation:
    """Scores the models of a run on its held-out pairs, each model once.

    Args:
        directory: of the run; keeps the results, and the answers in ``answers/NAME-SPLIT.jsonl``.
        held_out: pairs by split and language; a sample drawn by the run's seed is answered, the loss is of all pairs
            (or ``loss_pairs``).
        console: shows progress.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: RunConfig,
        held_out: Mapping[str, Mapping[str, Sequence[Pair]]],
        console: Console,
    ):
        self.directory, self.config, self.held_out, self.console = directory, config, held_out, console

    def score(self, loaded: LoadedModel, name: str, chat: bool = False) -> None:
        """Measures a model and notes the result under ``scores of NAME``, unless it is there.

        The result is ``{"scores": split -> language -> CodeBLEU, parts, answers, loss, tokens, left_out}``
        (``left_out``: pairs that do not fit into the context and have no loss), for a mixture also
        ``"specialization"`` over all splits.

        Args:
            chat: ask for code only, with the chat prompt, and take the code block of the answer.
        """
        result = self.directory.once(f"scores of {name}", lambda: self._measure(loaded, name, chat))
        for split, scores in result["scores"].items():
            left_out = [f"{x['left_out']} {language}" for language, x in scores.items() if x.get("left_out")]
            if left_out:
                say(self.console, f"{split}: {', '.join(left_out)} pairs do not fit into the context and have no loss")

    def _measure(self, loaded: LoadedModel, name: str, chat: bool) -> dict[str, Any]:
        model, tokenizer, template, config = loaded.model, loaded.tokenizer, loaded.template, self.config
        assert tokenizer is not None, "a model that is scored has a tokenizer"
        model.eval()
        settings = AnswerSettings(config.max_new_tokens, config.eval_batch_size, chat)
        routing = None
        if model.config.is_moe:
            layers = len(model.config.sparse_layers)
            routing = RoutingCounter(len(config.languages), layers, model.config.num_experts, config.seed)
        result: dict[str, Any] = {"scores": {}}
        for split, pairs in self.held_out.items():
            chosen = sample_all(pairs, config.eval_pairs, config.seed)
            with CountDisplay(self.console, f"{name}: answers, {split}") as show:
                answers = write_answers(model, tokenizer, template, chosen, settings, show)
            save_answers(answers, self.directory.path / "answers" / f"{name.replace(' ', '-')}-{split}.jsonl")
            chosen = sample_all(pairs, config.loss_pairs, config.seed)
            encoded = encode_pairs(chosen, tokenizer, template, model.config.max_seq_len)
            with CountDisplay(self.console, f"{name}: loss, {split}") as show:
                losses = held_out_loss(model, encoded.examples, config.tokens_per_batch, routing, show)
            result["scores"][split] = {
                language: {**asdict(score), **asdict(losses[language]), "left_out": encoded.too_long[language]}
                for language, score in score_answers(answers).items()
            }
        if routing is not None:
            result["specialization"] = asdict(routing.specialization())
        return result
