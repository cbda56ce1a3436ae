"""Lists of whole numbers: choose elements by a predicate, then transform or aggregate them."""

from __future__ import annotations

import statistics

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import INT_LISTS, PICKED_INT_LISTS
from moe.data.synthetic.parts import (
    ABSOLUTE,
    DOUBLE,
    INT_PREDICATES,
    INT_TRANSFORMS,
    MAYBE_TRANSFORMS,
    NUMBERS,
    SAME,
    SQUARE,
    transformed,
)

_PLACE = {"place": "in a list", "given": "a list of @xs"}


@family("lists", predicate=INT_PREDICATES, transform=MAYBE_TRANSFORMS)
def sum_matching(predicate: Part, transform: Part) -> Blueprint:
    chosen = predicate.of("@xs")
    return Blueprint(
        texts=ask(f"the sum of {transformed(transform, chosen)}", **_PLACE),
        name=f"sum {transform.name} {predicate.naming('@xs')}",
        arguments={"@xs": "list[int]"},
        returns="int",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x"), "out": (transform, "@x")},
        code={
            "python": "return sum(@out for @x in @xs if @pred)",
            "java": """
                int total = 0;
                for (int @x : @xs) {
                    if (@pred) {
                        total += @out;
                    }
                }
                return total;
            """,
            "javascript": """
                return @xs
                    .filter((@x) => @pred)
                    .reduce((total, @x) => total + @out, 0);
            """,
            "cpp": """
                int total = 0;
                for (int @x : @xs) {
                    if (@pred) {
                        total += @out;
                    }
                }
                return total;
            """,
        },
        oracle=lambda xs: sum(transform.apply(x) for x in xs if predicate.apply(x)),
        inputs=INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES, keep=(True, False))
def filter_numbers(predicate: Part, keep: bool) -> Blueprint:
    chosen = predicate.of("@xs")
    if keep:
        texts = (
            *ask(f"only the {chosen}~, in order", place="of a list", given="a list of @xs", verb="Select"),
            f"Keep only the {chosen} of a list, in their order.",
        )
    else:
        texts = (
            f"Remove the {chosen} from a list and return the rest.",
            f"Return a copy of a list without the {chosen}.",
            f"Given a list of @xs, drop the {chosen} and return the others in order.",
            f"Return all elements of a list of @xs except the {chosen}.",
        )
    negation = {"python": "not (@pred)", "other": "!(@pred)"}
    test = {"python": "@pred", "other": "@pred"} if keep else negation
    return Blueprint(
        texts=texts,
        name=f"{'keep' if keep else 'remove'} {predicate.naming('@xs')}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f"return [@x for @x in @xs if {test['python']}]",
            "java": f"return @xs.stream().filter(@x -> {test['other']}).collect(Collectors.toList());",
            "javascript": f"return @xs.filter((@x) => {test['other']});",
            "cpp": f"""
                std::vector<int> result;
                for (int @x : @xs) {{
                    if ({test["other"]}) {{
                        result.push_back(@x);
                    }}
                }}
                return result;
            """,
        },
        oracle=lambda xs: [x for x in xs if bool(predicate.apply(x)) == keep],
        inputs=INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES, transform=INT_TRANSFORMS)
def map_matching(predicate: Part, transform: Part) -> Blueprint:
    chosen = predicate.of("@xs")
    return Blueprint(
        texts=ask(f"a list of {transformed(transform, chosen)}", **_PLACE, verb="Build"),
        name=f"{transform.name} {predicate.naming('@xs')}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x"), "out": (transform, "@x")},
        code={
            "python": "return [@out for @x in @xs if @pred]",
            "java": """
                return @xs.stream()
                        .filter(@x -> @pred)
                        .map(@x -> @out)
                        .collect(Collectors.toList());
            """,
            "javascript": "return @xs.filter((@x) => @pred).map((@x) => @out);",
            "cpp": """
                std::vector<int> result;
                for (int @x : @xs) {
                    if (@pred) {
                        result.push_back(@out);
                    }
                }
                return result;
            """,
        },
        oracle=lambda xs: [transform.apply(x) for x in xs if predicate.apply(x)],
        inputs=INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES, quantifier=("all", "any", "none"))
def quantified(predicate: Part, quantifier: str) -> Blueprint:
    claim = {
        "all": f"all @xs~ {predicate.plural}",
        "any": f"any @x~ {predicate.singular}",
        "none": f"no @x~ {predicate.singular}",
    }[quantifier]
    placed, bare = claim.replace("~", " in a list"), claim.replace("~", "")
    python = {"all": "all(@pred", "any": "any(@pred", "none": "not any(@pred"}[quantifier]
    match = {"all": ("all", "every", "all_of"), "any": ("any", "some", "any_of"), "none": ("none", "some", "none_of")}
    java, javascript, cpp = match[quantifier]
    return Blueprint(
        texts=(
            f"Check whether {placed}.",
            f"Return true if {placed}, otherwise false.",
            f"Given a list of @xs, tell whether {bare}.",
            f"Tell if {placed}.",
        ),
        name=f"{quantifier} {predicate.name}",
        arguments={"@xs": "list[int]"},
        returns="bool",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f"return {python} for @x in @xs)",
            "java": f"return @xs.stream().{java}Match(@x -> @pred);",
            "javascript": f"return {'!' if quantifier == 'none' else ''}@xs.{javascript}((@x) => @pred);",
            "cpp": f"return std::{cpp}(@xs.begin(), @xs.end(), [](int @x) {{ return @pred; }});",
        },
        oracle=lambda xs: {"all": all, "any": any, "none": lambda found: not any(found)}[quantifier](
            predicate.apply(x) for x in xs
        ),
        inputs=(
            *INT_LISTS,
            ([2, 4, 20],),
            ([3, 9, 15],),
            ([-2, -7],),
            ([60, 120],),
            ([12, 60, 420],),
            ([7, 8, 1],),
            ([10, 30, 50],),
            ([4, 8, 16],),
            ([51, 77],),
            ([6, 11],),
            ([1, -1, 0],),
        ),
    )


@family("lists", predicate=INT_PREDICATES)
def count_matching(predicate: Part) -> Blueprint:
    chosen = predicate.of("@xs")
    return Blueprint(
        texts=(
            f"Count the {chosen} in a list.",
            f"Return the number of {chosen} in a list.",
            f"Given a list of @xs, return how many {predicate.plural}.",
            f"Find out how many {chosen} there are in a list.",
        ),
        name=f"count {predicate.naming('@xs')}",
        arguments={"@xs": "list[int]"},
        returns="int",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": "return sum(1 for @x in @xs if @pred)",
            "java": "return (int) @xs.stream().filter(@x -> @pred).count();",
            "javascript": "return @xs.filter((@x) => @pred).length;",
            "cpp": "return std::count_if(@xs.begin(), @xs.end(), [](int @x) { return @pred; });",
        },
        oracle=lambda xs: len([x for x in xs if predicate.apply(x)]),
        inputs=INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES, extreme=("largest", "smallest"), default=(0, -1))
def extreme_matching(predicate: Part, extreme: str, default: int) -> Blueprint:
    function = "max" if extreme == "largest" else "min"
    chosen = f"the {extreme} of the {predicate.of('@xs')}~, or {default} if there are none"
    return Blueprint(
        texts=ask(chosen, **_PLACE, verb="Find"),
        name=f"{extreme} {predicate.naming('@x')}",
        arguments={"@xs": "list[int]"},
        returns="int",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f"return {function}((@x for @x in @xs if @pred), default={default})",
            "java": f"""
                return @xs.stream()
                        .filter(@x -> @pred)
                        .{function}(Integer::compare)
                        .orElse({default});
            """,
            "javascript": f"""
                const matching = @xs.filter((@x) => @pred);
                return matching.length > 0 ? Math.{function}(...matching) : {default};
            """,
            "cpp": f"""
                std::vector<int> matching;
                for (int @x : @xs) {{
                    if (@pred) {{
                        matching.push_back(@x);
                    }}
                }}
                if (matching.empty()) {{
                    return {default};
                }}
                return *std::{function}_element(matching.begin(), matching.end());
            """,
        },
        oracle=lambda xs: ([default] + sorted(filter(predicate.apply, xs), reverse=extreme == "smallest"))[-1],
        inputs=PICKED_INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES, transform=(SAME, SQUARE, ABSOLUTE, DOUBLE))
def average_matching(predicate: Part, transform: Part) -> Blueprint:
    chosen = f"the average of {transformed(transform, predicate.of('@xs'))}, or 0 if there are none"
    average = """
        double total = 0;
        int count = 0;
        for (int @x : @xs) {
            if (@pred) {
                total += @out;
                COUNT;
            }
        }
        return count == 0 ? 0 : total / count;
    """
    return Blueprint(
        texts=ask(chosen, **_PLACE),
        name=f"average {transform.name} {predicate.naming('@xs')}",
        arguments={"@xs": "list[int]"},
        returns="float",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x"), "out": (transform, "@x")},
        code={
            "python": """
                matching = [@out for @x in @xs if @pred]
                return sum(matching) / len(matching) if matching else 0
            """,
            "java": """
                return @xs.stream()
                        .filter(@x -> @pred)
                        .mapToInt(@x -> @out)
                        .average()
                        .orElse(0);
            """,
            "javascript": """
                const matching = @xs.filter((@x) => @pred).map((@x) => @out);
                const total = matching.reduce((sum, @x) => sum + @x, 0);
                return matching.length > 0 ? total / matching.length : 0;
            """
            if transform.text
            else """
                const matching = @xs.filter((@x) => @pred);
                const total = matching.reduce((sum, @x) => sum + @x, 0);
                return matching.length > 0 ? total / matching.length : 0;
            """,
            "cpp": average.replace("COUNT", "++count"),
        },
        oracle=lambda xs: statistics.fmean([transform.apply(x) for x in xs if predicate.apply(x)] or [0.0]),
        inputs=INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES, side=("first", "last"), goal=("0", "-1", "index"))
def find_matching(predicate: Part, side: str, goal: str) -> Blueprint:
    index = goal == "index"
    chosen = predicate.of("@x").replace("that are", "that is")
    what = f"the index of the {side} {chosen}~, or -1 if there is none"
    if not index:
        what = f"the {side} {chosen}~, or {goal} if there is none"
    order = {
        ("first", True): "for i, @x in enumerate(@xs):",
        ("first", False): "for @x in @xs:",
        ("last", True): "for i in range(len(@xs) - 1, -1, -1):",
        ("last", False): "for @x in reversed(@xs):",
    }[side, index]
    default = "-1" if index else goal
    ahead = side == "first"
    found, python_found = ("i", "i") if index else ("@xs.get(i)", "@x")
    loop = f"for (int i = {'0; i < @xs.size(); i++' if ahead else '@xs.size() - 1; i >= 0; i--'})"
    array = "findIndex" if ahead else "findLastIndex"
    javascript = (
        f"return @xs.{array}((@x) => @pred);" if index else f"return @xs.{array[:-5]}((@x) => @pred) ?? {goal};"
    )
    iterators = "@xs.begin(), @xs.end()" if ahead else "@xs.rbegin(), @xs.rend()"
    position = "found - @xs.begin()" if ahead else "@xs.rend() - found - 1"
    end = "@xs.end()" if ahead else "@xs.rend()"
    return Blueprint(
        texts=ask(what, **_PLACE, verb="Find"),
        name=f"{side} index {predicate.name}" if index else f"{side} {predicate.naming('@x')}",
        arguments={"@xs": "list[int]"},
        returns="int",
        nouns=NUMBERS,
        parts={
            "pred": (predicate, "@x"),
            "python_pred": (predicate, "@xs[i]" if index and not ahead else "@x"),
            "java_pred": (predicate, "@xs.get(i)"),
        },
        code={
            "python": f"""
                {order}
                    if @python_pred:
                        return {python_found}
                return {default}
            """,
            "java": f"""
                {loop} {{
                    if (@java_pred) {{
                        return {found};
                    }}
                }}
                return {default};
            """,
            "javascript": javascript,
            "cpp": f"""
                const auto matches = [](int @x) {{ return @pred; }};
                const auto found = std::find_if({iterators}, matches);
                return found == {end} ? {default} : {position if index else "*found"};
            """,
        },
        oracle=lambda xs: (
            [int(default)]
            + [i if index else x for i, x in list(enumerate(xs))[:: -1 if ahead else 1] if predicate.apply(x)]
        )[-1],
        inputs=PICKED_INT_LISTS,
    )
