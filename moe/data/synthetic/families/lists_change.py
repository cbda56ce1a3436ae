"""Lists of whole numbers: changed in part, split, cut, compared with their neighbors."""

from __future__ import annotations

import re

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import INT_LISTS
from moe.data.synthetic.parts import (
    ABSOLUTE,
    AGGREGATES,
    CHANGES,
    DIVISIBLE,
    DOUBLE,
    EVEN,
    INT_PREDICATES,
    NEGATIVE,
    NUMBERS,
    ODD,
    PLUS,
    POSITIVE,
    SAME,
    SQUARE,
    TIMES,
)

_PLACE = {"place": "in a list", "given": "a list of @xs"}


@family("lists", predicate=INT_PREDICATES, transform=CHANGES)
def update_matching(predicate: Part, transform: Part) -> Blueprint:
    return Blueprint(
        texts=(
            f"Return a list in which each @x that {predicate.singular} is {transform.text} and the others stay.",
            f"Given a list of @xs, return it with every @x that {predicate.singular} {transform.text}.",
            f"Copy a list so that each @x that {predicate.singular} is {transform.text}, keeping all others.",
        ),
        name=f"update {predicate.naming('@xs')}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x"), "out": (transform, "@x")},
        code={
            "python": "return [@out if @pred else @x for @x in @xs]",
            "java": """
                return @xs.stream()
                        .map(@x -> @pred ? @out : @x)
                        .collect(Collectors.toList());
            """,
            "javascript": "return @xs.map((@x) => (@pred ? @out : @x));",
            "cpp": """
                std::vector<int> result;
                for (int @x : @xs) {
                    result.push_back(@pred ? @out : @x);
                }
                return result;
            """,
        },
        oracle=lambda xs: [(transform if predicate.apply(x) else SAME).apply(x) for x in xs],
        inputs=INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES, replacement=(0, 1, -1, 100, 99))
def replace_matching(predicate: Part, replacement: int) -> Blueprint:
    chosen = predicate.of("@xs")
    return Blueprint(
        texts=(
            f"Replace the {chosen} in a list by {replacement}.",
            f"Return a copy of a list in which the {chosen} are replaced by {replacement}.",
            f"Given a list of @xs, put {replacement} in place of the {chosen}.",
        ),
        name=f"replace {predicate.naming('@xs')}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f"return [{replacement} if @pred else @x for @x in @xs]",
            "java": f"""
                return @xs.stream()
                        .map(@x -> @pred ? {replacement} : @x)
                        .collect(Collectors.toList());
            """,
            "javascript": f"return @xs.map((@x) => (@pred ? {replacement} : @x));",
            "cpp": f"""
                std::vector<int> result = @xs;
                std::replace_if(result.begin(), result.end(), [](int @x) {{ return @pred; }}, {replacement});
                return result;
            """,
        },
        oracle=lambda xs: [[x, replacement][bool(predicate.apply(x))] for x in xs],
        inputs=INT_LISTS,
    )


_KINDS = (EVEN, ODD, POSITIVE, NEGATIVE, *DIVISIBLE[:4])
_BOUNDS = tuple(part for part in INT_PREDICATES if part.name in ("above", "below", "at least", "at most"))


@family(
    "lists",
    kind=_KINDS,
    bound=_BOUNDS,
    goal=("list", "sum", "count"),
    allowed=lambda kind, bound, goal: (
        kind not in (POSITIVE, NEGATIVE) or (kind is POSITIVE and bound.name in ("below", "at most"))
    ),
)
def two_conditions(kind: Part, bound: Part, goal: str) -> Blueprint:
    chosen = f"{kind.text} @xs {bound.text}" if kind.before else f"@xs that are {kind.text} and {bound.adjective}"
    goals = {
        "list": f"a list of the {chosen}~",
        "sum": f"the sum of the {chosen}~",
        "count": f"the number of {chosen}~",
    }
    verb = {"list": "List", "sum": "Sum", "count": "Count"}[goal]
    python, java, javascript, cpp = {
        "list": (
            "[@x for @x in @xs if @kind and @bound]",
            ".collect(Collectors.toList())",
            "",
            ("std::vector<int> result", "result.push_back(@x)"),
        ),
        "sum": (
            "sum(@x for @x in @xs if @kind and @bound)",
            ".mapToInt(Integer::intValue).sum()",
            ".reduce((total, @x) => total + @x, 0)",
            ("int total = 0", "total += @x"),
        ),
        "count": ("sum(1 for @x in @xs if @kind and @bound)", ".count()", ".length", ("int count = 0", "++count")),
    }[goal]
    start, update = cpp
    return Blueprint(
        texts=(*ask(goals[goal], **_PLACE)[:2], f"{verb} the {chosen} in a list."),
        name=f"{goal} {kind.name if kind.before else ''} {'@xs' if kind.before else kind.name} {bound.name}",
        arguments={"@xs": "list[int]"},
        returns="list[int]" if goal == "list" else "int",
        nouns=NUMBERS,
        parts={"kind": (kind, "@x"), "bound": (bound, "@x")},
        code={
            "python": f"return {python}",
            "java": f"return {'(int) ' if goal == 'count' else ''}@xs.stream().filter(@x -> @kind && @bound){java};",
            "javascript": f"return @xs.filter((@x) => @kind && @bound){javascript};",
            "cpp": f"""
                {start};
                for (int @x : @xs) {{
                    if (@kind && @bound) {{
                        {update};
                    }}
                }}
                return {start.split()[1]};
            """,
        },
        oracle=lambda xs: AGGREGATES[goal](list(filter(bound.apply, filter(kind.apply, xs)))),
        inputs=INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES)
def partition(predicate: Part) -> Blueprint:
    chosen = predicate.of("@xs")
    return Blueprint(
        texts=(
            f"Move the {chosen} of a list to the front and keep the order otherwise.",
            f"Return a list with the {chosen} first and then all others, both in their order.",
            f"Given a list of @xs, put the {chosen} before the rest without changing the order within both.",
        ),
        name=f"{predicate.naming('@xs')} first",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": """
                matching = [@x for @x in @xs if @pred]
                rest = [@x for @x in @xs if not (@pred)]
                return matching + rest
            """,
            "java": """
                List<Integer> result = new ArrayList<>();
                List<Integer> rest = new ArrayList<>();
                for (int @x : @xs) {
                    (@pred ? result : rest).add(@x);
                }
                result.addAll(rest);
                return result;
            """,
            "javascript": """
                const matching = @xs.filter((@x) => @pred);
                const rest = @xs.filter((@x) => !(@pred));
                return [...matching, ...rest];
            """,
            "cpp": """
                std::vector<int> result = @xs;
                std::stable_partition(result.begin(), result.end(), [](int @x) { return @pred; });
                return result;
            """,
        },
        oracle=lambda xs: sorted(xs, key=lambda x: not predicate.apply(x)),
        inputs=INT_LISTS,
    )


@family("lists", predicate=INT_PREDICATES)
def longest_run(predicate: Part) -> Blueprint:
    chosen = predicate.of("@xs")
    loop = """
        int longest = 0;
        int run = 0;
        for (int @x : @xs) {
            run = @pred ? run + 1 : 0;
            longest = Math.max(longest, run);
        }
        return longest;
    """
    return Blueprint(
        texts=(
            f"Return the length of the longest run of consecutive {chosen} in a list.",
            f"Given a list of @xs, find how many {chosen} stand next to each other at most.",
            f"Find the length of the longest unbroken series of {chosen} in a list.",
        ),
        name=f"longest run {predicate.name}",
        arguments={"@xs": "list[int]"},
        returns="int",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": """
                longest = run = 0
                for @x in @xs:
                    run = run + 1 if @pred else 0
                    longest = max(longest, run)
                return longest
            """,
            "java": loop,
            "javascript": loop.replace("int @x :", "const @x of").replace("int ", "let "),
            "cpp": loop.replace("Math.", "std::"),
        },
        oracle=lambda xs: max(
            (j - i for i in range(len(xs)) for j in range(i, len(xs) + 1) if all(map(predicate.apply, xs[i:j]))),
            default=0,
        ),
        inputs=(*INT_LISTS, ([6, 30, 12, 60, 7, 1, 3, 5, -1, -2, -3, 100, 120, 90, 80, 8],)),
    )


_NEIGHBOURS = {  # (words, Python with a and b, C-like, oracle)
    "sums": ("a + b", "a + b", lambda a, b: sum((a, b))),
    "differences": ("b - a", "b - a", lambda a, b: -(a - b)),
    "products": ("a * b", "a * b", lambda a, b: a * b),
    "absolute differences": ("abs(b - a)", "Math.abs(b - a)", lambda a, b: max(a, b) - min(a, b)),
    "maxima": ("max(a, b)", "Math.max(a, b)", lambda a, b: sorted((a, b))[1]),
    "minima": ("min(a, b)", "Math.min(a, b)", lambda a, b: sorted((a, b))[0]),
}


@family("lists", operation=tuple(_NEIGHBOURS), distance=(1, 2, 3))
def neighbours(operation: str, distance: int) -> Blueprint:  # codespell:ignore
    python, other, apply = _NEIGHBOURS[operation]
    pairs = "neighbouring @xs" if distance == 1 else f"@xs that are {distance} places apart"  # codespell:ignore
    first_minus = ", the later minus the earlier one" if operation == "differences" else ""
    java = re.sub(r"\ba\b", f"@xs.get(i - {distance})", re.sub(r"\bb\b", "@xs.get(i)", other))
    brackets = java.replace(".get(i)", "[i]").replace(f".get(i - {distance})", f"[i - {distance}]")
    return Blueprint(
        texts=(
            f"Return a list of the {operation} of {pairs} in a list{first_minus}.",
            f"Given a list of @xs, return the {operation} of all pairs of {pairs}{first_minus}.",
            f"Compute the {operation} of {pairs} in a list{first_minus}.",
        ),
        name=f"{operation} of neighbours",  # codespell:ignore
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS[:2],
        code={
            "python": f"return [{python} for a, b in zip(@xs, @xs[{distance}:])]",
            "java": f"""
                List<Integer> result = new ArrayList<>();
                for (int i = {distance}; i < @xs.size(); i++) {{
                    result.add({java});
                }}
                return result;
            """,
            "javascript": f"""
                const result = [];
                for (let i = {distance}; i < @xs.length; i++) {{
                    result.push({brackets});
                }}
                return result;
            """,
            "cpp": f"""
                std::vector<int> result;
                for (std::size_t i = {distance}; i < @xs.size(); ++i) {{
                    result.push_back({brackets.replace("Math.", "std::")});
                }}
                return result;
            """,
        },
        oracle=lambda xs: [apply(xs[i], xs[i + distance]) for i in range(max(0, len(xs) - distance))],
        inputs=INT_LISTS,
    )


@family("lists", transform=(SAME, SQUARE, DOUBLE, ABSOLUTE, PLUS[0], TIMES[2]), kind=("sums", "maxima", "minima"))
def running(transform: Part, kind: str) -> Blueprint:
    of = f"the {transform.noun} of the @xs" if transform.noun else "the @xs"
    how = f", each {transform.text}" if transform.text and not transform.noun else ""
    what = f"the running {kind} of {of}~{how}"
    start, update, python = {
        "sums": ("0", "current += @out", "current += @out"),
        "maxima": (None, "current = Math.max(current, @out)", "current = max(current, @out)"),
        "minima": (None, "current = Math.min(current, @out)", "current = min(current, @out)"),
    }[kind]
    initial = {
        "python": start or ('float("-inf")' if kind == "maxima" else 'float("inf")'),
        "java": start or f"Integer.{'MIN' if kind == 'maxima' else 'MAX'}_VALUE",
        "javascript": start or ("-Infinity" if kind == "maxima" else "Infinity"),
        "cpp": start or f"INT_{'MIN' if kind == 'maxima' else 'MAX'}",
    }
    return Blueprint(
        texts=ask(what, **_PLACE),
        name=f"running {kind}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        parts={"out": (transform, "@x")},
        code={
            "python": f"""
                current = {initial["python"]}
                result = []
                for @x in @xs:
                    {python}
                    result.append(current)
                return result
            """,
            "java": f"""
                int current = {initial["java"]};
                List<Integer> result = new ArrayList<>();
                for (int @x : @xs) {{
                    {update};
                    result.add(current);
                }}
                return result;
            """,
            "javascript": f"""
                let current = {initial["javascript"]};
                return @xs.map((@x) => {{
                    {update};
                    return current;
                }});
            """,
            "cpp": f"""
                int current = {initial["cpp"]};
                std::vector<int> result;
                for (int @x : @xs) {{
                    {update.replace("Math.", "std::")};
                    result.push_back(current);
                }}
                return result;
            """,
        },
        oracle=lambda xs: [AGGREGATES[kind]([transform.apply(x) for x in xs[: i + 1]]) for i in range(len(xs))],
        inputs=INT_LISTS,
    )
