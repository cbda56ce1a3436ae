"""Whole numbers: what lies between 1 and a limit, sequences, divisors, primes."""

from __future__ import annotations

import math

from moe.data.synthetic.family import Blueprint, Part, c_like, family
from moe.data.synthetic.inputs import LIMITS
from moe.data.synthetic.parts import (
    AGGREGATES,
    COUNT,
    CUBE,
    DIVISIBLE,
    DOUBLE,
    EVEN,
    ODD,
    SAME,
    SQUARE,
    TRIPLE,
    transformed,
)

_RANGE_PREDICATES = (EVEN, ODD, *DIVISIBLE)


@family("numbers", predicate=_RANGE_PREDICATES, transform=(SAME, SQUARE, CUBE, DOUBLE, TRIPLE))
def sum_up_to(predicate: Part, transform: Part) -> Blueprint:
    goal = f"the sum of {transformed(transform, predicate.of('numbers'))}"
    return Blueprint(
        texts=(
            f"Return {goal.replace('~', ' from 1 to @n')}.",
            f"Compute {goal.replace('~', ' from 1 to @n')}.",
            f"Given @n, add up {goal.removeprefix('the sum of ').replace('~', ' from 1 to @n')}.",
        ),
        name=f"sum {transform.name} {predicate.naming('numbers')}",
        arguments={"@n": "int"},
        returns="int",
        nouns=COUNT,
        parts={"pred": (predicate, "i"), "out": (transform, "i")},
        code={
            "python": "return sum(@out for i in range(1, @n + 1) if @pred)",
            **c_like("""
                int total = 0;
                for (int i = 1; i <= @n; i++) {
                    if (@pred) {
                        total += @out;
                    }
                }
                return total;
            """),
        },
        oracle=lambda n: sum(transform.apply(i) for i in range(1, n + 1) if predicate.apply(i)),
        inputs=LIMITS,
    )


@family("numbers", predicate=_RANGE_PREDICATES, transform=(SAME, SQUARE, DOUBLE, TRIPLE))
def list_up_to(predicate: Part, transform: Part) -> Blueprint:
    goal = transformed(transform, predicate.of("numbers")).replace("~", " from 1 to @n")
    return Blueprint(
        texts=(f"Return a list of {goal}.", f"Given @n, list {goal}.", f"Build a list of {goal}."),
        name=f"list {transform.name} {predicate.naming('numbers')}",
        arguments={"@n": "int"},
        returns="list[int]",
        nouns=COUNT,
        parts={"pred": (predicate, "i"), "out": (transform, "i")},
        code={
            "python": "return [@out for i in range(1, @n + 1) if @pred]",
            "java": """
                return IntStream.rangeClosed(1, @n)
                        .filter(i -> @pred)
                        .mapToObj(i -> @out)
                        .collect(Collectors.toList());
            """,
            "javascript": """
                const result = [];
                for (let i = 1; i <= @n; i++) {
                    if (@pred) {
                        result.push(@out);
                    }
                }
                return result;
            """,
            "cpp": """
                std::vector<int> result;
                for (int i = 1; i <= @n; ++i) {
                    if (@pred) {
                        result.push_back(@out);
                    }
                }
                return result;
            """,
        },
        oracle=lambda n: [transform.apply(i) for i in range(1, n + 1) if predicate.apply(i)],
        inputs=LIMITS,
    )


@family(
    "numbers",
    first=(2, 3, 4, 5, 7),
    second=(3, 5, 6, 7, 8, 11),
    joint=("and", "or", "but not"),
    allowed=lambda first, second, joint: second % first and first % second,
)
def count_divisible(first: int, second: int, joint: str) -> Blueprint:
    rule = f"divisible by {first} {joint} by {second}"
    operator, comparison = {"and": ("and", "=="), "or": ("or", "=="), "but not": ("and", "!=")}[joint]
    python = f"i % {first} == 0 {operator} i % {second} {comparison} 0"
    test = python.replace(" and ", " && ").replace(" or ", " || ")

    def holds(i: int) -> bool:
        return {"and": i % math.lcm(first, second) == 0, "or": i % first * (i % second) == 0}.get(
            joint, i % first == 0 and i % second > 0
        )

    return Blueprint(
        texts=(
            f"Count the numbers from 1 to @n that are {rule}.",
            f"Return how many numbers from 1 to @n are {rule}.",
            f"Given @n, count how many of the numbers from 1 to @n are {rule}.",
        ),
        name=f"count divisible by {first} {joint} {second}",
        arguments={"@n": "int"},
        returns="int",
        nouns=COUNT,
        code={
            "python": f"return sum(1 for i in range(1, @n + 1) if {python})",
            **c_like(f"""
                int count = 0;
                for (int i = 1; i <= @n; i++) {{
                    if ({test}) {{
                        count++;
                    }}
                }}
                return count;
            """),
        },
        oracle=lambda n: sum(holds(i) for i in range(1, n + 1)),
        inputs=(*LIMITS, (100,), (300,)),
    )


@family("numbers", predicate=(EVEN, ODD, *DIVISIBLE[:4]), aggregate=("sum", "count", "product"))
def between_bounds(predicate: Part, aggregate: str) -> Blueprint:
    chosen = f"{predicate.of('numbers')} from low to high, both included"
    ask = {"sum": "the sum of the", "count": "the number of", "product": "the product of the"}[aggregate]
    verb = {"sum": "Add up the", "count": "Count the", "product": "Multiply the"}[aggregate]
    start, update, python = {
        "sum": ("total = 0", "total += i", "return sum(i for i in range(low, high + 1) if @pred)"),
        "count": ("count = 0", "count++", "return sum(1 for i in range(low, high + 1) if @pred)"),
        "product": ("product = 1", "product *= i", "return math.prod(i for i in range(low, high + 1) if @pred)"),
    }[aggregate]
    return Blueprint(
        texts=(
            f"Return {ask} {chosen}.",
            f"{verb} {chosen}.",
            f"Given two numbers low and high, return {ask} {chosen}.",
        ),
        name=f"{aggregate} {predicate.name} between",
        arguments={"low": "int", "high": "int"},
        returns="int",
        nouns=({},),
        parts={"pred": (predicate, "i")},
        code={
            "python": python,
            **c_like(f"""
                int {start};
                for (int i = low; i <= high; i++) {{
                    if (@pred) {{
                        {update};
                    }}
                }}
                return {start.split()[0]};
            """),
        },
        oracle=lambda low, high: AGGREGATES[aggregate]([i for i in range(low, high + 1) if predicate.apply(i)]),
        inputs=((1, 1), (5, 2), (2, 10), (-3, 4), (7, 13), (12, 20), (21, 29), (30, 37)),
    )


@family(
    "numbers",
    start=(1, 2, 3, 4, 5, 10, 100),
    step=(2, 3, 4, 5, 6, 7),
    change=("increases by", "decreases by", "is multiplied by"),
)
def sequence(start: int, step: int, change: str) -> Blueprint:
    rule = f"that starts at {start} and {change} {step} each time"
    sign = {"increases by": "+", "decreases by": "-", "is multiplied by": "*"}[change]
    python = f"[{start} * {step} ** i for i in range(@n)]"
    if sign != "*":
        python = f"[{start} {sign} {step} * i for i in range(@n)]"

    def oracle(n: int) -> list[int]:
        terms = [start]
        for _ in range(n):
            terms.append({"+": terms[-1] + step, "-": terms[-1] - step, "*": terms[-1] * step}[sign])
        return terms[:n]

    return Blueprint(
        texts=(
            f"Return the first @n terms of the sequence {rule}.",
            f"Given @n, return the first @n terms of the sequence {rule}.",
            f"List the first @n numbers of a sequence {rule}.",
        ),
        name="first terms",
        arguments={"@n": "int"},
        returns="list[int]",
        nouns=({"n": "n"}, {"n": "count"}),
        code={
            "python": f"return {python}",
            "java": f"""
                List<Integer> terms = new ArrayList<>();
                int term = {start};
                for (int i = 0; i < @n; i++) {{
                    terms.add(term);
                    term {sign}= {step};
                }}
                return terms;
            """,
            "javascript": f"""
                const terms = [];
                let term = {start};
                for (let i = 0; i < @n; i++) {{
                    terms.push(term);
                    term {sign}= {step};
                }}
                return terms;
            """,
            "cpp": f"""
                std::vector<int> terms;
                int term = {start};
                for (int i = 0; i < @n; ++i) {{
                    terms.push_back(term);
                    term {sign}= {step};
                }}
                return terms;
            """,
        },
        oracle=oracle,
        inputs=((0,), (1,), (2,), (5,), (7,)),
    )


@family(
    "numbers",
    starts=((0, 1), (1, 1), (2, 1), (1, 3), (3, 2)),
    factor=(1, 2, 3),
    second=("plus", "minus", "plus twice"),
    allowed=lambda starts, factor, second: (starts, factor, second) != ((1, 1), 2, "minus"),
)
def recurrence(starts: tuple[int, int], factor: int, second: str) -> Blueprint:
    first, then = starts
    previous = {1: "the previous term", 2: "twice the previous term", 3: "three times the previous term"}[factor]
    rule = f"starts with {first} and {then} and continues with {previous} {second} the term before it"
    sign = "-" if second == "minus" else "+"
    term = f"{'b' if factor == 1 else f'{factor} * b'} {sign} {'2 * a' if second == 'plus twice' else 'a'}"

    def oracle(n: int) -> int:
        terms = [first, then]
        while len(terms) <= n:
            terms.append(factor * terms[-1] + {"plus": 1, "minus": -1, "plus twice": 2}[second] * terms[-2])
        return terms[n]

    return Blueprint(
        texts=(
            f"Return the n-th term, counting from 0, of the sequence that {rule}.",
            f"A sequence {rule}. Given n, return its n-th term, counting from 0.",
        ),
        name="nth term",
        arguments={"n": "int"},
        returns="int",
        nouns=({},),
        code={
            "python": f"""
                a, b = {first}, {then}
                for _ in range(n):
                    a, b = b, {term}
                return a
            """,
            "java": f"""
                int a = {first};
                int b = {then};
                for (int i = 0; i < n; i++) {{
                    int next = {term};
                    a = b;
                    b = next;
                }}
                return a;
            """,
            "javascript": f"""
                let [a, b] = [{first}, {then}];
                for (let i = 0; i < n; i++) {{
                    [a, b] = [b, {term}];
                }}
                return a;
            """,
            "cpp": f"""
                int a = {first};
                int b = {then};
                for (int i = 0; i < n; ++i) {{
                    a = std::exchange(b, {term});
                }}
                return a;
            """,
        },
        oracle=oracle,
        inputs=((0,), (1,), (2,), (3,), (6,), (10,)),
    )
