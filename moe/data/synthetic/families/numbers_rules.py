"""Whole numbers and prices: conditions, bounds, labels, formulas."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, c_like, family
from moe.data.synthetic.inputs import INTS
from moe.data.synthetic.parts import (
    DOUBLE,
    INT_PREDICATES,
    MAYBE_TRANSFORMS,
    MINUS,
    NEGATE,
    NUMBER,
    PLUS,
    SQUARE,
    TIMES,
)

_BRANCHES = (SQUARE, DOUBLE, NEGATE, PLUS[1], MINUS[0], TIMES[2])


@family("numbers", predicate=INT_PREDICATES, then=_BRANCHES, otherwise=_BRANCHES,
        allowed=lambda predicate, then, otherwise: then != otherwise)  # fmt: skip
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
        inputs=(*INTS, (-20,), (low,), (high,), (low - 1,), (high + 1,)),
    )


_LABELS = (("Fizz", "Buzz"), ("Tick", "Tock"), ("Ping", "Pong"), ("Left", "Right"), ("Red", "Blue"))


@family("numbers", first=(2, 3, 4, 6), second=(3, 5, 7, 8), labels=_LABELS,
        allowed=lambda first, second, labels: second % first and first % second)  # fmt: skip
def label_multiples(first: int, second: int, labels: tuple[str, str]) -> Blueprint:
    one, two = labels
    rule = f'"{one}" if a @x is divisible by {first}, "{two}" if it is divisible by {second}, "{one}{two}" if by both'
    return Blueprint(
        texts=(
            f"Return {rule}, and otherwise the @x as a string.",
            f"Give {rule}, else the @x as text.",
        ),
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
        code={
            "python": f"return {test.replace('&&', 'and').replace('||', 'or')}",
            **c_like(f"return {test};"),
        },
        oracle=lambda x: x % kept == 0 or (x % often == 0 and x % skipped > 0),
        inputs=((1,), (often,), (skipped,), (skipped * 3,), (kept,), (kept * 3,), (2024,), (often * 7,), (often + 1,)),
    )


@family("numbers", threshold=(20, 50, 100, 200, 500), percent=(5, 10, 15, 20, 25), side=("above", "below"))
def adjust_price(threshold: int, percent: int, side: str) -> Blueprint:
    sign, verb = ("-", "reduced") if side == "above" else ("+", "raised")
    test = f"price {'>' if side == 'above' else '<'} {threshold}"
    changed = f"price * {(100 - percent if side == 'above' else 100 + percent) / 100}"
    choice = f"return {test} ? {changed} : price;"
    return Blueprint(
        texts=(
            f"Return a price {verb} by {percent} percent if it is {side} {threshold}, otherwise the price itself.",
            f"Given a price, return it {verb} by {percent} percent if it is {side} {threshold}, else unchanged.",
        ),
        name=f"{'discount' if side == 'above' else 'surcharge'}",
        arguments={"price": "float"},
        returns="float",
        nouns=({},),
        code={
            "python": f"return {changed} if {test} else price",
            "java": choice,
            "javascript": choice,
            "cpp": choice,
        },
        oracle=lambda price: (
            price + {"-": -1, "+": 1}[sign] * price * percent / 100
            if (price > threshold if side == "above" else price < threshold)
            else price
        ),
        inputs=((0.0,), (9.5,), (float(threshold),), (threshold - 0.5,), (threshold + 0.5,), (640.0,)),
    )


_UNITS = (  # (from, to, factor)
    ("kilometers", "meters", 1000.0),
    ("meters", "centimeters", 100.0),
    ("miles", "kilometers", 1.609344),
    ("inches", "centimeters", 2.54),
    ("feet", "meters", 0.3048),
    ("kilograms", "grams", 1000.0),
    ("pounds", "kilograms", 0.45359237),
    ("hours", "minutes", 60.0),
    ("hours", "seconds", 3600.0),
    ("days", "hours", 24.0),
    ("weeks", "days", 7.0),
    ("liters", "milliliters", 1000.0),
)


@family("numbers", unit=_UNITS, forward=(True, False), round_down=(False, True))
def convert_unit(unit: tuple[str, str, float], forward: bool, round_down: bool) -> Blueprint:
    larger, smaller, factor = unit
    source, target = (larger, smaller) if forward else (smaller, larger)
    formula = f"{source} {'*' if forward else '/'} {factor:g}" + (".0" if factor == int(factor) else "")
    if factor != int(factor):
        formula = f"{source} {'*' if forward else '/'} {factor}"
    how = ", rounded down to a whole number" if round_down else ""
    wrapped = {
        "python": f"return math.floor({formula})",
        "java": f"return (int) Math.floor({formula});",
        "javascript": f"return Math.floor({formula});",
        "cpp": f"return static_cast<int>(std::floor({formula}));",
    }
    plain = {language: f"return {formula};" for language in ("java", "javascript", "cpp")}
    code = wrapped if round_down else {"python": f"return {formula}", **plain}
    code = {**code, "javascript": code["javascript"].replace(".0;", ";").replace(".0)", ")")}
    scale = factor if forward else 1 / factor
    return Blueprint(
        texts=(
            f"Convert {source} to {target}{how}. One of the {larger} is {factor:.10g} {smaller}.",
            f"Given a number of {source}, return it in {target}{how}, where {factor:.10g} {smaller} make one of the "
            f"{larger}.",
        ),
        name=f"{source} to {target}",
        arguments={source: "float"},
        returns="int" if round_down else "float",
        nouns=({},),
        code=code,
        # Inputs are such that no product comes within rounding error of a whole number, but for 0.
        oracle=lambda amount: int(amount * scale + 1e-9) if round_down else amount * scale,
        inputs=((0.0,), (1.3,), (2.7,), (10.9,), (123.4,), (8888.8,)),
    )


@family("numbers", plus=(1, 2, 3, 5, 8), times=(2, 3, 4, 10), minus=(1, 4, 6, 7), first=("add", "multiply"))
def formula(plus: int, times: int, minus: int, first: str) -> Blueprint:
    steps = {
        "add": f"Add {plus} to a @x, multiply the result by {times} and subtract {minus}",
        "multiply": f"Multiply a @x by {times}, add {plus} to the result and subtract {minus} times the @x",
    }[first]
    expression = {
        "add": f"(@x + {plus}) * {times} - {minus}",
        "multiply": f"@x * {times} + {plus} - {minus} * @x",
    }[first]
    return Blueprint(
        texts=(f"{steps}.", f"Given a @x, do this: {steps[0].lower()}{steps[1:].replace('a @x', 'it', 1)}."),
        name="apply formula",
        arguments={"@x": "int"},
        returns="int",
        nouns=NUMBER,
        code={"python": f"return {expression}", **c_like(f"return {expression};")},
        oracle=lambda x: sum([x + plus] * times) - minus if first == "add" else plus + (times - minus) * x,
        inputs=INTS[:8],
    )


@family("numbers", direction=("down", "up"), step=(3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 50, 60, 100))
def round_to_multiple(direction: str, step: int) -> Blueprint:
    python = f"@x // {step} * {step}" if direction == "down" else f"(@x + {step - 1}) // {step} * {step}"
    java = python.replace("//", "/")
    function = "floor" if direction == "down" else "ceil"
    return Blueprint(
        texts=(
            f"Round a non-negative @x {direction} to a multiple of {step}.",
            f"Given a non-negative @x, round it {direction} to the nearest multiple of {step}.",
            f"Return the {'largest' if direction == 'down' else 'smallest'} multiple of {step} that is at "
            f"{'most' if direction == 'down' else 'least'} the given non-negative @x.",
        ),
        name=f"round {direction} to {step}",
        arguments={"@x": "int"},
        returns="int",
        nouns=NUMBER,
        code={
            "python": f"return {python}",
            "java": f"return {java};",
            "javascript": f"return Math.{function}(@x / {step}) * {step};",
            "cpp": f"return {java};",
        },
        oracle=lambda x: next(
            v
            for v in range(x, x - step if direction == "down" else x + step, -1 if direction == "down" else 1)
            if v % step == 0
        ),
        inputs=((0,), (1,), (step,), (step - 1,), (step + 1,), (99,), (250,), (3 * step + 2,)),
    )


@family("numbers", extreme=("larger", "smaller"), transform=MAYBE_TRANSFORMS)
def extreme_of_two(extreme: str, transform: Part) -> Blueprint:
    function = "max" if extreme == "larger" else "min"
    what = f"the {transform.noun} of" if transform.noun else ""
    how = f", each {transform.text}" if transform.text and not what else ""
    calls = {
        "python": function,
        "java": f"Math.{function}",
        "javascript": f"Math.{function}",
        "cpp": f"std::{function}",
    }
    return Blueprint(
        texts=(
            f"Return the {extreme} of {what} two numbers a and b{how}.".replace("  ", " "),
            f"Given two numbers a and b, return the {extreme} of {what or 'the two'}"
            f"{' a and b' if what else how}.".replace("  ", " "),
        ),
        name=f"{extreme} {transform.name}",
        arguments={"a": "int", "b": "int"},
        returns="int",
        nouns=({},),
        parts={"left": (transform, "a"), "right": (transform, "b")},
        code={
            language: f"return {call}(@left, @right)" + ("" if language == "python" else ";")
            for language, call in calls.items()
        },
        oracle=lambda a, b: sorted((transform.apply(a), transform.apply(b)))[extreme == "larger"],
        inputs=((0, 0), (1, 2), (5, -7), (-3, -4), (10, 9), (-8, 6)),
    )


_SINGLE = tuple(part for part in INT_PREDICATES if "&&" not in part.code["java"])


@family("numbers", predicate=_SINGLE, joint=("both", "at least one", "exactly one", "neither"))
def two_numbers(predicate: Part, joint: str) -> Blueprint:
    of_them = {"both": "both", "at least one": "at least one of", "exactly one": "exactly one of", "neither": "none of"}
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
        inputs=((0, 1), (2, 4), (3, 7), (-6, 15), (60, 21), (8, 8), (-5, -10), (12, 11), (35, 50), (105, 1), (420, 30)),
    )
