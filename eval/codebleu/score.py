"""CodeBLEU of a corpus, and of each of its pairs."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
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

Mode = Literal["reference", "corrected"]
MODES: tuple[Mode, ...] = ("reference", "corrected")
MAX_IDLE_SCORERS = 4  # of one language, kept for the next call

_idle: dict[tuple[str, str, str | None], list[PairCounter]] = {}


class PairCounter(Protocol):
    """Counts pairs of one language in one mode."""

    def count(self, references: Sequence[str], hypothesis: str) -> Counts:
        """Counts of one hypothesis against its references."""

    def forget(self) -> None:
        """Forgets the texts that were read."""


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """Pauses the cyclic garbage collector: scoring allocates no cycles, so collection only costs time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_scorer(language: str, mode: Mode = "reference") -> PairCounter:
    """A scorer for a language and mode; it remembers the texts it has read."""
    if mode == "reference":
        return Scorer(find_language(language))
    if mode == "corrected":
        return CorrectedScorer(find_language(language))
    raise CodeBLEUError(f"unknown mode {mode!r}; known modes: {', '.join(MODES)}")


@contextlib.contextmanager
def borrowed_scorer(language: str, mode: Mode) -> Iterator[PairCounter]:
    """A scorer for one call that remembers no texts. It is kept for later calls, which saves the time to make one."""
    key = language, mode, os.environ.get(SWITCH)
    try:
        scorer = _idle[key].pop()
    except (KeyError, IndexError, TypeError):  # TypeError: unhashable arguments, which make_scorer rejects
        scorer = make_scorer(language, mode)
    yield scorer
    scorer.forget()
    idle = _idle.setdefault(key, [])
    if len(idle) < MAX_IDLE_SCORERS:
        idle.append(scorer)


def score_of(mode: Mode) -> Callable[[Counts, Weights], CodeBLEUScore]:
    """The function that turns counts into a score in a mode."""
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
        references: for each hypothesis, its references or its only reference.
        hypotheses: the texts to score.
        language: a key of :data:`eval.codebleu.LANGUAGES`.
        weights: of the n-gram, weighted n-gram, syntax and dataflow match.
        mode: ``"reference"`` gives the numbers of the published metric, ``"corrected"`` fixes its known faults.

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
    """The score of every pair; arguments and errors as for :func:`codebleu`."""
    weights = check_weights(weights)
    score = score_of(mode)
    with borrowed_scorer(language, mode) as scorer:
        return [score(counts, weights) for counts in count_each(references, hypotheses, scorer)]


def count_each(
    references: Sequence[Sequence[str] | str], hypotheses: Sequence[str], scorer: PairCounter
) -> list[Counts]:
    """Counts of every pair."""
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise CodeBLEUError("references and hypotheses are lists of texts; found a single text, put it in a list")
    if len(references) != len(hypotheses):
        raise CodeBLEUError(f"{len(references)} references for {len(hypotheses)} hypotheses; expected equally many")
    if not hypotheses:
        raise CodeBLEUError("nothing to score; expected at least one pair")
    pairs = [
        ((texts,) if isinstance(texts, str) else texts, hypothesis) for texts, hypothesis in zip(references, hypotheses)
    ]
    for number, (texts, hypothesis) in enumerate(pairs, start=1):
        for text in (*texts, hypothesis):
            if not isinstance(text, str):
                raise CodeBLEUError(f"pair {number}: a text is not a string")
    counts: list[Counts] = []
    with paused_collection():
        try:
            for texts, hypothesis in pairs:
                counts.append(scorer.count(texts, hypothesis))
        except CodeBLEUError as error:
            raise CodeBLEUError(f"pair {len(counts) + 1}: {error}") from None
    return counts
