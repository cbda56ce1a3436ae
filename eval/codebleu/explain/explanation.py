"""Why a score is what it is: what of the reference the hypothesis lacks, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from tree_sitter import Node, Tree

from eval.codebleu.corrected.renaming import match_variables
from eval.codebleu.corrected.scorer import CorrectedScorer, corrected_score, renamed_edges, renamed_tokens
from eval.codebleu.counts import EQUAL_WEIGHTS, CodeBLEUScore, Counts, Weights, check_weights, reference_score
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.languages import find_language
from eval.codebleu.ngrams import ORDERS
from eval.codebleu.reference.dataflow import RELATIONS, BrokenRule, Dataflow, Edge, edges_of
from eval.codebleu.reference.instructions import STRINGS
from eval.codebleu.reference.scorer import DEEPEST, Scorer
from eval.codebleu.reference.tree import depth, padded, printed_subtrees, read_tree
from eval.codebleu.score import MODES, Mode

SNIPPET = 60  # characters shown of the text of a subtree


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
        ngrams: order -> (n-gram, how often it is missed), the most often missed first.
        subtrees: subtrees of the reference that the hypothesis lacks, in the order of the text.
        innermost: those of them that hold no other one.
        edges: dataflow edges that it lacks.
        added: subtrees of the hypothesis that the reference lacks and that hold no other such one.
        totals: what there was to find: n-grams of order 1 to 4, subtrees, edges.
        partners: in mode ``corrected``, renamed variables of the hypothesis and their names in the reference.
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
        return _explain_reference(Scorer(language), reference, hypothesis, weights)
    if mode == "corrected":
        return _explain_corrected(CorrectedScorer(language), language, reference, hypothesis, weights)
    raise CodeBLEUError(f"unknown mode {mode!r}; known modes: {', '.join(MODES)}")


@dataclass
class _Side:
    """One text as it is compared."""

    text: str
    tokens: Sequence[str]
    subtrees: Sequence[Hashable]
    places: Sequence[tuple[str, int, int]]  # kind and bytes of each subtree
    edges: Sequence[Hashable]
    edge_places: Sequence[tuple[str, int, int]]  # edge in words and bytes of its target


def _explain_reference(scorer: Scorer, reference: str, hypothesis: str, weights: Weights) -> Explanation:
    counts = scorer.count([reference], hypothesis)
    ours, theirs = (_reference_side(scorer, text.strip()) for text in (reference, hypothesis))
    if scorer.code(ours.text).printed or scorer.code(theirs.text).printed:
        for side in (ours, theirs):
            side.subtrees = printed_subtrees(scorer.parse(side.text).root_node)
            side.places = [(n.type, n.start_byte, n.end_byte) for n in _inner_nodes(scorer.parse(side.text), True)]
    known = set(theirs.subtrees)
    missed = [place for place, subtree in zip(ours.places, ours.subtrees) if subtree not in known]
    known = set(ours.subtrees)
    added = [place for place, subtree in zip(theirs.places, theirs.subtrees) if subtree not in known]
    score = reference_score(counts, weights)
    return _explanation(scorer.language, "reference", score, counts, (ours, theirs), (missed, added), {})


def _reference_side(scorer: Scorer, text: str) -> _Side:
    code = scorer.strip(text)
    tree = scorer.parse(code)
    reading = read_tree(tree, code, scorer.kinds, scorer.numbers)
    flow = Dataflow(reading, scorer.order)
    items: list = []
    try:
        if depth(tree, STRINGS) <= DEEPEST:
            flow.run()
            items = flow.items()
    except BrokenRule:
        pass
    places = _variable_places(tree, code)
    edges: list[Edge] = edges_of(items)
    edge_places = []
    for token, name, relation, sources in items:
        words = f"{name} {RELATIONS[relation]} {', '.join(sources) or 'nothing'}"
        edge_places.append((words, *(places[token] if len(places) == len(reading.names) else (0, 0))))
    nodes = [(node.type, node.start_byte, node.end_byte) for node in _inner_nodes(tree, False)]
    return _Side(code, scorer.text(text).ngrams.tokens, reading.subtrees, nodes, edges, edge_places)


def _inner_nodes(tree: Tree, before: bool) -> list[Node]:
    """The root and all nodes with children: children before parents, or ``before`` as ``printed_subtrees`` has them."""
    found, stack = [], [tree.root_node]
    while stack:
        node = stack.pop()
        found.append(node)
        inner = [child for child in node.children if child.child_count]
        stack.extend(inner)
    return found if before else found[::-1]


def _variable_places(tree: Tree, text: str) -> list[tuple[int, int]]:
    source = text if text.isascii() else padded(text)
    places, stack = [], [tree.root_node]
    while stack:
        node = stack.pop()
        kind = node.type
        if kind != "comment" and (not node.child_count or kind in STRINGS):
            if source[node.start_byte : node.end_byte].replace("\n", "") != kind:
                places.append((node.start_byte, node.end_byte))
        else:
            stack.extend(reversed(node.children))
    return places


def _explain_corrected(
    scorer: CorrectedScorer, language: str, reference: str, hypothesis: str, weights: Weights
) -> Explanation:
    counts = scorer.count([reference], hypothesis)
    codes = scorer.read(reference), scorer.read(hypothesis)
    partners = match_variables(codes[0].reading, codes[1].reading)
    sides = []
    for text, code, names in ((reference, codes[0], {}), (hypothesis, codes[1], partners)):
        reading = code.reading
        edges, edge_places = [], []
        for token, name, relation, source in code.placed_edges:
            edges.append(next(iter(renamed_edges(Counter([(name, relation, source)]), names))))
            edge_places.append((f"{name} {RELATIONS[relation]} {source}", *reading.name_places[token]))
        places = [(kind, *place) for kind, place in zip(reading.kinds, reading.places)]
        sides.append(_Side(text, renamed_tokens(reading, names), reading.subtrees, places, edges, edge_places))
    ours, theirs = sides
    missed = _beyond(ours.subtrees, ours.places, theirs.subtrees)
    added = _beyond(theirs.subtrees, theirs.places, ours.subtrees)
    score = corrected_score(counts, weights)
    return _explanation(language, "corrected", score, counts, (ours, theirs), (missed, added), partners)


def _beyond(items: Sequence[Hashable], places: Sequence[tuple], others: Iterable[Hashable]) -> list[tuple]:
    """Places of the items that occur more often than among ``others``; of equal ones the last."""
    left = Counter(others)
    found = []
    for item, place in zip(items, places):
        if left[item]:
            left[item] -= 1
        else:
            found.append(place)
    return found


def _explanation(
    language: str,
    mode: Mode,
    score: CodeBLEUScore,
    counts: Counts,
    sides: tuple[_Side, _Side],
    spans: tuple[list[tuple], list[tuple]],
    partners: dict[str, str],
) -> Explanation:
    ours, theirs = sides
    ngrams = {}
    for order in range(1, ORDERS + 1):
        meant, said = (Counter(zip(*[side.tokens[i:] for i in range(order)])) for side in sides)
        ngrams[order] = sorted((meant - said).items(), key=lambda item: (-item[1], item[0]))
    subtrees = [_missed(ours.text, *place) for place in sorted(spans[0], key=lambda p: (p[1], -p[2]))]
    added = [_missed(theirs.text, *place) for place in sorted(spans[1], key=lambda p: (p[1], -p[2]))]
    edges = [
        Missed(words, _line(ours.text, start), start, end)
        for words, start, end in _beyond(ours.edges, ours.edge_places, theirs.edges)
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
    shown = words if len(words) <= SNIPPET else words[: SNIPPET - 3] + "..."
    return Missed(f"{kind}: {shown}" if shown else kind, _line(text, start), start, end)


def _innermost(missed: list[Missed]) -> list[Missed]:
    """Those that hold no other one; ``missed`` is in the order of the text, outer ones first."""
    return [
        one
        for i, one in enumerate(missed)
        if i + 1 == len(missed) or missed[i + 1].start >= one.end or missed[i + 1].end > one.end
    ]
