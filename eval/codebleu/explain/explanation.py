"""Explains a score: what the hypothesis lacks of the reference, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from eval.codebleu.comments import strip_comments
from eval.codebleu.corrected.renaming import match_variables
from eval.codebleu.corrected.scorer import CorrectedScorer, corrected_score, renamed_words
from eval.codebleu.counts import EQUAL_WEIGHTS, CodeBLEUScore, Counts, Weights, check_weights, reference_score
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.keywords import KEYWORDS
from eval.codebleu.languages import find_language
from eval.codebleu.ngrams import ORDERS, count_ngrams
from eval.codebleu.reference.dataflow import RELATIONS, edges_of
from eval.codebleu.reference.reader import Reader
from eval.codebleu.reference.scorer import Scorer
from eval.codebleu.reference.tree import printed_subtrees, read_tree
from eval.codebleu.score import MODES, Mode

MAX_SNIPPET = 60  # characters of the text of a subtree that are shown

Span = tuple[str, int, int]
"""What it is, and its bytes (from, to)."""


@dataclass(frozen=True)
class Missed:
    """Something of the reference that the hypothesis lacks; ``start`` and ``end`` are bytes of the compared text."""

    what: str
    line: int
    start: int
    end: int


@dataclass(frozen=True)
class Explanation:
    """One reference against the hypothesis.

    Attributes:
        score: of this pair alone.
        reference, hypothesis: the texts as they are parsed, in mode ``reference`` without comments.
        ngrams: order -> (n-gram, how often it is missed), most often missed first.
        subtrees: subtrees of the reference that the hypothesis lacks, in the order of the text.
        innermost: those of them that contain no other one.
        edges: dataflow edges of the reference that the hypothesis lacks.
        added: subtrees of the hypothesis that the reference lacks, and that contain no other such one.
        totals: number of n-grams of order 1 to 4, subtrees and edges of the reference.
        partners: in mode ``corrected``, renamed variables of the hypothesis -> their names in the reference.
    """

    language: str
    mode: Mode
    score: CodeBLEUScore
    reference: str
    hypothesis: str
    ngrams: dict[int, list[tuple[tuple[str, ...], int]]]
    subtrees: list[Missed]
    innermost: list[Missed]
    edges: list[Missed]
    added: list[Missed]
    totals: tuple[int, ...]
    partners: dict[str, str] = field(default_factory=dict)


def explain(
    reference: str, hypothesis: str, language: str, weights: Weights = EQUAL_WEIGHTS, mode: Mode = "reference"
) -> Explanation:
    """Compares one hypothesis with one reference.

    Raises:
        CodeBLEUError: as for :func:`eval.codebleu.codebleu`.
    """
    weights, language = check_weights(weights), find_language(language)
    if mode == "reference":
        return _explain_reference(language, reference, hypothesis, weights)
    if mode == "corrected":
        return _explain_corrected(language, reference, hypothesis, weights)
    raise CodeBLEUError(f"unknown mode {mode!r}; known modes: {', '.join(MODES)}")


@dataclass
class _Side:
    """One text as it is compared."""

    text: str
    tokens: Sequence[str]
    subtrees: Sequence[Hashable]
    spans: Sequence[Span]  # of each subtree
    edges: Sequence[Hashable]
    edge_spans: Sequence[Span]  # each edge in words, and the bytes of its target


def _explain_reference(language: str, reference: str, hypothesis: str, weights: Weights) -> Explanation:
    counts = Scorer(language).count([reference], hypothesis)
    reader = Reader(language, KEYWORDS[language])
    texts = [strip_comments(text.strip(), language) for text in (reference, hypothesis)]
    trees = [reader.parse(text) for text in texts]
    readings = [read_tree(tree, text, reader.numbers) for tree, text in zip(trees, texts)]
    is_numbered = all(reading.is_numbered for reading in readings)
    sides = []
    for whole, text, tree, reading in zip((reference, hypothesis), texts, trees, readings):
        subtrees: Sequence[Hashable] = reading.subtrees
        spans = [(node.kind, node.node.start_byte, node.node.end_byte) for node in reading.inner]
        if not is_numbered:
            subtrees, spans = printed_subtrees(tree.root_node), spans[::-1]
        items = reader.items(tree, reading)
        edge_spans = []
        for number, name, relation, sources in items:
            words = f"{name} {RELATIONS[relation]} {', '.join(sources) or 'nothing'}"
            edge_spans.append((words, reading.tokens[number].start, reading.tokens[number].end))
        sides.append(_Side(text, whole.split(), subtrees, spans, edges_of(items), edge_spans))
    ours, theirs = sides
    known = set(theirs.subtrees)
    missed = [span for span, subtree in zip(ours.spans, ours.subtrees) if subtree not in known]
    known = set(ours.subtrees)
    added = [span for span, subtree in zip(theirs.spans, theirs.subtrees) if subtree not in known]
    score = reference_score(counts, weights)
    return _explanation(language, "reference", score, counts, (ours, theirs), (missed, added), {})


def _explain_corrected(language: str, reference: str, hypothesis: str, weights: Weights) -> Explanation:
    scorer = CorrectedScorer(language)
    counts = scorer.count([reference], hypothesis)
    readings = scorer.read(reference), scorer.read(hypothesis)
    partners = match_variables(*readings)
    sides = []
    for text, reading, names in zip((reference, hypothesis), readings, ({}, partners)):
        edges, edge_spans = [], []
        for number, name, relation, sources in reading.items:
            token = reading.tokens[number]
            for source in sources:
                edges.append((names.get(name, name), relation, names.get(source, source)))
                edge_spans.append((f"{name} {RELATIONS[relation]} {source}", token.start, token.end))
        words = renamed_words(reading, names)
        sides.append(_Side(text, words, reading.subtrees, reading.spans, edges, edge_spans))
    ours, theirs = sides
    missed = _beyond(ours.subtrees, ours.spans, theirs.subtrees)
    added = _beyond(theirs.subtrees, theirs.spans, ours.subtrees)
    score = corrected_score(counts, weights)
    return _explanation(language, "corrected", score, counts, (ours, theirs), (missed, added), partners)


def _beyond(items: Sequence[Hashable], spans: Sequence[Span], others: Iterable[Hashable]) -> list[Span]:
    """Spans of the items that occur more often than in ``others``; of equal items, the last ones."""
    left = Counter(others)
    found = []
    for item, span in zip(items, spans):
        if left[item]:
            left[item] -= 1
        else:
            found.append(span)
    return found


def _explanation(
    language: str,
    mode: Mode,
    score: CodeBLEUScore,
    counts: Counts,
    sides: tuple[_Side, _Side],
    spans: tuple[list[Span], list[Span]],
    partners: dict[str, str],
) -> Explanation:
    ours, theirs = sides
    ngrams = {}
    for order, (meant, said) in enumerate(zip(count_ngrams(ours.tokens), count_ngrams(theirs.tokens)), start=1):
        ngrams[order] = sorted((meant - said).items(), key=lambda item: (-item[1], item[0]))
    subtrees = [_missed(ours.text, *span) for span in sorted(spans[0], key=lambda s: (s[1], -s[2]))]
    added = [_missed(theirs.text, *span) for span in sorted(spans[1], key=lambda s: (s[1], -s[2]))]
    edges = [
        Missed(words, _line(ours.text, start), start, end)
        for words, start, end in _beyond(ours.edges, ours.edge_spans, theirs.edges)
    ]
    grams = tuple(max(0, len(ours.tokens) - order + 1) for order in range(1, ORDERS + 1))
    return Explanation(
        language,
        mode,
        score,
        ours.text,
        theirs.text,
        ngrams,
        subtrees,
        _innermost(subtrees),
        edges,
        _innermost(added),
        (*grams, counts.subtrees, counts.edges),
        partners,
    )


def _line(text: str, start: int) -> int:
    return text.encode()[:start].count(b"\n") + 1


def _missed(text: str, kind: str, start: int, end: int) -> Missed:
    words = " ".join(text.encode()[start:end].decode("utf-8", "replace").split())
    shown = words if len(words) <= MAX_SNIPPET else words[: MAX_SNIPPET - 3] + "..."
    return Missed(f"{kind}: {shown}" if shown else kind, _line(text, start), start, end)


def _innermost(missed: list[Missed]) -> list[Missed]:
    """Those that contain no other one; ``missed`` is in the order of the text, outer ones first."""
    return [
        one
        for i, one in enumerate(missed)
        if i + 1 == len(missed) or missed[i + 1].start >= one.end or missed[i + 1].end > one.end
    ]
