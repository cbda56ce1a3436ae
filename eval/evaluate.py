"""Everything that is measured of one model on held-out pairs: answers and CodeBLEU, loss, routing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.held_out_loss import held_out_loss
from eval.scoring import AnswerSettings, save_answers, score_answers, write_answers
from eval.specialization import RoutingCounter
from moe.data.packing import encode_pairs
from moe.data.pairs import Pair
from moe.data.sources import sample_all
from moe.model import Transformer
from moe.tokenizer import Tokenizer
from moe.training.config import RunConfig

Counter = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    template: str,
    held_out: Mapping[str, Mapping[str, Sequence[Pair]]],
    config: RunConfig,
    directory: Path,
    name: str,
    counter: Counter,
    chat: bool = False,
) -> dict[str, Any]:
    """Scores one model on every split.

    Args:
        held_out: pairs by split and language; a sample drawn by the run's seed is answered, the loss is of all pairs
            (or ``loss_pairs``).
        directory: answers go to ``directory/answers/NAME-SPLIT.jsonl``.
        counter: makes a progress display from a title.
        chat: ask for code only, with the chat prompt, and take the code block of the answer.

    Returns:
        ``{"scores": split -> language -> CodeBLEU, parts, answers, loss, tokens, left_out}`` (``left_out``: pairs that
        do not fit into the context and have no loss), for a mixture also ``"specialization"`` over all splits.
    """
    model.eval()
    settings = AnswerSettings(config.max_new_tokens, config.eval_batch, chat)
    languages = list(config.languages)
    routing = None
    if model.config.is_moe:
        layers = len(model.config.sparse_layers)
        routing = RoutingCounter(len(languages), layers, model.config.num_experts, config.seed)
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for split, pairs in held_out.items():
        chosen = sample_all(pairs, config.eval_pairs, config.seed)
        with counter(f"{name}: answers, {split}") as show:
            answers = write_answers(model, tokenizer, template, chosen, settings, show)
        save_answers(answers, directory / "answers" / f"{name.replace(' ', '-')}-{split}.jsonl")
        encoded = encode_pairs(
            sample_all(pairs, config.loss_pairs, config.seed), tokenizer, template, model.config.max_seq_len
        )
        with counter(f"{name}: loss, {split}") as show:
            losses = held_out_loss(model, encoded.examples, config.tokens_per_batch, routing, show)
        scores[split] = {
            language: {**asdict(score), **asdict(losses[language]), "left_out": encoded.too_long[language]}
            for language, score in score_answers(answers).items()
        }
    result: dict[str, Any] = {"scores": scores}
    if routing is not None:
        result["specialization"] = asdict(routing.specialization())
    return result
