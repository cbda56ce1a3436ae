"""Pairs of lists of whole numbers, and the different elements of one."""

from __future__ import annotations

import re
from typing import Any

from moe.data.synthetic.family import Blueprint, Part, family
from moe.data.synthetic.inputs import INT_LISTS
from moe.data.synthetic.parts import ABSOLUTE, AGGREGATES, NUMBERS, PAIRWISE, SAME, SQUARE

_PAIRS = {
    "sum": "x + y",
    "difference": "x - y",
    "product": "x * y",
    "larger": "max(x, y)",
    "smaller": "min(x, y)",
}
_LOOP = """
    DECLARE;
    for (int i = 0; i < a.SIZE; i++) {
        int value = VALUE;
        UPDATE;
    }
    return NAME;
"""


@family("lists", operation=tuple(_PAIRS), goal=("list", "sum", "maximum"), transform=(SAME, SQUARE, ABSOLUTE))
def combine_lists(operation: str, goal: str, transform: Part) -> Blueprint:
    expression, apply = _PAIRS[operation], PAIRWISE[operation]
    of = {"larger": "larger ones", "smaller": "smaller ones"}.get(operation, f"{operation}s")
    how = f", each {transform.text}" if transform.text else ""
    what = f"{'a' if goal == 'list' else 'the'} {goal} of the {of} of the elements of"
    declare, update = {
        "list": ("List<Integer> result = new ArrayList<>()", "result.add(OUT)"),
        "sum": ("int total = 0", "total += OUT"),
        "maximum": ("int largest = Integer.MIN_VALUE", "largest = Math.max(largest, OUT)"),
    }[goal]
    loop = _LOOP.replace("DECLARE", declare).replace("UPDATE", update).replace("NAME", declare.split()[1])
    loop = loop.replace("OUT", "@out")
    if transform is SAME:
        loop = re.sub(r" *int value.*\n", "", loop).replace("@out", "VALUE")
    items = re.sub(r"\b(x|y)\b", lambda match: {"x": "a[i]", "y": "b[i]"}[match[0]], expression)
    gets = re.sub(r"\b(x|y)\b", lambda match: {"x": "a.get(i)", "y": "b.get(i)"}[match[0]], expression)
    items, gets = (re.sub(r"(?=\b(?:max|min)\()", "Math.", value) for value in (items, gets))
    declarations = {"list": "const result = []", "sum": "let total = 0", "maximum": "let largest = -Infinity"}
    javascript = loop.replace(declare, declarations[goal]).replace("int value", "const value").replace("int i", "let i")
    javascript = javascript.replace("add(", "push(").replace("SIZE", "length").replace(" VALUE", f" {items}")
    cpp = loop.replace("List<Integer> result = new ArrayList<>()", "std::vector<int> result")
    cpp = cpp.replace("Integer.MIN_VALUE", "INT_MIN").replace("add(", "push_back(").replace("int i", "std::size_t i")
    cpp = cpp.replace("i++", "++i").replace("SIZE", "size()").replace("int value", "const int value")
    inner = expression if transform is SAME or "(" in expression or transform is ABSOLUTE else f"({expression})"
    out = transform.render("python", inner)
    return Blueprint(
        texts=(
            f"Return {what} lists a and b at each position{how}.",
            f"Given two lists a and b of equal length, return {what} both at each position{how}.",
        ),
        name=f"{goal.replace('maximum', 'max')} of {of.replace(' ones', '')}",
        arguments={"a": "list[int]", "b": "list[int]"},
        returns="list[int]" if goal == "list" else "int",
        nouns=({},),
        parts={"out": (transform, "value")},
        code={
            "python": f"return [{out} for x, y in zip(a, b)]"
            if goal == "list"
            else f"return {goal.replace('maximum', 'max')}({out} for x, y in zip(a, b))",
            "java": _with(loop, gets).replace("SIZE", "size()"),
            "javascript": _with(javascript, items),
            "cpp": _with(cpp, items).replace("Math.", "std::"),
        },
        oracle=lambda a, b: AGGREGATES[goal]([transform.apply(apply(a[i], b[i])) for i in range(len(a))]),
        inputs=(([4], [6]), ([1, 2, 3], [4, 5, 6]), ([3, -5, 0, 12, -7], [-2, 8, 9, -4, -7]), ([-9, -1], [-3, -2])),
    )


def _with(loop: str, value: str) -> str:
    return re.sub(r"\bVALUE\b", value, loop)


@family("lists", goal=("dedupe", "sorted", "count", "sum", "repeated", "once"))
def distinct(goal: str) -> Blueprint:
    texts = {
        "dedupe": (
            "Remove repeated @xs from a list, keeping the first of each in order.",
            "Given a list of @xs, return each different @x once, in order of first appearance.",
        ),
        "sorted": (
            "Return the different @xs in a list in ascending order.",
            "Given a list of @xs, return its different @xs sorted from the smallest to the largest.",
        ),
        "count": ("Count the different @xs in a list.", "Return how many different @xs a list has."),
        "sum": (
            "Return the sum of the different @xs in a list, each counted once.",
            "Given a list of @xs, add up each different @x once.",
        ),
        "repeated": (
            "Return the @xs that occur more than once in a list, in ascending order, each once.",
            "Given a list of @xs, return in ascending order those that occur at least twice.",
        ),
        "once": (
            "Return the @xs that occur exactly once in a list, in their order.",
            "Given a list of @xs, keep only those that occur a single time.",
        ),
    }[goal]
    python, java, javascript, cpp = {
        "dedupe": (
            "return list(dict.fromkeys(@xs))",
            "return @xs.stream().distinct().collect(Collectors.toList());",
            "return [...new Set(@xs)];",
            """
                std::set<int> seen;
                std::vector<int> result;
                for (int @x : @xs) {
                    if (seen.insert(@x).second) {
                        result.push_back(@x);
                    }
                }
                return result;
            """,
        ),
        "sorted": (
            "return sorted(set(@xs))",
            "return @xs.stream().distinct().sorted().collect(Collectors.toList());",
            "return [...new Set(@xs)].sort((a, b) => a - b);",
            """
                const std::set<int> different(@xs.begin(), @xs.end());
                return {different.begin(), different.end()};
            """,
        ),
        "count": (
            "return len(set(@xs))",
            "return new HashSet<>(@xs).size();",
            "return new Set(@xs).size;",
            """
                const std::set<int> different(@xs.begin(), @xs.end());
                return different.size();
            """,
        ),
        "sum": (
            "return sum(set(@xs))",
            "return @xs.stream().distinct().mapToInt(Integer::intValue).sum();",
            "return [...new Set(@xs)].reduce((total, @x) => total + @x, 0);",
            """
                const std::set<int> different(@xs.begin(), @xs.end());
                return std::accumulate(different.begin(), different.end(), 0);
            """,
        ),
        "repeated": (
            "return sorted({@x for @x in @xs if @xs.count(@x) > 1})",
            """
                return @xs.stream()
                        .filter(@x -> Collections.frequency(@xs, @x) > 1)
                        .distinct()
                        .sorted()
                        .collect(Collectors.toList());
            """,
            """
                const repeated = @xs.filter((@x, i) => @xs.indexOf(@x) !== i);
                return [...new Set(repeated)].sort((a, b) => a - b);
            """,
            """
                std::map<int, int> counts;
                for (int @x : @xs) {
                    ++counts[@x];
                }
                std::vector<int> result;
                for (const auto& [@x, count] : counts) {
                    if (count > 1) {
                        result.push_back(@x);
                    }
                }
                return result;
            """,
        ),
        "once": (
            "return [@x for @x in @xs if @xs.count(@x) == 1]",
            """
                return @xs.stream()
                        .filter(@x -> Collections.frequency(@xs, @x) == 1)
                        .collect(Collectors.toList());
            """,
            "return @xs.filter((@x) => @xs.indexOf(@x) === @xs.lastIndexOf(@x));",
            """
                std::vector<int> result;
                for (int @x : @xs) {
                    if (std::count(@xs.begin(), @xs.end(), @x) == 1) {
                        result.push_back(@x);
                    }
                }
                return result;
            """,
        ),
    }[goal]

    def oracle(xs: list[int]) -> Any:
        firsts = [x for i, x in enumerate(xs) if x not in xs[:i]]
        return {
            "dedupe": firsts,
            "sorted": sorted(firsts),
            "count": len(firsts),
            "sum": sum(firsts),
            "repeated": sorted(x for x in firsts if sum(x == y for y in xs) > 1),
            "once": [x for x in firsts if sum(x == y for y in xs) == 1],
        }[goal]

    names = {
        "dedupe": "remove duplicates",
        "sorted": "sorted distinct",
        "count": "count distinct",
        "sum": "sum distinct",
    }
    return Blueprint(
        texts=texts,
        name=names.get(goal, {"repeated": "repeated @xs", "once": "unique @xs"}.get(goal, "")),
        arguments={"@xs": "list[int]"},
        returns="int" if goal in ("count", "sum") else "list[int]",
        nouns=NUMBERS,
        code={"python": python, "java": java, "javascript": javascript, "cpp": cpp},
        oracle=oracle,
        inputs=(*INT_LISTS, ([5, 3, 5, 1, 3, 9, 5],), ([2, 2, 2],), ([9, 8, 8, 7, -1, -1],)),
    )
