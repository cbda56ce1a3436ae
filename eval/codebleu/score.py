"""CodeBLEU of a corpus and of each of its pairs."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

from eval.codebleu.corrected.scorer import CorrectedScorer, corrected_score
from eval.codebleu.counts import (
    EQUAL_WEIGHTS,
    CodeBLEUScore,
    Counts,
    Weights,
    check_weights,
    merge_all,
    reference_score,
)
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.languages import find_language
from eval.codebleu.reference.native import SWITCH
from eval.codebleu.reference.scorer import Scorer


class paused_collection:
    """Holds the cyclic garbage collector: scoring makes many small objects and no cycles, so it would look in vain."""

    __slots__ = ("_was_enabled",)

    def __enter__(self) -> None:
        self._was_enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_enabled:
            gc.enable()


Mode = Literal["reference", "corrected"]
MODES: tuple[Mode, ...] = ("reference", "corrected")
TOGETHER = 64  # pairs whose texts are read together
MOST_IDLE = 4  # scorers of one language that wait for the next call

_IDLE: dict[tuple, list[PairCounter]] = {}


class PairCounter(Protocol):
    """What counts pairs of one language in one mode."""

    def prepare(self, pairs: Iterable[tuple[Sequence[str], str]]) -> None:
        """Told which pairs (references, hypothesis) are counted next; may read their texts together."""

    def count(self, references: Sequence[str], hypothesis: str) -> Counts:
        """Counts of one hypothesis against its references."""


def make_scorer(language: str, mode: Mode = "reference") -> PairCounter:
    """The scorer of a language in a mode; it remembers the texts that it has read."""
    if mode == "reference":
        return Scorer(find_language(language))
    if mode == "corrected":
        return CorrectedScorer(find_language(language))
    raise CodeBLEUError(f"unknown mode {mode!r}; known modes: {', '.join(MODES)}")


class borrowed_scorer:
    """A scorer without texts for one call; its tables of the grammar are made once, and used by one call at a time."""

    __slots__ = ("_key", "_scorer")

    def __init__(self, language: str, mode: Mode):
        self._key = language, mode, os.environ.get(SWITCH)

    def __enter__(self) -> PairCounter:
        try:
            self._scorer = _IDLE[self._key].pop()
            return self._scorer
        except (KeyError, IndexError, TypeError):
            pass
        self._scorer = make_scorer(*self._key[:2])
        return self._scorer

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None or not isinstance(self._scorer, Scorer):
            return
        idle = _IDLE.setdefault(self._key, [])
        if len(idle) < MOST_IDLE:
            self._scorer.forget()
            idle.append(self._scorer)


def score_of(mode: Mode) -> Callable[[Counts, Weights], CodeBLEUScore]:
    """How counts become a score in a mode."""
    return reference_score if mode == "reference" else corrected_score


def codebleu(
    references: Sequence[Sequence[str] | str],
    hypotheses: Sequence[str],
    language: str,
    weights: Weights = EQUAL_WEIGHTS,
    mode: Mode = "reference",
) -> CodeBLEUScore:
    """Corpus score of ``hypotheses``, each against its one or more ``references``.

    Args:
        references: for each hypothesis its references, or the one reference.
        hypotheses: the texts to score.
        language: a key of :data:`eval.codebleu.LANGUAGES`.
        weights: of n-gram, weighted n-gram, syntax and dataflow match.
        mode: ``"reference"`` gives the numbers of the published metric, ``"corrected"`` mends its known faults.

    Raises:
        CodeBLEUError: unknown language or mode, lists of unequal length, no pair, a pair without a reference, text
            with a lone surrogate, or weights that are not four numbers which sum to 1.
    """
    weights = check_weights(weights)
    with borrowed_scorer(language, mode) as scorer:
        counts = count_each(references, hypotheses, scorer)
    return score_of(mode)(merge_all(counts), weights)


def codebleu_each(
    references: Sequence[Sequence[str] | str],
    hypotheses: Sequence[str],
    language: str,
    weights: Weights = EQUAL_WEIGHTS,
    mode: Mode = "reference",
) -> list[CodeBLEUScore]:
    """The score of every single pair; arguments and errors as for :func:`codebleu`."""
    weights = check_weights(weights)
    score = score_of(mode)
    with borrowed_scorer(language, mode) as scorer:
        return [score(counts, weights) for counts in count_each(references, hypotheses, scorer)]


def count_each(
    references: Sequence[Sequence[str] | str], hypotheses: Sequence[str], scorer: PairCounter
) -> list[Counts]:
    """Counts of every pair."""
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise CodeBLEUError("references and hypotheses are lists of texts; found a single text; put it in a list")
    if len(references) != len(hypotheses):
        raise CodeBLEUError(f"{len(references)} references for {len(hypotheses)} hypotheses; expected as many of both")
    if not hypotheses:
        raise CodeBLEUError("nothing to score; expected at least one pair")
    pairs = [
        ((texts,) if isinstance(texts, str) else texts, hypothesis) for texts, hypothesis in zip(references, hypotheses)
    ]
    for number, (texts, hypothesis) in enumerate(pairs, start=1):
        for text in (*texts, hypothesis):
            if not isinstance(text, str):
                raise CodeBLEUError(f"pair {number}: a text is no string")
    counts = []
    number = 0
    with paused_collection():
        try:
            for number, (texts, hypothesis) in enumerate(pairs, start=1):
                if number % TOGETHER == 1 and len(pairs) > 1:
                    scorer.prepare(pairs[number - 1 : number - 1 + TOGETHER])
                counts.append(scorer.count(texts, hypothesis))
        except CodeBLEUError as error:
            raise CodeBLEUError(f"pair {number}: {error}") from None
    return counts
