"""Counts of pairs in mode ``reference``; every text is read once, however many pairs it is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Generic, TypeVar

from tree_sitter import Parser, Tree

from eval.codebleu.comments import strip_comments
from eval.codebleu.counts import Counts
from eval.codebleu.dataflow import Edge, dataflow_edges
from eval.codebleu.dataflow_rules import REFERENCE_RULES
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.instructions import STRINGS
from eval.codebleu.keywords import KEYWORDS
from eval.codebleu.languages import load_grammar
from eval.codebleu.name_order import NameOrder
from eval.codebleu.ngrams import KEYWORD_WEIGHT, NGrams, clipped_overlaps, closest_length, overlaps
from eval.codebleu.tree import Kinds, Numbers, Reading, depth, new_numbers, printed_subtrees, read_tree

REMEMBERED = 2_000_000  # characters of text whose reading is kept
MOST_NUMBERS = 1_000_000  # distinct subtrees after which all is forgotten
# The published metric recurses and gives up the dataflow of deeper trees at Python's default limit of 1,000 calls.
DEEPEST = 992

T = TypeVar("T")


class TextCache(Generic[T]):
    """Remembers what was made of a text; forgets the oldest ones beyond a total length."""

    def __init__(self, capacity: int = REMEMBERED):
        self._capacity = capacity
        self._known: dict[str, T] = {}
        self._length = 0

    def get(self, text: str, make: Callable[[str], T]) -> T:
        """What ``make`` gives for the text."""
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = make(text)
            self._length += len(text)
            while self._length > self._capacity and len(self._known) > 1:
                oldest = next(iter(self._known))
                del self._known[oldest]
                self._length -= len(oldest)
        return found

    def clear(self) -> None:
        """Forgets all."""
        self._known.clear()
        self._length = 0


class Code:
    """What is read from a text without comments."""

    def __init__(self, text: str, tree: Tree, kinds: Kinds, numbers: Numbers, order: NameOrder):
        self.text = text
        self._order = order
        self._reading: Reading | None = read_tree(tree, text, kinds, numbers)
        self.subtrees = self._reading.subtrees
        self.printed = self._reading.printed
        if len(self.subtrees) >= DEEPEST - 2 and depth(tree, STRINGS) > DEEPEST:
            self._reading = None

    @cached_property
    def found(self) -> frozenset[int]:
        """The subtrees that occur."""
        return frozenset(self.subtrees)

    @cached_property
    def edges(self) -> dict[Edge, int]:
        """Dataflow edges and how often each occurs."""
        reading, self._reading = self._reading, None
        return dataflow_edges(reading, self._order) if reading else {}

    @cached_property
    def edge_count(self) -> int:
        """Number of edges."""
        return sum(self.edges.values())


@lru_cache
def _kinds(language: str) -> Kinds:
    return Kinds(language, load_grammar(language), REFERENCE_RULES[language])


class Scorer:
    """Counts pairs of one language in mode ``reference``."""

    def __init__(self, language: str, keywords: frozenset[str] | None = None, tokenizer: Callable | None = None):
        grammar = load_grammar(language)
        if language not in REFERENCE_RULES:
            raise CodeBLEUError(f"{language} is not known to mode 'reference'; use mode 'corrected'")
        self.language = language
        self.rules = REFERENCE_RULES[language]
        self.kinds = _kinds(language)
        self._keywords = KEYWORDS[language] if keywords is None else keywords
        self._split = tokenizer or str.split
        self._parser = Parser(grammar)
        self._ngrams: TextCache[NGrams] = TextCache()
        self._codes: TextCache[Code] = TextCache()
        self._stripped: TextCache[str] = TextCache()
        self.numbers = new_numbers()
        self.order = NameOrder()

    def ngrams(self, text: str) -> NGrams:
        """The n-grams of a text."""
        return self._ngrams.get(text, lambda text: NGrams(self._split(text), self._keywords))

    def code(self, text: str) -> Code:
        """What is read from a text without comments."""
        return self._codes.get(text, lambda text: Code(text, self.parse(text), self.kinds, self.numbers, self.order))

    def strip(self, text: str) -> str:
        """The text without comments."""
        return self._stripped.get(text, lambda text: strip_comments(text, self.language))

    def parse(self, text: str) -> Tree:
        """The syntax tree of ``text``."""
        try:
            return self._parser.parse(text.encode())
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise CodeBLEUError(f"a text has the lone surrogate U+{code:04X}, which is no valid Unicode") from None

    def count(self, references: Sequence[str], hypothesis: str) -> Counts:
        """Counts of one hypothesis against its references.

        Raises:
            CodeBLEUError: no reference, or a text that is not valid Unicode.
        """
        if not references:
            raise CodeBLEUError("no reference; expected at least one")
        if len(self.numbers) > MOST_NUMBERS:
            self._codes.clear()
            self.numbers, self.order = new_numbers(), NameOrder()
        references, hypothesis = [text.strip() for text in references], hypothesis.strip()
        said = self.ngrams(hypothesis)
        meant = [self.ngrams(text) for text in references]
        pairs = [overlaps(ngrams, said) for ngrams in meant]
        matches = pairs[0][0] if len(meant) == 1 else clipped_overlaps(meant, said)
        weighted = [sum(mass for _, mass in pairs), *(sum(found[n] for found, _ in pairs) for n in (1, 2, 3))]
        totals = [
            sum(max(KEYWORD_WEIGHT, ngrams.mass) for ngrams in meant),
            *(sum(ngrams.total(order) for ngrams in meant) for order in (2, 3, 4)),
        ]
        syntax = subtrees = dataflow = edges = 0
        for text in references:
            hypothesis = self.strip(hypothesis)  # once more for each reference, as published
            reference, candidate = self.code(self.strip(text)), self.code(hypothesis)
            subtrees += len(reference.subtrees)
            syntax += self._syntax_matches(reference, candidate)
            if reference.edge_count:
                edges += reference.edge_count
                dataflow += shared_edges(reference.edges, candidate.edges)
        return Counts(
            said.length,
            closest_length([ngrams.length for ngrams in meant], said.length),
            2,  # published: the length of a pair of tokens and weights
            *matches,
            *(said.total(order) for order in (1, 2, 3, 4)),
            *weighted,
            *totals,
            syntax,
            subtrees,
            dataflow,
            edges,
        )

    def _syntax_matches(self, reference: Code, candidate: Code) -> int:
        if not (reference.printed or candidate.printed):
            return sum(map(candidate.found.__contains__, reference.subtrees))
        known = set(printed_subtrees(self.parse(candidate.text).root_node))
        return sum(printed in known for printed in printed_subtrees(self.parse(reference.text).root_node))


def shared_edges(reference: dict[Edge, int], hypothesis: dict[Edge, int]) -> int:
    """Size of the multiset intersection."""
    return sum([min(reference[edge], hypothesis[edge]) for edge in reference.keys() & hypothesis.keys()])
