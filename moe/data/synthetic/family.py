"""What a family of tasks is made of: parts, blueprints, and the problems they render to.

A *family* is one kind of task with a grid of semantic parameters (a predicate, a divisor, a direction ...). Its build
function turns one point of that grid into a :class:`Blueprint`: sentences, function bodies in four languages, an
oracle in Python and inputs to call it with. A blueprint and a *surface* (one sentence, one set of nouns) render to a
text and a solution.

In templates ``@word`` stands for a noun of the surface (``@xs``, ``@x``) or for a part applied to a variable; bodies
are written with an indent of four spaces and get their signature, nouns and indentation when rendered.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe.data.synthetic.types import cpp_parameter, cpp_type, java_type, to_json

TASK_LANGUAGES = ("python", "java", "javascript", "cpp")
SPLITS = ("train", "validation", "test")
_HELD_OUT_PERCENT = 8  # of a family's problems, for each of validation and test
_SMALLEST_SPLIT_FAMILY = 8  # families with fewer problems than this are for training only
_PLACEHOLDER = re.compile(r"@([a-z]\w*)")


@dataclass(frozen=True)
class Part:
    """A building block known in all languages: a predicate, a transform, a class of characters ...

    ``text`` is how a sentence says it, ``name`` how a function's name does, ``code`` maps each language to a template
    of an expression in which ``@v`` is the variable, ``apply`` computes the same in the oracle. ``before`` tells
    whether the text goes before its noun ("even numbers") or after it ("numbers above 5"). ``noun`` is the plural of
    what the part computes ("squares") where English has one.
    """

    key: str
    text: str
    name: str
    code: Mapping[str, str] = field(repr=False, hash=False, compare=False)
    apply: Callable[..., Any] = field(repr=False, hash=False, compare=False)
    before: bool = False
    noun: str = ""

    def render(self, language: str, variable: str) -> str:
        return self.code[language].replace("@v", variable)

    def of(self, noun: str) -> str:
        """The noun with this part's text on its proper side: "even numbers", "numbers greater than 5"."""
        return " ".join((self.text, noun) if self.before else (noun, self.text)).strip()

    @property
    def adjective(self) -> str:
        """The text after "is": "even", "at least 8"."""
        return self.text.removeprefix("of ")

    @property
    def plural(self) -> str:
        """The text as a predicate of many: "are even", "start with the letter a"."""
        return self.text.removeprefix("that ") if self.text.startswith("that ") else f"are {self.adjective}"

    @property
    def singular(self) -> str:
        """The text as a predicate of one: "is even", "starts with the letter a"."""
        if not self.text.startswith("that "):
            return f"is {self.adjective}"
        _, verb, rest = self.text.split(" ", 2)
        return f"{verb}s {rest}"

    def naming(self, noun: str) -> str:
        """As :meth:`of` with the words of a function's name."""
        return " ".join((self.name, noun) if self.before else (noun, self.name)).strip()


def same_code(template: str, python: str | None = None) -> dict[str, str]:
    """One expression for all languages: C-like as given, ``===`` in JavaScript, ``python`` where Python differs."""
    javascript = template.replace(" == ", " === ").replace(" != ", " !== ")
    return {"python": python or template, "java": template, "javascript": javascript, "cpp": template}


def c_like(java: str) -> dict[str, str]:
    """Java, JavaScript and C++ bodies from one body in Java whose loops and arithmetic look alike in all three.

    ``const int x`` marks a variable that never changes, ``DIV(a, b)`` the quotient of non-negative whole numbers.
    """
    plain = re.sub(r"DIV\(([^,()]+), ([^,()]+)\)", r"\1 / \2", java)
    javascript = re.sub(r"DIV\(([^,()]+), ([^,()]+)\)", r"Math.floor(\1 / \2)", java)
    javascript = re.sub(r"\bfor \((?:int|String) (@?\w+) : ", r"for (const \1 of ", javascript)
    javascript = re.sub(r"\bconst (?:int|double|boolean|String) (@?\w+) =", r"const \1 =", javascript)
    javascript = re.sub(r"\b(?:int|double|boolean|String) (@?\w+) =", r"let \1 =", javascript)
    javascript = javascript.replace(" == ", " === ").replace(" != ", " !== ")
    cpp = re.sub(r"(?<=[ (])(@?\w+)\+\+(?=[;)])", r"++\1", plain)
    cpp = cpp.replace("boolean ", "bool ").replace("String ", "std::string ").replace("Math.", "std::")
    return {"java": re.sub(r"\bconst (?=int|double|boolean|String)", "", plain), "javascript": javascript, "cpp": cpp}


def grid_like(java: str) -> dict[str, str]:
    """As ``c_like`` for loops over ``@m`` with ``ROWS`` and ``COLS``; translates ``int[][] result = new ...`` too."""
    code = c_like(java)
    sizes = {"java": "length", "javascript": "length", "cpp": "size()"}
    code = {
        key: body.replace("ROWS", f"@m.{sizes[key]}").replace("COLS", f"@m[0].{sizes[key]}")
        for key, body in code.items()
    }
    code["javascript"] = re.sub(
        r"int\[\]\[\] result = new int\[(.*?)\]\[(.*?)\];",
        r"const result = Array.from({ length: \1 }, () => new Array(\2).fill(0));",
        code["javascript"],
    )
    code["cpp"] = re.sub(
        r"int\[\]\[\] result = new int\[(.*?)\]\[(.*?)\];",
        r"std::vector<std::vector<int>> result(\1, std::vector<int>(\2));",
        code["cpp"].replace(".length", ".size()"),
    )
    if "size()" in code["cpp"]:
        code["cpp"] = (
            code["cpp"].replace("for (int i", "for (std::size_t i").replace("for (int j", "for (std::size_t j")
        )
    return code


@dataclass(frozen=True)
class Case:
    """One call: JSON-able arguments (see ``types.to_json``) and the value that the oracle expects."""

    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True)
class Signature:
    """A function's name in one language, its parameters as (name, type), and the type of its result."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    returns: str


@dataclass(frozen=True)
class Blueprint:
    """One problem before its surface is chosen.

    texts: sentences. name: words of the function's name. arguments: ``{name or @noun: type}``. nouns: one dict of
    placeholders per naming variant. parts: ``{placeholder: (part, variable)}``. inputs: tuples of arguments for the
    oracle, which must be a pure function.
    """

    texts: Sequence[str]
    name: str
    arguments: Mapping[str, str]
    returns: str
    nouns: Sequence[Mapping[str, str]]
    code: Mapping[str, str]
    oracle: Callable[..., Any]
    inputs: Sequence[tuple[Any, ...]]
    parts: Mapping[str, tuple[Part, str]] = field(default_factory=dict)

    @property
    def surfaces(self) -> int:
        return len(self.texts) * len(self.nouns)

    def surface(self, index: int) -> tuple[str, Mapping[str, str]]:
        """The sentence template and the nouns of a surface."""
        text, nouns = divmod(index, len(self.nouns))
        return self.texts[text], self.nouns[nouns]

    def text(self, index: int) -> str:
        template, nouns = self.surface(index)
        # "a @x" becomes "an item" where the noun starts with a vowel.
        template = re.sub(r"\b([Aa]) @(\w+)", lambda m: f"{_article(m[1], nouns[m[2]])} @{m[2]}", template)
        return fill(template, nouns)

    def signature(self, language: str, index: int) -> Signature:
        _, nouns = self.surface(index)
        words = re.findall(r"[a-z0-9]+", fill(self.name, nouns).lower())
        name = "_".join(words) if language == "python" else words[0] + "".join(word.capitalize() for word in words[1:])
        parameters = tuple((fill(parameter, nouns), type_) for parameter, type_ in self.arguments.items())
        return Signature(name, parameters, self.returns)

    def solution(self, language: str, index: int) -> str:
        """The source of the function in ``language``."""
        _, nouns = self.surface(index)
        values = dict(nouns)
        for placeholder, (part, variable) in self.parts.items():
            values[placeholder] = fill(part.render(language, variable), nouns)
        lines = textwrap.dedent(self.code[language]).splitlines()
        body = fill("\n".join(line for line in lines if line.strip()), values)
        return _with_signature(language, self.signature(language, index), body)

    def cases(self) -> tuple[Case, ...]:
        types = tuple(self.arguments.values())
        return tuple(
            Case(
                tuple(to_json(argument, type_) for argument, type_ in zip(arguments, types, strict=True)),
                to_json(self.oracle(*arguments), self.returns),
            )
            for arguments in self.inputs
        )


def _article(article: str, noun: str) -> str:
    return f"{article}n" if noun[0] in "aeiou" else article


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replaces each ``@word`` by its value; raises ``KeyError`` for an unknown one."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def _with_signature(language: str, signature: Signature, body: str) -> str:
    names = ", ".join(name for name, _ in signature.parameters)
    if language == "python":
        return f"def {signature.name}({names}):\n{_indented(body)}\n"
    if language == "javascript":
        return f"function {signature.name}({names}) {{\n{_halved(_indented(body))}\n}}\n"
    render = java_type if language == "java" else cpp_parameter
    parameters = ", ".join(f"{render(type_)} {name}" for name, type_ in signature.parameters)
    if language == "java":
        head = f"public static {java_type(signature.returns)}"
    else:
        head = cpp_type(signature.returns)
    if len(head) + len(signature.name) + len(parameters) > 105:
        parameters = "\n    " + parameters.replace(", const", ",\n    const")
    return f"{head} {signature.name}({parameters}) {{\n{_indented(body)}\n}}\n"


def _indented(body: str) -> str:
    return "\n".join(f"    {line}" if line else line for line in body.split("\n"))


def _halved(body: str) -> str:
    """JavaScript's customary indent is two spaces."""
    return re.sub(r"^ +", lambda match: match[0][: len(match[0]) // 2], body, flags=re.M)


@dataclass(frozen=True)
class Family:
    """A kind of task: its grid of semantic parameters and the function that builds a blueprint for one point of it."""

    name: str
    category: str
    grid: Mapping[str, tuple[Any, ...]] = field(repr=False, hash=False, compare=False)
    build: Callable[..., Blueprint] = field(repr=False, hash=False, compare=False)
    allowed: Callable[..., bool] | None = field(default=None, repr=False, hash=False, compare=False)

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point of the grid that is allowed, in a fixed order."""
        for values in itertools.product(*self.grid.values()):
            point = dict(zip(self.grid, values, strict=True))
            if self.allowed is None or self.allowed(**point):
                yield point

    def split_points(self, split: str) -> list[dict[str, Any]]:
        """The points of one split; a stable hash of (family, parameters) decides, whatever seed or language."""
        points = list(self.points())
        if len(points) < _SMALLEST_SPLIT_FAMILY:
            return points if split == "train" else []
        return [point for point in points if self._split_of(point) == split]

    def _split_of(self, point: Mapping[str, Any]) -> str:
        described = f"{self.name}:{describe(point)}"
        bucket = int.from_bytes(hashlib.sha256(described.encode()).digest()[:8], "big") % 100
        if bucket < _HELD_OUT_PERCENT:
            return "validation"
        return "test" if bucket < 2 * _HELD_OUT_PERCENT else "train"


def describe(point: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Semantic parameters as sorted (name, value) strings."""
    return tuple(sorted((name, v.key if isinstance(v, Part) else str(v)) for name, v in point.items()))


def family(
    category: str, allowed: Callable[..., bool] | None = None, **grid: Sequence[Any]
) -> Callable[[Callable[..., Blueprint]], Family]:
    """Decorator: makes a :class:`Family`, named after the function, of a build function and its parameter grid."""

    def decorate(build: Callable[..., Blueprint]) -> Family:
        return Family(build.__name__, category, {name: tuple(values) for name, values in grid.items()}, build, allowed)

    return decorate


def collect(namespace: Mapping[str, Any]) -> tuple[Family, ...]:
    """All families defined in a module, in order."""
    return tuple(value for value in namespace.values() if isinstance(value, Family))


def ask(goals: str | Sequence[str], place: str, given: str, verb: str = "Compute") -> tuple[str, ...]:
    """Sentences that ask for a value; ``~`` in a goal marks where " in the list" goes unless the sentence began so.

    >>> ask("the sum of the even @xs~", place="in a list", given="a list of @xs")[0]
    'Return the sum of the even @xs in a list.'
    """
    sentences = []
    for goal in (goals,) if isinstance(goals, str) else goals:
        placed, bare = goal.replace("~", f" {place}"), goal.replace("~", "")
        sentences += [
            f"Return {placed}.",
            f"Given {given}, return {bare}.",
            f"{verb} {placed}.",
            f"Take {given} and return {bare}.",
        ]
    return tuple(sentences)
