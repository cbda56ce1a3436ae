"""CodeBLEU of one pair and of a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from tree_sitter import Node, Parser

from eval.codebleu import ngrams
from eval.codebleu.comments import strip_comments
from eval.codebleu.dataflow import dataflow_edges
from eval.codebleu.dataflow_rules import REFERENCE_RULES
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.keywords import KEYWORDS
from eval.codebleu.languages import load_grammar

Weights = tuple[float, float, float, float]
Mode = Literal["reference", "corrected"]
EQUAL_WEIGHTS: Weights = (0.25, 0.25, 0.25, 0.25)


@dataclass(frozen=True)
class CodeBLEUScore:
    """The score and its four parts, each from 0 to 1."""

    codebleu: float
    ngram_match_score: float
    weighted_ngram_match_score: float
    syntax_match_score: float
    dataflow_match_score: float

    def as_dict(self) -> dict[str, float]:
        """The scores under the names of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def subtree_keys(root: Node) -> list[str]:
    keys, stack = [], [root]
    while stack:
        node = stack.pop()
        keys.append(str(node))
        stack.extend(child for child in node.children if child.child_count)
    return keys


def codebleu(
    references: Sequence[Sequence[str] | str],
    hypotheses: Sequence[str],
    language: str,
    weights: Weights = EQUAL_WEIGHTS,
    mode: Mode = "reference",
) -> CodeBLEUScore:
    """Corpus score of ``hypotheses``, each against its one or more ``references``.

    Raises:
        CodeBLEUError: unknown language or mode, lists of unequal length, no pair, a pair without a reference, text
            with a lone surrogate, or weights that are not four numbers which sum to 1.
    """
    if mode != "reference":
        raise CodeBLEUError(f"mode {mode!r} is not known; known modes: 'reference'")
    if len(references) != len(hypotheses) or not hypotheses:
        raise CodeBLEUError(
            f"{len(references)} lists of references for {len(hypotheses)} hypotheses; expected as many, at least 1"
        )
    if len(weights) != 4 or min(weights) < 0 or (any(weights) and abs(sum(weights) - 1) > 1e-6):
        raise CodeBLEUError(f"weights {weights} are not four numbers from 0 to 1 that sum to 1")
    parser, rules, keywords = Parser(load_grammar(language)), REFERENCE_RULES[language], KEYWORDS[language]
    matches, totals, hyp_length, ref_length = [0] * 4, [0] * 4, 0, 0
    w_matches, w_totals = [0] * 4, [0] * 4
    syntax = [0, 0]
    flow = [0, 0]
    for refs, hyp in zip(references, hypotheses):
        refs = [refs] if isinstance(refs, str) else refs
        if not refs:
            raise CodeBLEUError("a pair has no reference; expected at least one")
        refs, hyp = [r.strip() for r in refs], hyp.strip()
        ref_tokens, hyp_tokens = [r.split() for r in refs], hyp.split()
        ref_grams, hyp_grams = [ngrams.count_ngrams(t) for t in ref_tokens], ngrams.count_ngrams(hyp_tokens)
        hyp_length += len(hyp_tokens)
        ref_length += ngrams.closest_length([len(t) for t in ref_tokens], len(hyp_tokens))
        for n in range(4):
            matches[n] += ngrams.clipped_matches(hyp_grams[n], [g[n] for g in ref_grams])
            totals[n] += max(1, len(hyp_tokens) - n)
            for grams, tokens in zip(ref_grams, ref_tokens):
                if n:
                    w_matches[n] += ngrams.overlap(grams[n], hyp_grams[n])
                    w_totals[n] += max(1, len(tokens) - n)
                else:
                    w_matches[0] += ngrams.keyword_mass(grams[0] & hyp_grams[0], keywords)
                    w_totals[0] += max(5, ngrams.keyword_mass(grams[0], keywords))
        for ref in refs:
            hyp, ref = strip_comments(hyp, language), strip_comments(ref, language)
            try:
                hyp_root = parser.parse(hyp.encode()).root_node
                ref_root = parser.parse(ref.encode()).root_node
            except UnicodeEncodeError as error:
                raise CodeBLEUError(
                    f"text has a lone surrogate at character {error.start}, which is not valid Unicode"
                ) from None
            found = set(subtree_keys(hyp_root))
            keys = subtree_keys(ref_root)
            syntax[0] += sum(key in found for key in keys)
            syntax[1] += len(keys)
            ref_edges: Counter = dataflow_edges(ref_root, ref, rules)
            flow[0] += ngrams.overlap(ref_edges, dataflow_edges(hyp_root, hyp, rules))
            flow[1] += ref_edges.total()
    ngram = ngrams.geometric_mean(matches, totals) * ngrams.brevity_penalty(ref_length, hyp_length)
    w_matches[0] /= 5
    w_totals[0] /= 5
    weighted = ngrams.geometric_mean(w_matches, w_totals) * ngrams.brevity_penalty(2 * len(hypotheses), hyp_length)
    syntax_score = syntax[0] / syntax[1]
    flow_score = flow[0] / flow[1] if flow[1] else 0.0
    a, b, c, d = weights
    return CodeBLEUScore(
        a * ngram + b * weighted + c * syntax_score + d * (flow_score or 1.0), ngram, weighted, syntax_score, flow_score
    )
