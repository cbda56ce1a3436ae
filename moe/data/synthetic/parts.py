"""Predicates, transforms and nouns that many families share, each written for all four languages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from moe.data.synthetic.family import Part, same_code

# How the oracles reduce a list, by the goal's name.
AGGREGATES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("sum", "sums"), sum),
    **dict.fromkeys(("count", "number"), len),
    **dict.fromkeys(("largest", "max", "maximum", "maxima"), max),
    **dict.fromkeys(("smallest", "min", "minima"), min),
    "product": math.prod,
    "list": list,
}
PAIRWISE: Mapping[str, Callable[[int, int], int]] = {
    "sum": lambda x, y: x + y,
    "difference": lambda x, y: x - y,
    "product": lambda x, y: x * y,
    "larger": max,
    "smaller": min,
}

# --- nouns: ``xs`` and ``x`` for lists, one name for scalars ------------------------------------------------------

NUMBERS = ({"xs": "numbers", "x": "number"}, {"xs": "values", "x": "value"}, {"xs": "scores", "x": "score"})
WORDS = ({"xs": "words", "x": "word"}, {"xs": "names", "x": "name"}, {"xs": "lines", "x": "line"})
NUMBER = ({"x": "number"}, {"x": "value"})
COUNT = ({"n": "n"}, {"n": "limit"})
TEXT = ({"s": "text"}, {"s": "word"}, {"s": "line"})
SENTENCE = ({"s": "sentence", "x": "word"}, {"s": "text", "x": "word"})
MATRIX = ({"m": "matrix"}, {"m": "grid"})
STOCK = (  # a map from strings to whole numbers: the map, its key and value, and the plurals of both
    {"m": "scores", "k": "name", "v": "score", "ks": "names", "vs": "scores"},
    {"m": "prices", "k": "item", "v": "price", "ks": "items", "vs": "prices"},
    {"m": "ages", "k": "name", "v": "age", "ks": "names", "vs": "ages"},
)

# --- predicates of whole numbers ----------------------------------------------------------------------------------


def _divisible(k: int) -> Part:
    code = same_code(f"@v % {k} == 0")
    return Part(f"divisible by {k}", f"divisible by {k}", f"divisible by {k}", code, lambda v: v % k == 0)


def _indivisible(k: int) -> Part:
    text = f"not divisible by {k}"
    return Part(text, text, text, same_code(f"@v % {k} != 0"), lambda v: v % k != 0)


def _greater(k: int) -> Part:
    return Part(f"greater than {k}", f"greater than {k}", "above", same_code(f"@v > {k}"), lambda v: v > k)


def _less(k: int) -> Part:
    return Part(f"less than {k}", f"less than {k}", "below", same_code(f"@v < {k}"), lambda v: v < k)


def _at_least(k: int) -> Part:
    return Part(f"of at least {k}", f"of at least {k}", "at least", same_code(f"@v >= {k}"), lambda v: v >= k)


def _at_most(k: int) -> Part:
    return Part(f"of at most {k}", f"of at most {k}", "at most", same_code(f"@v <= {k}"), lambda v: v <= k)


def _between(low: int, high: int) -> Part:
    text = f"from {low} to {high}"
    code = same_code(f"@v >= {low} && @v <= {high}", f"{low} <= @v <= {high}")
    return Part(text, text, "between", code, lambda v: low <= v <= high)


EVEN = Part("even", "even", "even", same_code("@v % 2 == 0"), lambda v: v % 2 == 0, before=True)
ODD = Part("odd", "odd", "odd", same_code("@v % 2 != 0"), lambda v: v % 2 != 0, before=True)
POSITIVE = Part("positive", "positive", "positive", same_code("@v > 0"), lambda v: v > 0, before=True)
NEGATIVE = Part("negative", "negative", "negative", same_code("@v < 0"), lambda v: v < 0, before=True)
DIVISIBLE = tuple(_divisible(k) for k in (3, 4, 5, 6, 7, 10))
INT_PREDICATES = (
    EVEN,
    ODD,
    POSITIVE,
    NEGATIVE,
    *DIVISIBLE,
    *(_indivisible(k) for k in (3, 5)),
    *(_greater(k) for k in (5, 10, 20, 50)),
    *(_less(k) for k in (5, 10, 20, 50)),
    *(_at_least(k) for k in (8, 15)),
    *(_at_most(k) for k in (8, 15)),
    *(_between(low, high) for low, high in ((1, 10), (5, 20), (10, 50))),
)

# --- transforms of whole numbers ----------------------------------------------------------------------------------

SAME = Part("same", "", "", same_code("@v"), lambda v: v)
SQUARE = Part("square", "squared", "squared", same_code("@v * @v", "@v ** 2"), lambda v: v * v, noun="squares")
CUBE = Part("cube", "cubed", "cubed", same_code("@v * @v * @v", "@v ** 3"), lambda v: v**3, noun="cubes")
DOUBLE = Part("double", "doubled", "doubled", same_code("@v * 2"), lambda v: v * 2)
TRIPLE = Part("triple", "tripled", "tripled", same_code("@v * 3"), lambda v: v * 3)
NEGATE = Part("negate", "negated", "negated", same_code("-@v"), lambda v: -v)
ABSOLUTE = Part(
    "absolute",
    "made absolute",
    "absolute",
    {"python": "abs(@v)", "java": "Math.abs(@v)", "javascript": "Math.abs(@v)", "cpp": "std::abs(@v)"},
    abs,
    noun="absolute values",
)


def _plus(k: int) -> Part:
    return Part(f"plus {k}", f"increased by {k}", "increased", same_code(f"@v + {k}"), lambda v: v + k)


def _minus(k: int) -> Part:
    return Part(f"minus {k}", f"decreased by {k}", "decreased", same_code(f"@v - {k}"), lambda v: v - k)


def _times(k: int) -> Part:
    return Part(f"times {k}", f"multiplied by {k}", "multiplied", same_code(f"@v * {k}"), lambda v: v * k)


PLUS = tuple(_plus(k) for k in (1, 3, 5, 10))
MINUS = tuple(_minus(k) for k in (1, 2, 4))
TIMES = tuple(_times(k) for k in (4, 5, 10))
INT_TRANSFORMS = (SQUARE, CUBE, DOUBLE, TRIPLE, NEGATE, ABSOLUTE, *PLUS, *MINUS, *TIMES)
CHANGES = (SQUARE, DOUBLE, NEGATE, PLUS[0], PLUS[3], MINUS[1], TIMES[2])
MAYBE_TRANSFORMS = (SAME, *INT_TRANSFORMS)


def transformed(transform: Part, noun: str) -> str:
    """The noun phrase after a transform, ``~`` at the place of " in the list": "the squares of the even numbers~"."""
    if not transform.text:
        return f"the {noun}~"
    return f"the {transform.noun} of the {noun}~" if transform.noun else f"the {noun}~, each {transform.text}"


# --- predicates of strings ----------------------------------------------------------------------------------------


def _longer(k: int) -> Part:
    code = {
        "python": f"len(@v) > {k}",
        "java": f"@v.length() > {k}",
        "javascript": f"@v.length > {k}",
        "cpp": f"@v.size() > {k}",
    }
    return Part(f"longer than {k}", f"longer than {k} characters", "longer", code, lambda v: len(v) > k)


def _shorter(k: int) -> Part:
    code = {
        "python": f"len(@v) < {k}",
        "java": f"@v.length() < {k}",
        "javascript": f"@v.length < {k}",
        "cpp": f"@v.size() < {k}",
    }
    return Part(f"shorter than {k}", f"shorter than {k} characters", "shorter", code, lambda v: len(v) < k)


def _starts(c: str) -> Part:
    code = {
        "python": f'@v.startswith("{c}")',
        "java": f'@v.startsWith("{c}")',
        "javascript": f'@v.startsWith("{c}")',
        "cpp": f"@v.starts_with('{c}')",
    }
    text = f"that start with the letter {c}"
    return Part(f"starts {c}", text, "starting", code, lambda v: v.startswith(c))


def _ends(c: str) -> Part:
    code = {
        "python": f'@v.endswith("{c}")',
        "java": f'@v.endsWith("{c}")',
        "javascript": f'@v.endsWith("{c}")',
        "cpp": f"@v.ends_with('{c}')",
    }
    return Part(f"ends {c}", f"that end with the letter {c}", "ending", code, lambda v: v.endswith(c))


def _contains(c: str) -> Part:
    code = {
        "python": f'"{c}" in @v',
        "java": f'@v.contains("{c}")',
        "javascript": f'@v.includes("{c}")',
        "cpp": f"@v.find('{c}') != std::string::npos",
    }
    return Part(f"contains {c}", f"that contain the letter {c}", "containing", code, lambda v: c in v)


STR_PREDICATES = (
    *(_longer(k) for k in (2, 3, 4, 5)),
    *(_shorter(k) for k in (4, 5, 6)),
    *(_starts(c) for c in "abst"),
    *(_ends(c) for c in "deny"),
    *(_contains(c) for c in "aeor"),
)

# --- transforms of strings; in C++ ``to_upper`` and friends need a loop, so only one-expression transforms are here ---

STR_TRANSFORMS = (
    Part(
        "reversed",
        "reversed",
        "reversed",
        {
            "python": "@v[::-1]",
            "java": "new StringBuilder(@v).reverse().toString()",
            "javascript": '[...@v].reverse().join("")',
            "cpp": "std::string(@v.rbegin(), @v.rend())",
        },
        lambda v: v[::-1],
    ),
    Part(
        "first letter",
        "cut to the first letter",
        "first letter of",
        {"python": "@v[:1]", "java": "@v.substring(0, 1)", "javascript": "@v.slice(0, 1)", "cpp": "@v.substr(0, 1)"},
        lambda v: v[:1],
    ),
    Part(
        "twice",
        "written twice",
        "doubled",
        {"python": "@v * 2", "java": "@v.repeat(2)", "javascript": "@v.repeat(2)", "cpp": "@v + @v"},
        lambda v: v * 2,
    ),
    *(
        Part(
            f"suffix {c}",
            f"followed by {name}",
            "suffixed",
            {"python": f'@v + "{c}"', "java": f'@v + "{c}"', "javascript": f'@v + "{c}"', "cpp": f'@v + "{c}"'},
            lambda v, c=c: v + c,
        )
        for c, name in (("!", "an exclamation mark"), ("?", "a question mark"), (".", "a full stop"), ("s", "an s"))
    ),
    *(
        Part(
            f"prefix {c}",
            f"preceded by {name}",
            "prefixed",
            {"python": f'"{c}" + @v', "java": f'"{c}" + @v', "javascript": f'"{c}" + @v', "cpp": f'"{c}" + @v'},
            lambda v, c=c: c + v,
        )
        for c, name in (("#", "a hash sign"), ("$", "a dollar sign"), ("-", "a hyphen"))
    ),
)
