"""Numbers and prices: formulas, units, rounding."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, c_like, family
from moe.data.synthetic.inputs import INTS
from moe.data.synthetic.parts import MAYBE_TRANSFORMS, NUMBER


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
        code={"python": f"return {changed} if {test} else price", "java": choice, "javascript": choice, "cpp": choice},
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
        oracle=lambda amount: int(amount * scale) if round_down else amount * scale,
        # Rounding down is only asked of results that are not within rounding error of a whole number.
        inputs=[
            (amount,)
            for amount in (0.0, 1.3, 2.7, 10.9, 123.4, 8888.8, 3.14159, 47.123456, 999.00123)
            if amount == 0 or not round_down or 0.001 < amount * scale % 1 < 0.999
        ],
    )


@family(
    "numbers",
    plus=(1, 2, 3, 5, 8),
    times=(2, 3, 4, 10),
    minus=(1, 4, 6, 7),
    first=("add", "multiply"),
    allowed=lambda plus, times, minus, first: first == "add" or minus != times,
)
def formula(plus: int, times: int, minus: int, first: str) -> Blueprint:
    steps = {
        "add": f"Add {plus} to a @x, multiply the result by {times} and subtract {minus}",
        "multiply": f"Multiply a @x by {times}, add {plus} to the result and subtract {minus} times the @x",
    }[first]
    expression = {"add": f"(@x + {plus}) * {times} - {minus}", "multiply": f"@x * {times} + {plus} - {minus} * @x"}[
        first
    ]
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
