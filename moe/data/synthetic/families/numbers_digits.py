"""Digits and number systems."""

from __future__ import annotations

import math

from moe.data.synthetic.family import Blueprint, Part, c_like, family, same_code
from moe.data.synthetic.parts import AGGREGATES, EVEN, INT_PREDICATES, NUMBER, ODD

_DIGITS = (
    EVEN,
    ODD,
    *(
        Part(f"greater than {k}", f"greater than {k}", "above", same_code(f"@v > {k}"), lambda v, k=k: v > k)
        for k in (2, 3, 4, 6, 7)
    ),
    *(
        Part(f"less than {k}", f"less than {k}", "below", same_code(f"@v < {k}"), lambda v, k=k: v < k)
        for k in (3, 5, 6, 8)
    ),
    *(part for part in INT_PREDICATES if part.key in ("divisible by 3", "divisible by 4")),
)
_INPUTS = ((0,), (7,), (10,), (58,), (349,), (2046,), (98765,), (1200301,))


@family("numbers", predicate=_DIGITS, goal=("sum", "count", "product"))
def digits(predicate: Part, goal: str) -> Blueprint:
    chosen = predicate.of("digits")
    ask = {"sum": "the sum of the", "count": "the number of", "product": "the product of the"}[goal]
    start, update = {
        "sum": ("int total = 0", "total += digit"),
        "count": ("int count = 0", "count++"),
        "product": ("int product = 1", "product *= digit"),
    }[goal]
    selected = "for digit in map(int, str(@x)) if @pred"
    python = {"sum": f"sum(digit {selected})", "count": f"sum(1 {selected})", "product": f"math.prod(digit {selected})"}
    result = start.split()[1]
    java_like = f"""
        {start};
        for (char symbol : std::to_string(@x)) {{
            const int digit = symbol - '0';
            if (@pred) {{
                {update};
            }}
        }}
        return {result};
    """
    values = {"sum": "total + digit", "count": "", "product": "total * digit"}[goal]
    reduce = ".length" if goal == "count" else f"\n                    .reduce((total, digit) => {values}, {start[-1]})"
    stream = {"sum": ".sum()", "count": ".count()", "product": ".reduce(1, (a, b) -> a * b)"}[goal]
    return Blueprint(
        texts=(
            f"Return {ask} {chosen} of a non-negative @x.",
            f"Given a non-negative @x, return {ask} its {chosen}."
            if goal == "count"
            else f"Given a non-negative @x, return {ask.removesuffix(' the')} its {chosen}.",
            f"Compute {ask} {chosen} in a non-negative @x.",
        ),
        name=f"{goal} {predicate.naming('digits')}",
        arguments={"@x": "int"},
        returns="int",
        nouns=NUMBER,
        parts={"pred": (predicate, "digit")},
        code={
            "python": f"return {python[goal]}",
            "java": f"""
                return {"(int) " if goal == "count" else ""}String.valueOf(@x).chars()
                        .map(symbol -> symbol - '0')
                        .filter(digit -> @pred)
                        {stream};
            """,
            "javascript": f"""
                return [...String(@x)]
                    .map(Number)
                    .filter((digit) => @pred){reduce};
            """,
            "cpp": java_like.replace("count++", "++count"),
        },
        oracle=lambda x: AGGREGATES[goal](
            [d for d in (x // 10**i % 10 for i in range(len(str(x)))) if predicate.apply(d)]
        ),
        inputs=_INPUTS,
    )


@family("numbers", predicate=_DIGITS, quantifier=("all", "any"))
def check_digits(predicate: Part, quantifier: str) -> Blueprint:
    claim = (
        f"all digits of a @x {predicate.plural}" if quantifier == "all" else f"any digit of a @x {predicate.singular}"
    )
    loop = f"""
        for (int rest = @x; rest > 0; rest = DIV(rest, 10)) {{
            const int digit = rest % 10;
            if ({"!(@pred)" if quantifier == "all" else "@pred"}) {{
                return {"false" if quantifier == "all" else "true"};
            }}
        }}
        return {"true" if quantifier == "all" else "false"};
    """
    return Blueprint(
        texts=(
            f"Check whether {claim}.".replace("a @x", "a positive @x"),
            f"Return true if {claim}, otherwise false.".replace("a @x", "a positive @x"),
            f"Given a positive @x, tell whether {claim.replace('a @x', 'it')}.",
        ),
        name=f"{quantifier} digits {predicate.name}",
        arguments={"@x": "int"},
        returns="bool",
        nouns=NUMBER,
        parts={"pred": (predicate, "digit")},
        code={"python": f"return {quantifier}(@pred for digit in map(int, str(@x)))", **c_like(loop)},
        oracle=lambda x: {"all": all, "any": any}[quantifier](predicate.apply(ord(c) - 48) for c in str(x)),
        inputs=(
            (7,),
            (1,),
            (58,),
            (349,),
            (2046,),
            (98765,),
            (333,),
            (8844,),
            (57913,),
            (6886,),
            (21,),
            (5,),
            (4,),
            (144,),
            (89,),
            (98,),
            (30,),
        ),
    )


@family("numbers", base=(2, 3, 4, 5, 6, 7, 8, 9), write=(True, False))
def number_base(base: int, write: bool) -> Blueprint:
    if write:
        texts = (
            f"Write a non-negative @x in base {base} and return it as a string.",
            f"Return a non-negative @x as a string of its digits in base {base}.",
        )
        code = {
            "python": f"""
                digits = ""
                while @x >= {base}:
                    @x, digit = divmod(@x, {base})
                    digits = str(digit) + digits
                return str(@x) + digits
            """,
            "java": f"return Integer.toString(@x, {base});",
            "javascript": f"return @x.toString({base});",
            "cpp": f"""
                std::string digits;
                for (int rest = @x; rest > 0; rest /= {base}) {{
                    digits.insert(digits.begin(), static_cast<char>('0' + rest % {base}));
                }}
                return digits.empty() ? "0" : digits;
            """,
        }
    else:
        texts = (
            f"Read a string of digits in base {base} and return the number.",
            f"Given a string of digits in base {base}, return the whole number that it stands for.",
        )
        code = {
            "python": f"return int(digits, {base})",
            "java": f"return Integer.parseInt(digits, {base});",
            "javascript": f"return parseInt(digits, {base});",
            "cpp": f"return std::stoi(digits, nullptr, {base});",
        }
    numbers = (0, 1, base - 1, base, base + 1, 37, 100, 255)

    def digits_of(number: int) -> str:
        high = digits_of(number // base) if number >= base else ""
        return high + "0123456789"[number % base]

    return Blueprint(
        texts=texts,
        name=f"to base {base}" if write else f"from base {base}",
        arguments={"@x": "int"} if write else {"digits": "str"},
        returns="str" if write else "int",
        nouns=NUMBER if write else ({},),
        code=code,
        oracle=digits_of if write else lambda text: sum(int(c) * base**i for i, c in enumerate(reversed(text))),
        inputs=tuple((number,) if write else (digits_of(number),) for number in numbers),
    )


@family("numbers", base=(2, 3, 4, 5, 6, 7, 8, 9, 10))
def is_power(base: int) -> Blueprint:
    return Blueprint(
        texts=(
            f"Check whether a positive @x is a power of {base}.",
            f"Return true if a positive @x is a power of {base} (1 counts), otherwise false.",
            f"Given a positive @x, tell whether it is a power of {base}.",
        ),
        name=f"is power of {base}",
        arguments={"@x": "int"},
        returns="bool",
        nouns=NUMBER,
        code={
            "python": f"""
                power = 1
                while power < @x:
                    power *= {base}
                return power == @x
            """,
            **c_like(f"""
                int power = 1;
                while (power < @x) {{
                    power *= {base};
                }}
                return power == @x;
            """),
        },
        oracle=lambda x: x in {base**k for k in range(20)},
        inputs=(
            (1,),
            (base,),
            (base - 1,),
            (base * base,),
            (base**3,),
            (base**3 + 1,),
            (base * 6,),
            (base + 1,),
            (2,),
            (8,),
            (9,),
            (27,),
            (32,),
        ),
    )


@family("numbers", divisor=(2, 3, 4, 5, 7, 10), limit=(1, 2, 5, 10, 20))
def division_steps(divisor: int, limit: int) -> Blueprint:
    rule = f"divided by {divisor}, dropping the remainder, until it is less than {limit}"
    return Blueprint(
        texts=(
            f"Count how many times a @x must be {rule}.",
            f"Return how often a @x has to be {rule}.",
            f"Given a @x, count the steps in which it is {rule}.",
        ),
        name="count steps",
        arguments={"@x": "int"},
        returns="int",
        nouns=NUMBER,
        code={
            "python": f"""
                steps = 0
                while @x >= {limit}:
                    @x //= {divisor}
                    steps += 1
                return steps
            """,
            "java": f"""
                int steps = 0;
                for (int rest = @x; rest >= {limit}; rest /= {divisor}) {{
                    steps++;
                }}
                return steps;
            """,
            "javascript": f"""
                let steps = 0;
                for (let rest = @x; rest >= {limit}; rest = Math.floor(rest / {divisor})) {{
                    steps++;
                }}
                return steps;
            """,
            "cpp": f"""
                int steps = 0;
                for (int rest = @x; rest >= {limit}; rest /= {divisor}) {{
                    ++steps;
                }}
                return steps;
            """,
        },
        oracle=lambda x: next(k for k in range(100) if x // divisor**k < limit),
        inputs=((0,), (1,), (3,), (9,), (10,), (64,), (99,), (1000,), (123456,)),
    )


@family("numbers", goal=("greatest common divisor", "least common multiple"))
def common(goal: str) -> Blueprint:
    least = goal.startswith("least")
    body = c_like(f"""
        int x = a;
        int y = b;
        while (y != 0) {{
            const int rest = x % y;
            x = y;
            y = rest;
        }}
        return {"DIV(a, x) * b" if least else "x"};
    """)
    return Blueprint(
        texts=(
            f"Return the {goal} of two positive numbers a and b.",
            f"Given two positive numbers a and b, compute their {goal}.",
            f"Find the {goal} of a and b, both positive.",
        ),
        name=goal,
        arguments={"a": "int", "b": "int"},
        returns="int",
        nouns=({},),
        code={
            "python": f"""
                x, y = a, b
                while y:
                    x, y = y, x % y
                return {"a // x * b" if least else "x"}
            """,
            **body,
        },
        oracle=math.lcm if least else math.gcd,
        inputs=((1, 1), (2, 4), (12, 18), (7, 13), (100, 75), (48, 36), (9, 28)),
    )
