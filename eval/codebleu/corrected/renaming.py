"""Matches the local variables of two texts, so that a renamed variable makes no difference.

Occurrences of variables are compared by the tokens to their left and right, where all variables look alike, and by the
order in which variables are introduced. An equal name counts a little as well. Every variable gets at most one partner.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from eval.codebleu.corrected.tree import CorrectedReading

_ANY = object()  # stands for any local variable
_WIDTHS = ((4, 4), (2, 2), (1, 1))  # tokens on each side, and the score of an equal neighborhood of that size
_SAME_NAME = 1
_SAME_RANK = 1
_MAX_SHARED = 30  # neighborhoods shared by more variables than this are ignored


def _neighborhoods(
    tokens: Sequence[str], variables: Sequence[bool], names: dict[str, None]
) -> dict[tuple, Counter[str]]:
    masked = [_ANY if is_variable and text in names else text for text, is_variable in zip(tokens, variables)]
    found: dict[tuple, Counter[str]] = defaultdict(Counter)
    for i, text in enumerate(masked):
        if text is _ANY:
            for width, weight in _WIDTHS:
                around = (weight, *masked[max(0, i - width) : i], None, *masked[i + 1 : i + 1 + width])
                found[around][tokens[i]] += 1
    return found


def match_variables(reference: CorrectedReading, hypothesis: CorrectedReading) -> dict[str, str]:
    """Local variable of the hypothesis -> its partner in the reference, for those whose names differ."""
    if not reference.locals or not hypothesis.locals:
        return {}
    ours = _neighborhoods(reference.words, reference.variables, reference.locals)
    theirs = _neighborhoods(hypothesis.words, hypothesis.variables, hypothesis.locals)
    alike: Counter[tuple[str, str]] = Counter()
    for around, counts in theirs.items():
        partners = ours.get(around)
        if partners is None or len(partners) > _MAX_SHARED or len(counts) > _MAX_SHARED:
            continue
        for name, count in counts.items():
            for partner, partner_count in partners.items():
                alike[name, partner] += around[0] * min(count, partner_count)
    for name, partner in zip(hypothesis.locals, reference.locals):
        alike[name, partner] += _SAME_RANK
    occurrences = Counter(hypothesis.words)
    for name in hypothesis.locals.keys() & reference.locals.keys():
        alike[name, name] += _SAME_NAME * occurrences[name]
    ranks = {name: rank for rank, name in enumerate(hypothesis.locals)}
    partner_ranks = {name: rank for rank, name in enumerate(reference.locals)}
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    order = sorted(alike, key=lambda two: (-alike[two], two[0] != two[1], ranks[two[0]], partner_ranks[two[1]]))
    for name, partner in order:
        if name not in chosen and partner not in taken:
            chosen[name] = partner
            taken.add(partner)
    return {name: partner for name, partner in chosen.items() if name != partner}
