"""Everything that is measured of a run's models on held-out pairs: answers, CodeBLEU and pass@1, loss, routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from checkpoints.model_io import LoadedModel
from checkpoints.progress import CountDisplay, say
from checkpoints.runs.directory import RunDirectory
from eval.cost import model_cost
from eval.reporting.record import ADAPTER, title
from eval.scoring import AnswerSettings, can_score, save_answers, score_answers, write_answers
from eval.specialization import RoutingCounter
from eval.verdicts import add_verdicts
from moe.config import parse_layers
from moe.data.packing import EncodedData, encode_pairs
from moe.data.pairs import Pair
from moe.data.sources import sample_all
from moe.files import write_json_lines
from moe.training.config import RunConfig
from moe.training.held_out_loss import HeldOutLoss, held_out_loss
from moe.training.stages import choose_trainable

UNFINISHED = ".unfinished"  # of the file that notes each answer until all of a model are scored


class Evaluation:
    """Scores the models of a run on its held-out pairs, each model once.

    Args:
        directory: of the run; keeps the results, the answers in ``answers/NAME-SPLIT.jsonl`` and the loss of each pair
            in ``losses/NAME-SPLIT.jsonl``.
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

        The result is ``{"scores": split -> language -> CodeBLEU, parts, answers, loss, tokens, left_out}`` (without
        CodeBLEU where its parser is missing; ``left_out``: pairs that do not fit into the context and have no loss),
        ``"cost"``, and for a mixture ``"specialization"`` over all splits.

        Args:
            chat: ask for code only, with the chat prompt, and take the code block of the answer.
        """
        result = self.directory.once(f"scores of {name}", lambda: self._measure(loaded, name, chat))
        for split, scores in result["scores"].items():
            left_out = [f"{x['left_out']} {language}" for language, x in scores.items() if x.get("left_out")]
            if left_out:
                say(self.console, f"{split}: {', '.join(left_out)} pairs do not fit into the context and have no loss")

    def test(self, name: str) -> None:
        """Runs the tests of a model's answers and notes the counts under ``tests of NAME``, unless they are there.

        Without tree-sitter they are left to ``score-answers``.
        The result is ``split -> language -> tested, passed, verdicts, why`` (:func:`eval.verdicts.add_verdicts`).
        """
        if not can_score():
            return
        found = self.directory.once(f"tests of {name}", lambda: {s: self._test(name, s) for s in self.held_out})
        for split, languages in found.items():
            for language, counts in languages.items():
                if not counts["tested"]:
                    say(self.console, f"{split}: no {language} tests were run: {counts['why']}")

    def _test(self, name: str, split: str) -> dict[str, Any]:
        with CountDisplay(self.console, f"{title(name, self.config.expert_form)}: tests, {split}") as show:
            return add_verdicts(self._file("answers", name, split), self.config.test_pairs, self.config.seed, show)

    def _file(self, folder: str, name: str, split: str) -> Path:
        return self.directory.path / folder / f"{name.replace(' ', '-')}-{split}.jsonl"

    def _measure(self, loaded: LoadedModel, name: str, chat: bool) -> dict[str, Any]:
        model, tokenizer, template, config = loaded.model, loaded.tokenizer, loaded.template, self.config
        assert tokenizer is not None, "a model that is scored has a tokenizer"
        model.eval()
        settings = AnswerSettings(config.max_new_tokens, config.eval_batch_size, chat)
        routing = None
        if model.config.is_moe:
            layers = len(model.config.sparse_layers)
            routing = RoutingCounter(len(config.languages), layers, model.config.num_experts, config.seed)
        result: dict[str, Any] = {"scores": {}, "cost": asdict(model_cost(model.config))}
        shown = title(name, config.expert_form)
        if name == ADAPTER and not model.config.is_delta:  # beside full experts: no config says what it trained
            trained = parse_layers(config.moe_layers, model.config.n_layers)
            learned = choose_trainable(model, "adapter", moe_layers=trained)
            result["cost"]["trained"] = sum(parameter.numel() for parameter in learned.values())
            model.requires_grad_(False)
        for split, pairs in self.held_out.items():
            chosen = sample_all(pairs, config.eval_pairs, config.seed)
            path = self._file("answers", name, split)
            journal = path.with_suffix(UNFINISHED)
            with CountDisplay(self.console, f"{shown}: answers, {split}") as show:
                answers = write_answers(model, tokenizer, template, chosen, settings, show, journal)
            save_answers(answers, path)
            chosen = sample_all(pairs, config.loss_pairs, config.seed)
            encoded = encode_pairs(chosen, tokenizer, template, model.config.max_seq_len)
            with CountDisplay(self.console, f"{shown}: loss, {split}") as show:
                losses = held_out_loss(model, encoded.examples, config.tokens_per_batch, routing, show)
            save_losses(chosen, encoded, losses, self._file("losses", name, split))
            scores = score_answers(answers) if can_score() else {}
            result["scores"][split] = {
                language: {
                    **(asdict(scores[language]) if scores else {"answers": len(answers[language])}),
                    "loss": losses[language].loss,
                    "tokens": losses[language].tokens,
                    "examples": losses[language].examples,
                    "left_out": encoded.too_long[language],
                }
                for language in answers
            }
        for split in self.held_out:
            self._file("answers", name, split).with_suffix(UNFINISHED).unlink(missing_ok=True)
        if routing is not None:
            numbers = list(model.config.sparse_layers)
            result["specialization"] = {**asdict(routing.specialization()), "layer_numbers": numbers}
        return result


def save_losses(
    pairs: Mapping[str, Sequence[Pair]], encoded: EncodedData, losses: Mapping[str, HeldOutLoss], path: Path
) -> None:
    """Writes the loss of each pair as JSON Lines: ``id``, ``language``, ``nats`` of its response and its ``tokens``."""
    rows = []
    for language, loss in losses.items():
        examples = encoded.examples[language]
        for place, example, nats in zip(examples.places.tolist(), examples, loss.nats, strict=True):
            name = pairs[language][place].id or f"{language}-{place}"
            tokens = len(example.tokens) - example.response_start
            rows.append({"id": name, "language": language, "nats": nats, "tokens": tokens})
    write_json_lines(path, rows)
