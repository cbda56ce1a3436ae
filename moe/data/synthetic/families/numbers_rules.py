"""Whole numbers and prices: conditions, bounds, labels, formulas."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, c_like, family
from moe.data.synthetic.inputs import INTS
from moe.data.synthetic.parts import DOUBLE, INT_PREDICATES, MINUS, NEGATE, NUMBER, PLUS, SQUARE, TIMES

_BRANCHES = (SQUARE, DOUBLE, NEGATE, PLUS[1], MINUS[0], TIMES[2])


@family(
    "numbers",
    predicate=INT_PREDICATES,
    then=_BRANCHES,
    otherwise=_BRANCHES,
    allowed=lambda predicate, then, otherwise: then != otherwise,
)
def transform_if(predicate: Part, then: Part, otherwise: Part) -> Blueprint:
    choice = "return @pred ? @then : @other;"
    return Blueprint(
        texts=(
            f"Return a @x {then.text} if it {predicate.singular}, otherwise {otherwise.text}.",
            f"Given a @x, return it {then.text} if it {predicate.singular} and {otherwise.text} otherwise.",
            f"Take a @x; if it {predicate.singular}, return it {then.text}, else return it {otherwise.text}.",
        ),
        name=f"{then.name} if {predicate.name}",
        arguments={"@x": "int"},
        returns="int",
        nouns=NUMBER,
        parts={"pred": (predicate, "@x"), "then": (then, "@x"), "other": (otherwise, "@x")},
        code={"python": "return @then if @pred else @other", "java": choice, "javascript": choice, "cpp": choice},
        oracle=lambda x: then.apply(x) if predicate.apply(x) else otherwise.apply(x),
        inputs=INTS,
    )


@family("numbers", low=(-10, -5, 0, 1, 5), high=(10, 20, 50, 100, 255))
def clamp(low: int, high: int) -> Blueprint:
    return Blueprint(
        texts=(
            f"Limit a @x to the range from {low} to {high}.",
            f"Clamp a @x so that it is at least {low} and at most {high}.",
            f"Return {low} if a @x is less than {low}, {high} if it is greater than {high}, else the @x itself.",
        ),
        name="clamp @x",
        arguments={"@x": "int"},
        returns="int",
        nouns=NUMBER,
        code={
            "python": f"return max({low}, min(@x, {high}))",
            "java": f"return Math.max({low}, Math.min(@x, {high}));",
            "javascript": f"return Math.max({low}, Math.min(@x, {high}));",
            "cpp": f"return std::clamp(@x, {low}, {high});",
        },
        oracle=lambda x: sorted((low, x, high))[1],
        inputs=(*INTS, (-20,), (low,), (high,), (300,)),
    )


@family("numbers", low=(-10, 0, 1, 5, 10), high=(20, 50, 99, 100, 500), inclusive=(True, False))
def in_range(low: int, high: int, inclusive: bool) -> Blueprint:
    less = "<=" if inclusive else "<"
    more = ">=" if inclusive else ">"
    bounds = "both included" if inclusive else "both excluded"
    return Blueprint(
        texts=(
            f"Check whether a @x lies between {low} and {high}, {bounds}.",
            f"Return true if a @x is between {low} and {high}, {bounds}, otherwise false.",
            f"Given a @x, tell whether it is between {low} and {high}, {bounds}.",
        ),
        name="is in range",
        arguments={"@x": "int"},
        returns="bool",
        nouns=NUMBER,
        code={
            "python": f"return {low} {less} @x {less} {high}",
            **c_like(f"return @x {more} {low} && @x {less} {high};"),
        },
        oracle=lambda x: x in range(low, high + 1) and (inclusive or x not in (low, high)),
        inputs=(*INTS, (-20,), (low,), (high,), (low - 1,), (low + 1,), (high - 1,), (high + 1,)),
    )


_LABELS = (("Fizz", "Buzz"), ("Tick", "Tock"), ("Ping", "Pong"), ("Left", "Right"), ("Red", "Blue"))


@family(
    "numbers",
    first=(2, 3, 4, 6),
    second=(3, 5, 7, 8),
    labels=_LABELS,
    allowed=lambda first, second, labels: second % first and first % second,
)
def label_multiples(first: int, second: int, labels: tuple[str, str]) -> Blueprint:
    one, two = labels
    rule = f'"{one}" if a @x is divisible by {first}, "{two}" if it is divisible by {second}, "{one}{two}" if by both'
    return Blueprint(
        texts=(f"Return {rule}, and otherwise the @x as a string.", f"Give {rule}, else the @x as text."),
        name=f"{one} {two}",
        arguments={"@x": "int"},
        returns="str",
        nouns=NUMBER,
        code={
            "python": f"""
                result = ""
                if @x % {first} == 0:
                    result += "{one}"
                if @x % {second} == 0:
                    result += "{two}"
                return result or str(@x)
            """,
            "java": f"""
                String result = "";
                if (@x % {first} == 0) {{
                    result += "{one}";
                }}
                if (@x % {second} == 0) {{
                    result += "{two}";
                }}
                return result.isEmpty() ? String.valueOf(@x) : result;
            """,
            "javascript": f"""
                let result = "";
                if (@x % {first} === 0) {{
                    result += "{one}";
                }}
                if (@x % {second} === 0) {{
                    result += "{two}";
                }}
                return result || String(@x);
            """,
            "cpp": f"""
                std::string result;
                if (@x % {first} == 0) {{
                    result += "{one}";
                }}
                if (@x % {second} == 0) {{
                    result += "{two}";
                }}
                return result.empty() ? std::to_string(@x) : result;
            """,
        },
        oracle=lambda x: f"{one * (x % first == 0)}{two * (x % second == 0)}" or f"{x}",
        inputs=(*INTS, (24,), (40,), (42,), (9,)),
    )


_GRADES = (
    ("fail", "pass", "excellent"),
    ("low", "medium", "high"),
    ("cold", "warm", "hot"),
    ("small", "medium", "large"),
    ("slow", "normal", "fast"),
    ("C", "B", "A"),
)


@family("numbers", bounds=((10, 20), (50, 80), (60, 90), (40, 70), (30, 60), (18, 65)), grades=_GRADES)
def grade(bounds: tuple[int, int], grades: tuple[str, str, str]) -> Blueprint:
    middle, top = bounds
    low, mid, high = grades
    body = f"""
        if (@x >= {top}) {{
            return "{high}";
        }}
        if (@x >= {middle}) {{
            return "{mid}";
        }}
        return "{low}";
    """
    return Blueprint(
        texts=(
            f'Return "{high}" if a @x is at least {top}, "{mid}" if it is at least {middle}, otherwise "{low}".',
            f'Rate a @x: "{high}" from {top} up, "{mid}" from {middle} up, and "{low}" below.',
        ),
        name="rate @x",
        arguments={"@x": "int"},
        returns="str",
        nouns=({"x": "score"}, {"x": "value"}),
        code={
            "python": f"""
                if @x >= {top}:
                    return "{high}"
                if @x >= {middle}:
                    return "{mid}"
                return "{low}"
            """,
            "java": body,
            "javascript": body,
            "cpp": body,
        },
        oracle=lambda x: grades[(x >= middle) + (x >= top)],
        inputs=((0,), (middle - 1,), (middle,), (top - 1,), (top,), (100,), (-5,)),
    )


@family("numbers", often=(2, 3, 4, 5), skip=(5, 10, 25), again=(2, 4))
def leap_rule(often: int, skip: int, again: int) -> Blueprint:
    skipped, kept = often * skip, often * skip * again
    rule = f"divisible by {often} but not by {skipped}, unless it is also divisible by {kept}"
    test = f"@x % {often} == 0 && (@x % {skipped} != 0 || @x % {kept} == 0)"
    return Blueprint(
        texts=(
            f"Check whether a @x is {rule}.",
            f"Return true if a @x is {rule}, otherwise false.",
            f"Given a @x, tell whether it is {rule}.",
        ),
        name="is leap @x",
        arguments={"@x": "int"},
        returns="bool",
        nouns=({"x": "year"}, {"x": "number"}),
        code={"python": f"return {test.replace('&&', 'and').replace('||', 'or')}", **c_like(f"return {test};")},
        oracle=lambda x: x % kept == 0 or (x % often == 0 and x % skipped > 0),
        inputs=(
            (1,),
            (often,),
            (skipped,),
            (skipped * 3,),
            (kept,),
            (kept * 3,),
            (2024,),
            (often * 7,),
            (often + 1,),
            (60,),
            (80,),
            (90,),
            (100,),
            (150,),
            (200,),
            (250,),
            (300,),
            (1000,),
        ),
    )


_SINGLE = tuple(part for part in INT_PREDICATES if "&&" not in part.code["java"])


@family("numbers", predicate=_SINGLE, joint=("both", "at least one", "exactly one", "neither"))
def two_numbers(predicate: Part, joint: str) -> Blueprint:
    of_them = {
        "both": "both of",
        "at least one": "at least one of",
        "exactly one": "exactly one of",
        "neither": "none of",
    }
    verb = predicate.plural if joint == "both" else predicate.singular
    python = {
        "both": "return @left and @right",
        "at least one": "return @left or @right",
        "exactly one": "return (@left) != (@right)",
        "neither": "return not (@left or @right)",
    }[joint]
    other = python.replace(" and ", " && ").replace(" or ", " || ").replace("not (", "!(") + ";"
    count = {"both": (2,), "at least one": (1, 2), "exactly one": (1,), "neither": (0,)}[joint]
    return Blueprint(
        texts=(
            f"Check whether {of_them[joint]} two numbers a and b {verb}.",
            f"Return true if {of_them[joint]} two numbers a and b {verb}, otherwise false.",
        ),
        name=f"{joint.replace('at least one', 'any')} {predicate.name}",
        arguments={"a": "int", "b": "int"},
        returns="bool",
        nouns=({},),
        parts={"left": (predicate, "a"), "right": (predicate, "b")},
        code={"python": python, "java": other, "javascript": other.replace(" != ", " !== "), "cpp": other},
        oracle=lambda a, b: (bool(predicate.apply(a)) + bool(predicate.apply(b))) in count,
        inputs=(
            (0, 1),
            (2, 4),
            (3, 7),
            (-6, 15),
            (60, 21),
            (8, 8),
            (-5, -10),
            (12, 11),
            (35, 50),
            (105, 1),
            (420, 30),
            (60, 120),
            (14, 28),
            (-7, -9),
            (9, 14),
        ),
    )
