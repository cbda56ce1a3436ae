"""Lists of whole numbers: order and position."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, ask, family, same_code
from moe.data.synthetic.inputs import INT_LISTS
from moe.data.synthetic.parts import AGGREGATES, EVEN, NUMBERS, ODD, POSITIVE

_PLACE = {"place": "in a list", "given": "a list of @xs"}
_ANY = Part("any", "", "", same_code(""), lambda v: True, before=True)


@family("lists", size=(1, 2, 3, 4, 5), extreme=("largest", "smallest"), predicate=(_ANY, EVEN, ODD, POSITIVE))
def top_numbers(size: int, extreme: str, predicate: Part) -> Blueprint:
    what = f"the {size} {extreme} {predicate.of('@xs')}~, the {extreme} first".replace("the 1 ", "a list of just the ")
    down = extreme == "largest"
    chosen = {
        "python": "(@x for @x in @xs if @pred)" if predicate.text else "@xs",
        "java": ".filter(@x -> @pred)" if predicate.text else "",
        "javascript": "@xs.filter((@x) => @pred)" if predicate.text else "[...@xs]",
    }
    order = "b - a" if down else "a - b"
    comparator = "Comparator.reverseOrder()" if down else ""
    erase = "std::erase_if(result, [](int @x) { return !(@pred); });" if predicate.text else ""
    return Blueprint(
        texts=ask(what, **_PLACE, verb="Find"),
        name=f"{extreme} {predicate.naming('@xs')}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f"return sorted({chosen['python']}{', reverse=True' if down else ''})[:{size}]",
            "java": f"""
                return @xs.stream()
                        {chosen["java"]}
                        .sorted({comparator})
                        .limit({size})
                        .collect(Collectors.toList());
            """,
            "javascript": f"return {chosen['javascript']}.sort((a, b) => {order}).slice(0, {size});",
            "cpp": f"""
                std::vector<int> result = @xs;
                {erase}
                std::sort(result.begin(), result.end(){", std::greater<>()" if down else ""});
                if (result.size() > {size}) {{
                    result.resize({size});
                }}
                return result;
            """,
        },
        oracle=lambda xs: [s * x for s in [-1 if down else 1] for x in sorted(s * x for x in xs if predicate.apply(x))][
            :size
        ],
        inputs=INT_LISTS,
    )


_SORT_KEYS = (
    ("value", "@x", "by value"),
    ("absolute", "Math.abs(@x)", "by absolute value"),
    ("last digit", "@x % 10", "by last digit"),
    ("remainder 3", "@x % 3", "by the remainder after division by 3"),
    ("remainder 7", "@x % 7", "by the remainder after division by 7"),
    ("distance 10", "Math.abs(@x - 10)", "by distance to 10"),
    ("distance 25", "Math.abs(@x - 25)", "by distance to 25"),
)


@family("lists", key=_SORT_KEYS, descending=(False, True))
def sort_numbers(key: tuple[str, str, str], descending: bool) -> Blueprint:
    kind, expression, said = key
    positive = "non-negative " if "%" in expression else ""
    direction = "from the largest to the smallest" if descending else "from the smallest to the largest"
    ties = "" if kind == "value" else ", equal ones in their order"
    python = expression.replace("Math.", "")
    function = "" if kind == "value" else f", key=lambda @x: {python}"
    left, right = (expression.replace("@x", v) for v in ("a", "b"))
    higher, lower = (right, left) if descending else (left, right)
    if kind == "value":
        comparator = "Comparator.reverseOrder()" if descending else ""
        java = f"return @xs.stream().sorted({comparator}).collect(Collectors.toList());"
    else:
        java = f"""
            List<Integer> result = new ArrayList<>(@xs);
            result.sort((a, b) -> Integer.compare({higher}, {lower}));
            return result;
        """
    cpp = f"""
        std::vector<int> result = @xs;
        std::stable_sort(result.begin(), result.end(), [](int a, int b) {{
            return {higher.replace("Math.", "std::")} < {lower.replace("Math.", "std::")};
        }});
        return result;
    """
    if kind == "value":
        cpp = f"""
            std::vector<int> result = @xs;
            std::sort(result.begin(), result.end(){", std::greater<>()" if descending else ""});
            return result;
        """
    reverse = ", reverse=True" if descending else ""
    measure = {
        "value": lambda x: x,
        "absolute": abs,
        "last digit": lambda x: int(str(x)[-1]),
        "remainder 3": lambda x: x - x // 3 * 3,
        "remainder 7": lambda x: x - x // 7 * 7,
        "distance 10": lambda x: max(x - 10, 10 - x),
        "distance 25": lambda x: max(x - 25, 25 - x),
    }[kind]

    def oracle(xs: list[int]) -> list[int]:
        result: list[int] = []
        sign = -1 if descending else 1
        for x in xs:  # insertion sort, stable in both directions
            place = len(result)
            while place and sign * measure(result[place - 1]) > sign * measure(x):
                place -= 1
            result.insert(place, x)
        return result

    inputs = INT_LISTS if not positive else tuple(([abs(x) for x in xs],) for (xs,) in INT_LISTS)
    return Blueprint(
        texts=(
            f"Return a list of {positive}@xs sorted {said} {direction}{ties}.",
            f"Sort a list of {positive}@xs {said} {direction}{ties}.",
            f"Given a list of {positive}@xs, return it sorted {said}, {direction}{ties}.",
        ),
        name=f"sort {said.replace('the remainder after division by', 'remainder')}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        code={
            "python": f"return sorted(@xs{function}{reverse})",
            "java": java,
            "javascript": f"return [...@xs].sort((a, b) => {higher} - {lower});",
            "cpp": cpp,
        },
        oracle=oracle,
        inputs=inputs,
    )


@family("lists", direction=("left", "right"), places=(1, 2, 3, 4, 5))
def rotate(direction: str, places: int) -> Blueprint:
    by = f"{places} {'place' if places == 1 else 'places'}"
    distance = f"{places} % @xs.size()"
    left = direction == "left"
    java = f"Collections.rotate(result, {'-' if left else ''}{places});"
    cut = "shift" if left else "@xs.length - shift"
    cpp_cut = "result.begin() + shift" if left else "result.end() - shift"
    return Blueprint(
        texts=(
            f"Rotate a list of @xs to the {direction} by {by}.",
            f"Return a list of @xs rotated by {by} to the {direction}; elements leaving one end enter at the other.",
            f"Given a list of @xs, move each element {by} to the {direction}, wrapping around.",
        ),
        name=f"rotate {direction}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS,
        code={
            "python": f"""
                if not @xs:
                    return []
                shift = {places} % len(@xs)
                return @xs[{"shift" if left else "-shift"}:] + @xs[:{"shift" if left else "-shift"}]
            """,
            "java": f"""
                List<Integer> result = new ArrayList<>(@xs);
                {java}
                return result;
            """,
            "javascript": f"""
                const shift = {places} % Math.max(@xs.length, 1);
                return [...@xs.slice({cut}), ...@xs.slice(0, {cut})];
            """,
            "cpp": f"""
                std::vector<int> result = @xs;
                if (!result.empty()) {{
                    const int shift = {distance};
                    std::rotate(result.begin(), {cpp_cut}, result.end());
                }}
                return result;
            """,
        },
        oracle=lambda xs: [xs[(i + (places if left else -places)) % len(xs)] for i in range(len(xs))],
        inputs=(*INT_LISTS, ([1, 2, 3],), ([1, 2, 3, 4, 5, 6],)),
    )


@family("lists", size=(2, 3, 4, 5), goal=("sums", "maxima", "minima"), overlap=(True, False))
def windows(size: int, goal: str, overlap: bool) -> Blueprint:
    part = f"{size} consecutive @xs" if overlap else f"each block of {size} @xs"
    blocks = f"every window of {part}" if overlap else part
    last = "" if overlap else ", the last block possibly shorter"
    function = {"sums": "sum", "maxima": "max", "minima": "min"}[goal]
    bounds = f"range(len(@xs) - {size - 1})" if overlap else f"range(0, len(@xs), {size})"
    step = "i++" if overlap else f"i += {size}"
    test = f"i + {size} <= SIZE" if overlap else "i < SIZE"
    end = f"i + {size}" if overlap else f"Math.min(i + {size}, SIZE)"
    java_end = {"sums": "mapToInt(Integer::intValue).sum()", "maxima": "max(Integer::compare).get()"}.get(
        goal, "min(Integer::compare).get()"
    )
    javascript_end = {
        "sums": "window.reduce((total, @x) => total + @x, 0)",
        "maxima": "Math.max(...window)",
        "minima": "Math.min(...window)",
    }[goal]
    cpp_end = {
        "sums": "std::accumulate(first, last, 0)",
        "maxima": "*std::max_element(first, last)",
        "minima": "*std::min_element(first, last)",
    }[goal]
    cpp_last = f"first + {size}" if overlap else f"@xs.begin() + std::min(i + {size}, @xs.size())"
    cpp_step = "++i" if overlap else step
    return Blueprint(
        texts=(
            f"Return a list of the {goal} of {blocks} in a list{last}.",
            f"Given a list of @xs, return the {goal} of {blocks}{last}.",
            f"Compute the {goal} of {blocks} of a list{last}.",
        ),
        name=f"{'window' if overlap else 'block'} {goal}",
        arguments={"@xs": "list[int]"},
        returns="list[int]",
        nouns=NUMBERS[:2],
        code={
            "python": f"return [{function}(@xs[i:i + {size}]) for i in {bounds}]",
            "java": f"""
                List<Integer> result = new ArrayList<>();
                for (int i = 0; {test}; {step}) {{
                    result.add(@xs.subList(i, {end}).stream().{java_end});
                }}
                return result;
            """.replace("SIZE", "@xs.size()"),
            "javascript": f"""
                const result = [];
                for (let i = 0; {test}; {step}) {{
                    const window = @xs.slice(i, i + {size});
                    result.push({javascript_end});
                }}
                return result;
            """.replace("SIZE", "@xs.length"),
            "cpp": f"""
                std::vector<int> result;
                for (std::size_t i = 0; {test}; {cpp_step}) {{
                    const auto first = @xs.begin() + i;
                    const auto last = {cpp_last};
                    result.push_back({cpp_end});
                }}
                return result;
            """.replace("SIZE", "@xs.size()"),
        },
        oracle=lambda xs: [
            AGGREGATES[goal](xs[i : i + size])
            for i in range(len(xs))
            if (i + size <= len(xs) if overlap else i % size == 0)
        ],
        inputs=(*INT_LISTS, ([1, 2, 3, 4, 5, 6],)),
    )


@family("lists", size=(2, 3, 4, 5, 6), drop=(False, True))
def chunk(size: int, drop: bool) -> Blueprint:
    rest = "dropping an incomplete last one" if drop else "the last one possibly shorter"
    test = f"i + {size} <= SIZE" if drop else "i < SIZE"
    bounds = f"range(0, len(@xs) - {size - 1}, {size})" if drop else f"range(0, len(@xs), {size})"
    java_end = f"i + {size}" if drop else f"Math.min(i + {size}, @xs.size())"
    cpp_end = f"@xs.begin() + i + {size}" if drop else f"@xs.begin() + std::min(i + {size}, @xs.size())"
    return Blueprint(
        texts=(
            f"Split a list of @xs into chunks of {size}, {rest}.",
            f"Return a list of lists of {size} consecutive @xs each, {rest}.",
            f"Given a list of @xs, cut it into pieces of length {size}, {rest}.",
        ),
        name=f"split into {size}",
        arguments={"@xs": "list[int]"},
        returns="list[list[int]]",
        nouns=NUMBERS,
        code={
            "python": f"return [@xs[i:i + {size}] for i in {bounds}]",
            "java": f"""
                List<List<Integer>> chunks = new ArrayList<>();
                for (int i = 0; {test}; i += {size}) {{
                    chunks.add(@xs.subList(i, {java_end}));
                }}
                return chunks;
            """.replace("SIZE", "@xs.size()"),
            "javascript": f"""
                const chunks = [];
                for (let i = 0; {test}; i += {size}) {{
                    chunks.push(@xs.slice(i, i + {size}));
                }}
                return chunks;
            """.replace("SIZE", "@xs.length"),
            "cpp": f"""
                std::vector<std::vector<int>> chunks;
                for (std::size_t i = 0; {test}; i += {size}) {{
                    chunks.emplace_back(@xs.begin() + i, {cpp_end});
                }}
                return chunks;
            """.replace("SIZE", "@xs.size()"),
        },
        oracle=lambda xs: [
            [x for j, x in enumerate(xs) if j // size == block]
            for block in range(len(xs) // size if drop else (len(xs) + size - 1) // size)
        ],
        inputs=(*INT_LISTS, ([1, 2, 3, 4, 5, 6],), ([1, 2, 3, 4, 5, 6, 7],)),
    )


@family("lists", start=(0, 1, 2, 3), step=(2, 3, 4, 5), goal=("list", "sum", "largest"))
def every_kth(start: int, step: int, goal: str) -> Blueprint:
    ordinal = {2: "second", 3: "third", 4: "fourth", 5: "fifth"}[step]
    chosen = f"every {ordinal} @x~, starting at index {start}"
    what = {"list": f"a list of {chosen}", "sum": f"the sum of {chosen}"}.get(
        goal, f"the largest of {chosen}, or 0 if there is none"
    )
    python = {"list": "return @xs[SLICE]", "sum": "return sum(@xs[SLICE])"}.get(
        goal, "return max(@xs[SLICE], default=0)"
    )
    declare, update, name = {
        "list": ("List<Integer> result = new ArrayList<>()", "result.add(ITEM)", "result"),
        "sum": ("int total = 0", "total += ITEM", "total"),
        "largest": ("int largest = SIZE > START ? FIRST : 0", "largest = Math.max(largest, ITEM)", "largest"),
    }[goal]
    template = (
        """
        DECLARE;
        for (int i = START; i < SIZE; i += STEP) {
            UPDATE;
        }
        return NAME;
    """.replace("DECLARE", declare)
        .replace("UPDATE", update)
        .replace("NAME", name)
    )
    template = template.replace("START", str(start)).replace("STEP", str(step))
    java = template.replace("SIZE", "@xs.size()").replace("ITEM", "@xs.get(i)").replace("FIRST", f"@xs.get({start})")
    javascript = template.replace("SIZE", "@xs.length").replace("ITEM", "@xs[i]").replace("FIRST", f"@xs[{start}]")
    javascript = (
        javascript.replace("List<Integer> result = new ArrayList<>()", "const result = []")
        .replace("add(", "push(")
        .replace("int ", "let ")
    )
    cpp = template.replace("SIZE", "@xs.size()").replace("ITEM", "@xs[i]").replace("FIRST", f"@xs[{start}]")
    cpp = cpp.replace("List<Integer> result = new ArrayList<>()", "std::vector<int> result").replace(
        "add(", "push_back("
    )
    cpp = cpp.replace("Math.", "std::").replace("int i", "std::size_t i")
    return Blueprint(
        texts=ask(what, **_PLACE),
        name=f"{goal} every {ordinal}" if goal != "list" else f"every {ordinal}",
        arguments={"@xs": "list[int]"},
        returns="list[int]" if goal == "list" else "int",
        nouns=NUMBERS,
        code={
            "python": python.replace("SLICE", f"{start or ''}::{step}"),
            "java": java,
            "javascript": javascript,
            "cpp": cpp,
        },
        oracle=lambda xs: AGGREGATES[goal](
            [x for i, x in enumerate(xs) if i in range(start, 1000, step)] or [0] * (goal == "largest")
        ),
        inputs=(*INT_LISTS, ([-5, -6, -7, -8, -9],)),
    )
