"""Whole numbers: ranges, digits, rules."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, family
from moe.data.synthetic.inputs import INTS, LIMITS
from moe.data.synthetic.parts import (
    COUNT,
    CUBE,
    DIVISIBLE,
    DOUBLE,
    EVEN,
    INT_PREDICATES,
    MINUS,
    NEGATE,
    NUMBER,
    ODD,
    PLUS,
    SAME,
    SQUARE,
    TIMES,
    TRIPLE,
    transformed,
)


@family("numbers", predicate=(EVEN, ODD, *DIVISIBLE), transform=(SAME, SQUARE, CUBE, DOUBLE, TRIPLE))
def sum_up_to(predicate: Part, transform: Part) -> Blueprint:
    chosen = predicate.of("numbers")
    goal = f"the sum of {transformed(transform, chosen)}"
    loop = """
        int total = 0;
        for (int i = 1; i <= @n; i++) {
            if (@pred) {
                total += @out;
            }
        }
        return total;
    """
    return Blueprint(
        texts=(
            f"Return {goal.replace('~', ' from 1 to @n')}.",
            f"Compute {goal.replace('~', ' from 1 to @n')}.",
            f"Add up {goal.removeprefix('the sum of ').replace('~', ' between 1 and @n, both included')}.",
            f"Given a limit @n, return {goal.replace('~', ' from 1 up to and including it')}."
            if not transform.text
            else f"Given @n, return {goal.replace('~', ' from 1 to @n')}.",
        ),
        name=f"sum {transform.name} {predicate.naming('numbers')}",
        arguments={"@n": "int"},
        returns="int",
        nouns=COUNT,
        parts={"pred": (predicate, "i"), "out": (transform, "i")},
        code={
            "python": "return sum(@out for i in range(1, @n + 1) if @pred)",
            "java": loop,
            "javascript": loop.replace("int total", "let total").replace("int i", "let i"),
            "cpp": loop.replace("i++", "++i"),
        },
        oracle=lambda n: sum(transform.apply(i) for i in range(1, n + 1) if predicate.apply(i)),
        inputs=LIMITS,
    )


_BRANCHES = (SQUARE, DOUBLE, NEGATE, PLUS[0], PLUS[2], MINUS[0], TIMES[2])


@family("numbers", predicate=INT_PREDICATES, then=_BRANCHES, otherwise=_BRANCHES,
        allowed=lambda predicate, then, otherwise: then != otherwise)  # fmt: skip
def transform_if(predicate: Part, then: Part, otherwise: Part) -> Blueprint:
    condition = f"it is {predicate.text.removeprefix('of ')}"
    choice = {
        "python": "return @then if @pred else @other",
        "java": "return @pred ? @then : @other;",
        "javascript": "return @pred ? @then : @other;",
        "cpp": "return @pred ? @then : @other;",
    }
    return Blueprint(
        texts=(
            f"Return a @x {then.text} if {condition}, otherwise {otherwise.text}.",
            f"Given a @x, return it {then.text} if {condition} and {otherwise.text} otherwise.",
            f"Take a @x; if {condition}, return it {then.text}, else return it {otherwise.text}.",
        ),
        name=f"{then.name} or {otherwise.name}",
        arguments={"@x": "int"},
        returns="int",
        nouns=NUMBER,
        parts={"pred": (predicate, "@x"), "then": (then, "@x"), "other": (otherwise, "@x")},
        code=choice,
        oracle=lambda x: then.apply(x) if predicate.apply(x) else otherwise.apply(x),
        inputs=INTS,
    )


@family("numbers", first=(2, 3, 4, 5, 7), second=(3, 5, 6, 7, 8, 11), joint=("and", "or", "but not"),
        allowed=lambda first, second, joint: first != second)  # fmt: skip
def count_divisible(first: int, second: int, joint: str) -> Blueprint:
    rule = f"divisible by {first} {joint} by {second}"
    python = {
        "and": f"i % {first} == 0 and i % {second} == 0",
        "or": f"i % {first} == 0 or i % {second} == 0",
        "but not": f"i % {first} == 0 and i % {second} != 0",
    }[joint]
    test = python.replace(" and ", " && ").replace(" or ", " || ")
    loop = f"""
        int count = 0;
        for (int i = 1; i <= @n; i++) {{
            if ({test}) {{
                count++;
            }}
        }}
        return count;
    """
    javascript = loop.replace("int ", "let ").replace("==", "===").replace("!=", "!==")
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
            "java": loop,
            "javascript": javascript,
            "cpp": loop.replace("i++", "++i").replace("count++", "++count"),
        },
        oracle=lambda n: sum(
            1
            for i in range(1, n + 1)
            if {
                "and": i % first == i % second == 0,
                "or": i % first == 0 or i % second == 0,
                "but not": i % first == 0 and i % second > 0,
            }[joint]
        ),
        inputs=LIMITS,
    )
