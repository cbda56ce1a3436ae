"""Counts of pairs in mode ``reference``; every text is read once, however many pairs it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from tree_sitter import Parser, Tree

from eval.codebleu.comments import strip_comments
from eval.codebleu.counts import Counts
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.keywords import KEYWORDS
from eval.codebleu.languages import load_grammar
from eval.codebleu.ngrams import KEYWORD_WEIGHT, NGrams, clipped_overlaps, closest_length, overlaps
from eval.codebleu.reference.dataflow import Edge, dataflow_edges
from eval.codebleu.reference.instructions import STRINGS
from eval.codebleu.reference.name_order import NameOrder
from eval.codebleu.reference.native import make_reader, native_module
from eval.codebleu.reference.rules import REFERENCE_RULES
from eval.codebleu.reference.tree import Kinds, Numbers, Reading, depth, new_numbers, printed_subtrees, read_tree

REMEMBERED = 2_000_000  # characters of text whose reading is kept
MOST_PREPARED = 200_000  # characters of text that are read together
MOST_NUMBERS = 1_000_000  # distinct subtrees after which all is forgotten
FEW_NUMBERS = 2_000  # distinct subtrees that may stay known when the texts are forgotten
# The published metric recurses and gives up the dataflow of deeper trees at Python's default limit of 1,000 calls.
DEEPEST = 992

T = TypeVar("T")


class TextCache(Generic[T]):
    """Remembers what was made of a text; forgets the oldest ones beyond a total length."""

    def __init__(self, capacity: int = REMEMBERED):
        self._capacity = capacity
        self._known: dict[str, T] = {}
        self._length = 0

    def __contains__(self, text: str) -> bool:
        return text in self._known

    def get(self, text: str, make: Callable[[str], T]) -> T:
        """What ``make`` gives for the text; None is not remembered."""
        found = self._known.get(text)
        if found is None:
            found = make(text)
            if found is None:
                return found
            self._known[text] = found
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

    __slots__ = ("_edges", "_order", "_reading", "found", "printed", "subtrees", "text")

    def __init__(self, text: str, tree: Tree, kinds: Kinds, numbers: Numbers, order: NameOrder):
        self.text = text
        self._order = order
        self._reading: Reading | None = read_tree(tree, text, kinds, numbers)
        self._edges: dict[Edge, int] | None = None
        self.subtrees = self._reading.subtrees
        self.found = frozenset(self.subtrees)
        self.printed = self._reading.printed
        if len(self.subtrees) >= DEEPEST - 2 and depth(tree, STRINGS) > DEEPEST:
            self._reading = None

    def edges(self) -> dict[Edge, int]:
        """Dataflow edges and how often each occurs; found when they are first asked for."""
        if self._edges is None:
            reading, self._reading = self._reading, None
            self._edges = dataflow_edges(reading, self._order) if reading else {}
        return self._edges


class Text(NamedTuple):
    """A text with what its n-grams are and what is read from it without comments."""

    ngrams: NGrams
    code: Code


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
        native = None if tokenizer else native_module()
        self._reader = native and make_reader(native, self.kinds, language, self._keywords, self._parser)
        self._readings: TextCache[Any] = TextCache()  # what the reader makes of a text
        self._texts: TextCache[Text] = TextCache()
        self._codes: TextCache[Code] = TextCache()
        self.numbers = new_numbers()
        self.order = NameOrder()

    def prepare(self, pairs: Iterable[tuple[Sequence[str], str]]) -> None:
        """Reads the texts of the pairs (references, hypothesis) that are counted next, one step at a time for all.

        It only saves time: the parser's tables and the interpreter need the processor's cache in turns, and fewer
        turns are faster. Text that is not ASCII is left to :meth:`count`, which says so if it cannot be read.
        """
        if self._reader is not None:
            return  # fast enough one after the other
        ready: list[tuple[list[str], str]] = []
        codes: dict[str, str] = {}  # text -> text without comments
        length = 0
        for references, hypothesis in pairs:
            texts = [text.strip() for text in (*references, hypothesis)]
            if length > MOST_PREPARED or not all([text.isascii() for text in texts]):
                continue
            ready.append((texts[:-1], texts[-1]))
            for text in texts:
                if text not in codes and text not in self._texts:
                    codes[text] = self.strip(text)
                    length += len(text)
        trees = {code: self.parse(code) for code in codes.values() if code not in self._codes}
        for code, tree in trees.items():
            self._codes.get(code, lambda code: Code(code, tree, self.kinds, self.numbers, self.order))  # noqa: B023
        for text, code in codes.items():
            self._texts.get(text, lambda text: self._text(text, code))  # noqa: B023
        for texts, hypothesis in ready:
            if any([self.text(text).code.edges() for text in texts]):
                self.text(hypothesis).code.edges()

    def text(self, text: str) -> Text:
        """A text and all that is counted in it."""
        return self._texts.get(text, self._read)

    def code(self, text: str) -> Code:
        """What is read from a text without comments."""
        return self._codes.get(text, self._read_code)

    def strip(self, text: str) -> str:
        """The text without comments."""
        return strip_comments(text, self.language)

    def _read(self, text: str) -> Text:
        return self._text(text, self.strip(text))

    def _text(self, text: str, code: str) -> Text:
        return Text(NGrams(self._split(text), self._keywords), self.code(code))

    def _read_code(self, text: str) -> Code:
        return Code(text, self.parse(text), self.kinds, self.numbers, self.order)

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
        if self._reader is not None:
            found = self._count_native(references, hypothesis)
            if found is not None:
                return found
        if len(self.numbers) > MOST_NUMBERS:
            self.forget()
        said, candidate = self.text(hypothesis.strip())
        texts = [self.text(text.strip()) for text in references]
        meant = [ngrams for ngrams, _ in texts]
        pairs = [overlaps(ngrams, said) for ngrams in meant]
        matches = pairs[0][0] if len(meant) == 1 else clipped_overlaps(meant, said)
        syntax = subtrees = dataflow = edges = 0
        for number, (_, reference) in enumerate(texts):
            if number:  # published: comments are removed once more for each reference
                candidate = self.code(self.strip(candidate.text))
            subtrees += len(reference.subtrees)
            syntax += self._syntax_matches(reference, candidate)
            if wanted := reference.edges():
                edges += sum(wanted.values())
                dataflow += shared_edges(wanted, candidate.edges())
        return Counts(
            said.length,
            closest_length([ngrams.length for ngrams in meant], said.length),
            2,  # published: the length of a pair of tokens and weights
            *matches,
            *said.totals,
            sum([mass for _, mass in pairs]),
            *[sum([found[order] for found, _ in pairs]) for order in (1, 2, 3)],
            sum([max(KEYWORD_WEIGHT, ngrams.mass) for ngrams in meant]),
            *[sum([ngrams.totals[order] for ngrams in meant]) for order in (1, 2, 3)],
            syntax,
            subtrees,
            dataflow,
            edges,
        )

    def _count_native(self, references: Sequence[str], hypothesis: str) -> Counts | None:
        """What :meth:`count` gives; None where a text is left to Python."""
        reader = self._reader
        if reader.size > MOST_NUMBERS:
            self._readings.clear()
            reader.forget()
        get, read = self._readings.get, reader.read
        candidate = get(hypothesis.strip(), read)
        texts = tuple([get(text.strip(), read) for text in references])
        if candidate is None or None in texts:
            return None
        if len(texts) > 1 and self.strip(candidate.code) != candidate.code:
            return None  # published: comments are removed once more for each reference
        found = reader.count(texts, candidate)
        return None if found is None else Counts._make(found)

    def forget(self) -> None:
        """Forgets all texts."""
        if len(self.numbers):
            self._texts.clear()
            self._codes.clear()
            self.numbers, self.order = new_numbers(), NameOrder()
        if self._reader is not None:
            self._readings.clear()
            if self._reader.size > FEW_NUMBERS:
                self._reader.forget()

    def _syntax_matches(self, reference: Code, candidate: Code) -> int:
        if not (reference.printed or candidate.printed):
            return sum(map(candidate.found.__contains__, reference.subtrees))
        known = set(printed_subtrees(self.parse(candidate.text).root_node))
        return sum(printed in known for printed in printed_subtrees(self.parse(reference.text).root_node))


def shared_edges(reference: dict[Edge, int], hypothesis: dict[Edge, int]) -> int:
    """Size of the multiset intersection."""
    return sum([min(reference[edge], hypothesis[edge]) for edge in reference.keys() & hypothesis.keys()])
