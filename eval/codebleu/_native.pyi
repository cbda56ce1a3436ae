# The extension module that setup.py builds from csrc/.

from collections.abc import Callable, Sequence
from typing import Any

from tree_sitter import Node, Tree

VERSION: int
SOURCES: str

class Reading:
    """What is read from one text; it is valid until its reader forgets."""

    code: str
    subtrees: tuple[int, ...]
    edges: tuple[int, ...]
    words: tuple[int, ...]
    odd: bool

class Reader:
    """Reads and counts texts of one language."""

    size: int

    def __init__(
        self,
        spec: tuple[Any, ...],
        keywords: tuple[str, ...],
        parse: Callable[[bytes], Tree],
        strip: Callable[[str], str],
        padded: Callable[[str], str],
        count_missing: Callable[[Tree], int],
        is_printable: Callable[[Tree], bool],
        print_leaf: Callable[[Node, bool, str], str],
        /,
    ) -> None: ...
    def read(self, text: str, /) -> Reading | None: ...
    def count(self, references: tuple[Reading, ...], hypothesis: Reading, /) -> tuple[int, ...] | None: ...
    def forget(self) -> None: ...
    def list_set(self, names: list[str], /) -> Sequence[str]: ...
