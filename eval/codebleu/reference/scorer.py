"""Counts pairs in mode ``reference``, by the C extension where it is built and by the Python code where it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from eval.codebleu.comments import strip_comments
from eval.codebleu.counts import Counts
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.keywords import KEYWORDS
from eval.codebleu.reference.native import make_reader
from eval.codebleu.reference.reader import MAX_NUMBERS, MAX_TEXTS, Reader

MAX_IDLE_NUMBERS = 2_000  # distinct subtrees that the extension may keep when the texts are forgotten


class Scorer:
    """Counts pairs of one language; remembers the texts it has read until :meth:`forget`."""

    def __init__(
        self,
        language: str,
        keywords: frozenset[str] | None = None,
        tokenizer: Callable[[str], Sequence[str]] | None = None,
    ):
        keywords = KEYWORDS[language] if keywords is None else keywords
        self.reader = Reader(language, keywords, tokenizer or str.split)
        self.native = None if tokenizer else make_reader(self.reader.parser, language, keywords)
        if self.native is not None:
            self._read = lru_cache(MAX_TEXTS)(self.native.read)

    def count(self, references: Sequence[str], hypothesis: str) -> Counts:
        """Counts of one hypothesis against its references.

        Raises:
            CodeBLEUError: no reference, or a text that is not valid Unicode.
        """
        if not references:
            raise CodeBLEUError("no reference; expected at least one")
        hypothesis = hypothesis.strip()
        references = [text.strip() for text in references]
        found = self.count_native(references, hypothesis)
        return self.reader.count(references, hypothesis) if found is None else found

    def count_native(self, references: Sequence[str], hypothesis: str) -> Counts | None:
        """What :meth:`count` gives for stripped texts; None where the extension leaves a text to Python."""
        if self.native is None:
            return None
        if self.native.size > MAX_NUMBERS:
            self._read.cache_clear()
            self.native.forget()
        candidate = self._read(hypothesis)
        texts = tuple([text for text in map(self._read, references) if text is not None])
        if candidate is None or len(texts) < len(references):
            return None
        if len(texts) > 1 and strip_comments(candidate.code, self.reader.language) != candidate.code:
            return None  # published: comments are removed once more for each reference
        found = self.native.count(texts, candidate)
        return None if found is None else Counts._make(found)

    def forget(self) -> None:
        """Forgets all texts."""
        self.reader.forget()
        if self.native is not None:
            self._read.cache_clear()
            if self.native.size > MAX_IDLE_NUMBERS:
                self.native.forget()
