"""Counts of pairs in mode ``reference``, written for clarity: the specification that the C extension agrees with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import NamedTuple

from tree_sitter import Parser, Tree

from eval.codebleu.comments import strip_comments
from eval.codebleu.counts import Counts
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.grammar import STRINGS, depth, load_grammar, parse
from eval.codebleu.ngrams import KEYWORD_WEIGHT, ORDERS, NGrams, count_ngrams, weigh
from eval.codebleu.reference.dataflow import BrokenRuleError, Edge, Item, dataflow_items, edges_of
from eval.codebleu.reference.rules import REFERENCE_RULES
from eval.codebleu.reference.tree import Reading, new_numbers, printed_subtrees, read_tree

MAX_TEXTS = 1024  # texts that are remembered
MAX_NUMBERS = 1_000_000  # distinct subtrees after which everything is forgotten
# The published metric recurses, and gives up the dataflow of deeper trees at Python's default limit of 1,000 calls.
MAX_DEPTH = 992


class Code(NamedTuple):
    """What is compared of a text without comments.

    Attributes:
        text: the text itself.
        subtrees: the number of every subtree.
        is_numbered: whether these numbers can be compared with those of other texts.
        edges: how often each dataflow edge occurs.
    """

    text: str
    subtrees: list[int]
    is_numbered: bool
    edges: Counter[Edge]


class Text(NamedTuple):
    """What is compared of a text: its tokens between whitespace, their n-grams, and its code without comments."""

    tokens: Sequence[str]
    ngrams: NGrams
    code: Code


class Reader:
    """Reads and counts texts of one language."""

    def __init__(self, language: str, keywords: frozenset[str], split: Callable[[str], Sequence[str]] = str.split):
        if language not in REFERENCE_RULES:
            raise CodeBLEUError(f"{language} is not known to mode 'reference'; use mode 'corrected'")
        self.language = language
        self.parser = Parser(load_grammar(language))
        self.rules = REFERENCE_RULES[language]
        self.numbers = new_numbers()
        self._keywords = keywords
        self._split = split
        self._texts: dict[str, Text] = {}

    def forget(self) -> None:
        """Forgets all texts."""
        if self.numbers:
            self._texts.clear()
            self.numbers.clear()

    def read(self, text: str) -> Text:
        """What is compared of a text.

        Raises:
            CodeBLEUError: the text is not valid Unicode.
        """
        if text not in self._texts:
            if len(self._texts) >= MAX_TEXTS:
                self._texts.clear()
            tokens = self._split(text)
            code = self._read_code(strip_comments(text, self.language))
            self._texts[text] = Text(tokens, count_ngrams(tokens), code)
        return self._texts[text]

    def parse(self, text: str) -> Tree:
        """The syntax tree of a text without comments."""
        return parse(self.parser, text)

    def items(self, tree: Tree, reading: Reading) -> list[Item]:
        """The dataflow of a tree; nothing if it is too deep or breaks a rule."""
        if len(reading.inner) >= MAX_DEPTH and depth(tree, STRINGS) > MAX_DEPTH:
            return []
        try:
            return dataflow_items(reading.root, reading.tokens, self.rules)
        except BrokenRuleError:
            return []

    def count(self, references: Sequence[str], hypothesis: str) -> Counts:
        """Counts of one hypothesis against its references.

        Raises:
            CodeBLEUError: a text is not valid Unicode.
        """
        if len(self.numbers) > MAX_NUMBERS:
            self.forget()
        candidate = self.read(hypothesis)
        texts = [self.read(text) for text in references]
        length, lengths = len(candidate.tokens), [len(text.tokens) for text in texts]
        matches, recalled, total = [0] * ORDERS, [0] * ORDERS, [0] * ORDERS
        for order, said in enumerate(candidate.ngrams):
            meant = [text.ngrams[order] for text in texts]
            matches[order] = (said & reduce(or_, meant)).total()
            for ngrams in meant:
                if order == 0:
                    recalled[order] += weigh(said & ngrams, self._keywords)
                    total[order] += max(KEYWORD_WEIGHT, weigh(ngrams, self._keywords))
                else:
                    recalled[order] += (said & ngrams).total()
                    total[order] += max(1, ngrams.total())
        syntax = subtrees = dataflow = edges = 0
        code = candidate.code
        for number, text in enumerate(texts):
            if number:  # published: comments are removed once more for each reference
                code = self._read_code(strip_comments(code.text, self.language))
            subtrees += len(text.code.subtrees)
            syntax += self._matching_subtrees(text.code, code)
            edges += text.code.edges.total()
            dataflow += (text.code.edges & code.edges).total()
        return Counts._make(
            (
                length,
                min(lengths, key=lambda reference: (abs(reference - length), reference)),
                2,  # published: the length of a pair of tokens and weights
                *matches,
                *[max(1, length - order) for order in range(ORDERS)],
                *recalled,
                *total,
                syntax,
                subtrees,
                dataflow,
                edges,
            )
        )

    def _read_code(self, text: str) -> Code:
        tree = self.parse(text)
        reading = read_tree(tree, text, self.numbers)
        return Code(text, reading.subtrees, reading.is_numbered, Counter(edges_of(self.items(tree, reading))))

    def _matching_subtrees(self, reference: Code, candidate: Code) -> int:
        """Subtrees of the reference that the candidate has at all: the published metric does not clip them."""
        if reference.is_numbered and candidate.is_numbered:
            known = set(candidate.subtrees)
            return sum(subtree in known for subtree in reference.subtrees)
        printed = set(printed_subtrees(self.parse(candidate.text).root_node))
        return sum(subtree in printed for subtree in printed_subtrees(self.parse(reference.text).root_node))
