"""A drop-in replacement for the function of the PyPI package ``codebleu``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.codebleu.counts import EQUAL_WEIGHTS, Weights, merge_all, reference_score
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.languages import find_language
from eval.codebleu.reference.scorer import Scorer
from eval.codebleu.score import borrowed_scorer, count_each


def calc_codebleu(
    references: Sequence[str] | Sequence[Sequence[str]],
    predictions: Sequence[str],
    lang: str,
    weights: Weights = EQUAL_WEIGHTS,
    tokenizer: Callable[[str], list[str]] | None = None,
    keywords_dir: Path | None = None,
) -> dict[str, float]:
    """Corpus score with the signature, the keys and the numbers of ``codebleu.calc_codebleu`` 0.7.0.

    Args:
        references: for each prediction, its references or its only reference.
        predictions: the texts to score.
        lang: a language of mode ``reference``.
        weights: of the n-gram, weighted n-gram, syntax and dataflow match; any four numbers.
        tokenizer: splits a text for the n-gram parts; defaults to ``str.split``.
        keywords_dir: a folder with a file ``LANG.txt`` of keywords, one per line; defaults to the published lists.

    Raises:
        CodeBLEUError: as for :func:`eval.codebleu.codebleu`, except that weights may have any sum.
    """
    if len(weights) != 4:
        raise CodeBLEUError(f"{len(weights)} weights; expected four")
    language = find_language(lang)
    keywords = None
    if keywords_dir is not None:
        path = Path(keywords_dir) / f"{lang}.txt"
        try:
            keywords = frozenset(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise CodeBLEUError(f"{path} cannot be read: {error.strerror or error}") from None
    if keywords is None and tokenizer is None:
        with borrowed_scorer(language, "reference") as scorer:
            counts = count_each(references, predictions, scorer)
    else:
        counts = count_each(references, predictions, Scorer(language, keywords, tokenizer))
    return reference_score(merge_all(counts), weights).as_dict()
