"""Mode ``corrected``: CodeBLEU as its paper describes it, with the faults that users reported fixed.

1. **No dataflow is not perfect dataflow.** A part that the references lack (no edge, no token) is left out, and the
   other weights are scaled to sum to 1; a true mismatch counts 0. (Published: 0 counts as 1.)
2. **The weighted n-gram match is a precision** like BLEU's, in which keywords weigh five times as much, and its brevity
   penalty compares actual lengths. (Published: a recall whose references all have length 2.)
3. **Short code can be perfect.** N-gram orders longer than the code are left out, so identical texts score 1.
   (Published: they count as 0 of 1; ``x = 1`` against itself scores 0.76.)
4. **The best of several references counts.** (Published: the weighted, syntax and dataflow parts sum over all of them,
   so another reference lowers the score.)
5. **Subtrees match one to one**, so a statement written once matches once. (Published: membership, so one statement
   matches four equal ones.)
6. **Operators count**: ``a + b`` and ``a - b`` are different subtrees, as are declarations with and without ``static``.
7. **Comments and docstrings are found in the parse tree**, for all four parts and in all languages, so nothing within a
   literal is mistaken for a comment. (Published: by regular expressions; not in Ruby, not in the n-gram parts.)
8. **Tokens come from the parse tree**, so ``a+b`` and ``a + b`` are equal. (Published: split at whitespace.)
9. **Positions are bytes throughout**, so names are correct after a non-ASCII character.
10. **Every language has dataflow rules for its own grammar**: C and C++ no longer use those of C#, JavaScript has plain
    assignment, Go ``:=``, Rust ``let``, Python ``:=``, ``as`` and tuples, and ``x += y`` also takes its value from
    ``x``. A node that lacks a part is read without its rule. (Published: one such node, and the text has no dataflow.)
11. **Edges are compared by name**, once renamed local variables are matched by their context. So one more variable does
    not rename all that follow, and the order in which a set lists its elements does not matter. A renamed local
    variable makes no difference in any part; a wrong one does.
12. **TypeScript** can be scored.

The parts remain those of the paper (Ren et al. 2020), and so do the weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tree_sitter import Parser

from eval.codebleu.corrected.renaming import match_variables
from eval.codebleu.corrected.tree import CorrectedReading, NamedEdge, read_corrected
from eval.codebleu.counts import EQUAL_WEIGHTS, CodeBLEUScore, Counts, Weights, check_weights
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.grammar import load_grammar, parse
from eval.codebleu.keywords import KEYWORDS
from eval.codebleu.ngrams import ORDERS, brevity_penalty, count_ngrams, geometric_mean, shared_ngrams, weigh
from eval.codebleu.reference.reader import MAX_NUMBERS, MAX_TEXTS
from eval.codebleu.reference.tree import new_numbers


class CorrectedScorer:
    """Counts pairs of one language in mode ``corrected``."""

    def __init__(self, language: str):
        self.language = language
        self._parser = Parser(load_grammar(language))
        self._keywords = KEYWORDS[language]
        self._numbers = new_numbers()
        self._texts: dict[str, CorrectedReading] = {}

    def read(self, text: str) -> CorrectedReading:
        """What is compared of a text.

        Raises:
            CodeBLEUError: the text is not valid Unicode.
        """
        if text not in self._texts:
            if len(self._texts) >= MAX_TEXTS:
                self._texts.clear()
            tree = parse(self._parser, text)
            self._texts[text] = read_corrected(tree, text.encode(), self.language, self._numbers)
        return self._texts[text]

    def count(self, references: Sequence[str], hypothesis: str) -> Counts:
        """Counts of one hypothesis against the reference that it matches best.

        Raises:
            CodeBLEUError: no reference, or a text that is not valid Unicode.
        """
        if not references:
            raise CodeBLEUError("no reference; expected at least one")
        if len(self._numbers) > MAX_NUMBERS:
            self.forget()
        candidate = self.read(hypothesis)
        counts = [self._count(self.read(text), candidate) for text in references]
        return max(counts, key=lambda found: corrected_score(found, EQUAL_WEIGHTS).codebleu)

    def forget(self) -> None:
        """Forgets all texts."""
        self._texts.clear()
        self._numbers.clear()

    def _count(self, reference: CorrectedReading, candidate: CorrectedReading) -> Counts:
        partners = match_variables(reference, candidate)
        meant, said = reference.words, renamed_words(candidate, partners)
        edges = renamed_edges(candidate.edges, partners)
        ngrams = count_ngrams(said)
        shared = shared_ngrams(count_ngrams(meant), ngrams)
        matches, totals = ([order.total() for order in counts] for counts in (shared, ngrams))
        return Counts._make(
            (
                len(said),
                len(meant),
                len(meant),
                *matches,
                *totals,
                weigh(shared[0], self._keywords),
                *matches[1:],
                weigh(ngrams[0], self._keywords),
                *totals[1:],
                (reference.subtree_counts & candidate.subtree_counts).total(),
                len(reference.subtrees) if meant else 0,
                (reference.edges & edges).total(),
                reference.edges.total(),
            )
        )


def renamed_words(reading: CorrectedReading, partners: dict[str, str]) -> list[str]:
    """The words, with local variables renamed to their partners."""
    if not partners:
        return reading.words
    pairs = zip(reading.words, reading.variables)
    return [partners.get(text, text) if is_variable else text for text, is_variable in pairs]


def renamed_edges(edges: Counter[NamedEdge], partners: dict[str, str]) -> Counter[NamedEdge]:
    """The edges, with local variables renamed to their partners."""
    if not partners:
        return edges
    renamed: Counter[NamedEdge] = Counter()
    for (name, relation, source), count in edges.items():
        renamed[partners.get(name, name), relation, partners.get(source, source)] += count
    return renamed


def corrected_score(counts: Counts, weights: Weights) -> CodeBLEUScore:
    """The score of mode ``corrected``; parts that the references lack do not count.

    Raises:
        CodeBLEUError: the weights do not sum to 1.
    """
    weights = check_weights(weights)
    if not any(weights):
        raise CodeBLEUError(f"weights {weights!r} sum to 0; mode 'corrected' needs weights that sum to 1")
    penalty = brevity_penalty(counts.reference_length, counts.hypothesis_length)
    ngrams = [counts[i : i + ORDERS] for i in range(3, 3 + 4 * ORDERS, ORDERS)]
    parts = [penalty * _mean(matches, totals) for matches, totals in (ngrams[:2], ngrams[2:])]
    parts.append(counts.syntax_matches / counts.subtrees if counts.subtrees else 0.0)
    parts.append(counts.dataflow_matches / counts.edges if counts.edges else 0.0)
    known = [counts.reference_length > 0] * 2 + [counts.subtrees > 0, counts.edges > 0]
    if not any(known):  # the references have no code
        return CodeBLEUScore(float(counts.hypothesis_length == 0), *parts)
    mass = sum(weight for weight, is_known in zip(weights, known) if is_known)
    used = weights if mass else [1.0] * 4  # all weight is on parts that do not count
    mass = mass or float(sum(known))
    total = sum(weight * part for weight, part, is_known in zip(used, parts, known) if is_known)
    return CodeBLEUScore(min(1.0, total / mass), *parts)


def _mean(matches: Sequence[int], totals: Sequence[int]) -> float:
    orders = [order for order in range(ORDERS) if totals[order]]
    if not orders:
        return 0.0
    return geometric_mean([matches[i] for i in orders], [totals[i] for i in orders])
