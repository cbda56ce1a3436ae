"""Maps built from lists."""

from __future__ import annotations

from typing import Any

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import INT_LISTS, WORD_LISTS
from moe.data.synthetic.parts import AGGREGATES, INT_PREDICATES, NUMBERS, STR_PREDICATES, WORDS

_REPEATED = (["stone", "apple", "boy", "stone", "at", "boy", "tea", "stone", "tide", "at"],)


@family("maps", predicate=STR_PREDICATES)
def count_occurrences(predicate: Part) -> Blueprint:
    chosen = predicate.of("@xs")
    return Blueprint(
        texts=ask(
            f"a map from each of the {chosen}~ to how often it occurs",
            place="in a list",
            given="a list of @xs",
            verb="Build",
        ),
        name=f"count @xs {predicate.name}",
        arguments={"@xs": "list[str]"},
        returns="map[str, int]",
        nouns=WORDS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": """
                counts = {}
                for @x in @xs:
                    if @pred:
                        counts[@x] = counts.get(@x, 0) + 1
                return counts
            """,
            "java": """
                Map<String, Integer> counts = new HashMap<>();
                for (String @x : @xs) {
                    if (@pred) {
                        counts.merge(@x, 1, Integer::sum);
                    }
                }
                return counts;
            """,
            "javascript": """
                const counts = new Map();
                for (const @x of @xs) {
                    if (@pred) {
                        counts.set(@x, (counts.get(@x) ?? 0) + 1);
                    }
                }
                return counts;
            """,
            "cpp": """
                std::map<std::string, int> counts;
                for (const auto& @x : @xs) {
                    if (@pred) {
                        ++counts[@x];
                    }
                }
                return counts;
            """,
        },
        oracle=lambda xs: {x: xs.count(x) for x in xs if predicate.apply(x)},
        inputs=(*WORD_LISTS, _REPEATED),
    )


_WORD_KEYS = {  # how a word is filed: (type, Python, Java, JavaScript, C++)
    "length": ("int", "len(@x)", "@x.length()", "@x.length", "static_cast<int>(@x.size())"),
    "first letter": ("str", "@x[0]", "@x.substring(0, 1)", "@x[0]", "@x.substr(0, 1)"),
    "last letter": ("str", "@x[-1]", "@x.substring(@x.length() - 1)", "@x.at(-1)", "@x.substr(@x.size() - 1)"),
}


@family("maps", predicate=STR_PREDICATES, key=tuple(_WORD_KEYS), goal=("list", "count"))
def group_words(predicate: Part, key: str, goal: str) -> Blueprint:
    type_, python, java, javascript, cpp = _WORD_KEYS[key]
    listed = goal == "list"
    what = f"a map from each {key} to {'the list' if listed else 'the number'} of {predicate.of('@xs')} that have it"
    java_type, java_value = "Integer" if type_ == "int" else "String", "List<String>" if listed else "Integer"
    cpp_type = "int" if type_ == "int" else "std::string"
    cpp_value = "std::vector<std::string>" if listed else "int"
    file_word = {
        "python": f"groups.setdefault({python}, []).append(@x)"
        if listed
        else f"groups[{python}] = groups.get({python}, 0) + 1",
        "java": f"groups.computeIfAbsent({java}, key -> new ArrayList<>()).add(@x);"
        if listed
        else f"groups.merge({java}, 1, Integer::sum);",
        "javascript": "groups.set(key, [...(groups.get(key) ?? []), @x]);"
        if listed
        else "groups.set(key, (groups.get(key) ?? 0) + 1);",
        "cpp": f"groups[{cpp}].push_back(@x);" if listed else f"++groups[{cpp}];",
    }

    def oracle(xs: list[str]) -> dict[Any, Any]:
        chosen = [x for x in xs if predicate.apply(x)]
        keys: list[Any] = [{"length": len(x), "first letter": x[:1]}.get(key, x[-1:]) for x in chosen]
        groups = {k: [x for x, other in zip(chosen, keys) if other == k] for k in keys}
        return groups if listed else {k: len(group) for k, group in groups.items()}

    return Blueprint(
        texts=(
            f"Given a list of @xs, build {what}.",
            f"{'Group' if listed else 'Count'} the {predicate.of('@xs')} of a list by their {key}.",
            f"Return {what} in a list.",
        ),
        name=f"{'group' if listed else 'count'} by {key}",
        arguments={"@xs": "list[str]"},
        returns=f"map[{type_}, {'list[str]' if listed else 'int'}]",
        nouns=WORDS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f"""
                groups = {{}}
                for @x in @xs:
                    if @pred:
                        {file_word["python"]}
                return groups
            """,
            "java": f"""
                Map<{java_type}, {java_value}> groups = new HashMap<>();
                for (String @x : @xs) {{
                    if (@pred) {{
                        {file_word["java"]}
                    }}
                }}
                return groups;
            """,
            "javascript": f"""
                const groups = new Map();
                for (const @x of @xs.filter((@x) => @pred)) {{
                    const key = {javascript};
                    {file_word["javascript"]}
                }}
                return groups;
            """,
            "cpp": f"""
                std::map<{cpp_type}, {cpp_value}> groups;
                for (const auto& @x : @xs) {{
                    if (@pred) {{
                        {file_word["cpp"]}
                    }}
                }}
                return groups;
            """,
        },
        oracle=oracle,
        inputs=(*WORD_LISTS, _REPEATED),
    )


@family("maps", divisor=(2, 3, 4, 5, 6, 7, 8, 9, 10), goal=("list", "count", "sum"))
def group_numbers(divisor: int, goal: str) -> Blueprint:
    key = "last digit" if divisor == 10 else f"remainder after division by {divisor}"
    of = {"list": "the list", "count": "the number", "sum": "the sum"}[goal]
    what = f"a map from each {key} to {of} of those non-negative @xs that have it"
    rest = f"@x % {divisor}"
    python = {
        "list": f"groups.setdefault({rest}, []).append(@x)",
        "count": f"groups[{rest}] = groups.get({rest}, 0) + 1",
        "sum": f"groups[{rest}] = groups.get({rest}, 0) + @x",
    }[goal]
    java = {
        "list": f"groups.computeIfAbsent({rest}, rest -> new ArrayList<>()).add(@x);",
        "count": f"groups.merge({rest}, 1, Integer::sum);",
        "sum": f"groups.merge({rest}, @x, Integer::sum);",
    }[goal]
    javascript = {
        "list": "groups.set(rest, [...(groups.get(rest) ?? []), @x]);",
        "count": "groups.set(rest, (groups.get(rest) ?? 0) + 1);",
        "sum": "groups.set(rest, (groups.get(rest) ?? 0) + @x);",
    }[goal]
    cpp = {"list": f"groups[{rest}].push_back(@x)", "count": f"++groups[{rest}]", "sum": f"groups[{rest}] += @x"}[goal]
    value, cpp_value = ("List<Integer>", "std::vector<int>") if goal == "list" else ("Integer", "int")

    def oracle(xs: list[int]) -> dict[int, list[int] | int]:
        groups = {r: [x for x in xs if x - x // divisor * divisor == r] for r in range(divisor)}
        return {r: AGGREGATES[goal](group) for r, group in groups.items() if group}

    return Blueprint(
        texts=(
            f"Given a list of non-negative @xs, build {what.replace('those non-negative @xs', 'the @xs')}.",
            f"Return {what.replace('those', 'the')} in a list.",
        ),
        name=f"{'group' if goal == 'list' else goal} by {'last digit' if divisor == 10 else 'remainder'}",
        arguments={"@xs": "list[int]"},
        returns=f"map[int, {'list[int]' if goal == 'list' else 'int'}]",
        nouns=NUMBERS,
        code={
            "python": f"""
                groups = {{}}
                for @x in @xs:
                    {python}
                return groups
            """,
            "java": f"""
                Map<Integer, {value}> groups = new HashMap<>();
                for (int @x : @xs) {{
                    {java}
                }}
                return groups;
            """,
            "javascript": f"""
                const groups = new Map();
                for (const @x of @xs) {{
                    const rest = {rest};
                    {javascript}
                }}
                return groups;
            """,
            "cpp": f"""
                std::map<int, {cpp_value}> groups;
                for (int @x : @xs) {{
                    {cpp};
                }}
                return groups;
            """,
        },
        oracle=oracle,
        inputs=tuple(([abs(x) for x in xs],) for (xs,) in INT_LISTS),
    )


_WORD_VALUES = {  # what is stored for a word: (type, Python, Java, JavaScript, C++, oracle)
    "length": ("int", "len(@x)", "@x.length()", "@x.length", "@x.size()", len),
    "first letter": ("str", "@x[0]", "@x.substring(0, 1)", "@x[0]", "@x.substr(0, 1)", lambda x: x[:1]),
    "reverse": (
        "str",
        "@x[::-1]",
        "new StringBuilder(@x).reverse().toString()",
        '[...@x].reverse().join("")',
        "std::string(@x.rbegin(), @x.rend())",
        lambda x: "".join(reversed(x)),
    ),
    "upper case form": ("str", "@x.upper()", "@x.toUpperCase()", "@x.toUpperCase()", "", str.upper),
}


@family("maps", predicate=STR_PREDICATES, value=tuple(_WORD_VALUES))
def index_words(predicate: Part, value: str) -> Blueprint:
    type_, python, java, javascript, cpp, apply = _WORD_VALUES[value]
    store = f"result[@x] = {cpp};"
    if not cpp:
        store = "result[@x] = @x;\nfor (char& c : result[@x]) {\n    c = std::toupper(c);\n}"
    cpp_body = (
        f"std::map<std::string, {'int' if type_ == 'int' else 'std::string'}> result;\n"
        "for (const auto& @x : @xs) {\n    if (@pred) {\n"
        + "\n".join(f"        {line}" for line in store.split("\n"))
        + "\n    }\n}\nreturn result;"
    )
    return Blueprint(
        texts=ask(
            f"a map from each of the {predicate.of('@xs')}~ to its {value}",
            place="in a list",
            given="a list of @xs",
            verb="Build",
        ),
        name=f"@x to {value}",
        arguments={"@xs": "list[str]"},
        returns=f"map[str, {type_}]",
        nouns=WORDS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f"return {{@x: {python} for @x in @xs if @pred}}",
            "java": f"""
                Map<String, {"Integer" if type_ == "int" else "String"}> result = new HashMap<>();
                for (String @x : @xs) {{
                    if (@pred) {{
                        result.put(@x, {java});
                    }}
                }}
                return result;
            """,
            "javascript": f"return new Map(@xs.filter((@x) => @pred).map((@x) => [@x, {javascript}]));",
            "cpp": cpp_body,
        },
        oracle=lambda xs: {x: apply(x) for x in set(xs) if predicate.apply(x)},
        inputs=(*WORD_LISTS, _REPEATED),
    )


@family("maps", predicate=INT_PREDICATES, goal=("sum", "largest", "number"))
def totals(predicate: Part, goal: str) -> Blueprint:
    what = f"a map from each @k to the {goal} of its @vs that {predicate.plural}, without @ks that have none"
    initial, update = {"sum": ("0", "{old} + @v"), "largest": ("@v", "max({old}, @v)"), "number": ("0", "{old} + 1")}[
        goal
    ]
    python = update.format(old=f"result.get(@k, {initial})")
    javascript = update.format(old=f"(result.get(@k) ?? {initial})").replace("max((", "Math.max((")
    javascript = javascript.replace("Math.max((result.get(@k) ?? @v), @v)", "Math.max(result.get(@k) ?? @v, @v)")
    merge = {"sum": "@v, Integer::sum", "largest": "@v, Integer::max", "number": "1, Integer::sum"}[goal]
    cpp = {
        "sum": "result[@ks[i]] += @v;",
        "largest": "result[@ks[i]] = result.count(@ks[i]) > 0 ? std::max(result[@ks[i]], @v) : @v;",
        "number": "++result[@ks[i]];",
    }[goal]
    nouns = (
        {"ks": "names", "k": "name", "vs": "scores", "v": "score"},
        {"ks": "items", "k": "item", "vs": "prices", "v": "price"},
    )
    names = ["ann", "bob", "ann", "cy", "bob", "ann", "dee", "cy"]

    def oracle(ks: list[str], vs: list[int]) -> dict[str, int]:
        groups = {k: [v for other, v in zip(ks, vs) if other == k and predicate.apply(v)] for k in ks}
        return {k: AGGREGATES[goal](group) for k, group in groups.items() if group}

    return Blueprint(
        texts=(
            f"Given a list of @ks and a list of their @vs, return {what}.",
            f"Build from a list of @ks and one of @vs {what}.",
        ),
        name=f"{'count' if goal == 'number' else goal} @vs per @k",
        arguments={"@ks": "list[str]", "@vs": "list[int]"},
        returns="map[str, int]",
        nouns=nouns,
        parts={"pred": (predicate, "@v")},
        code={
            "python": f"""
                result = {{}}
                for @k, @v in zip(@ks, @vs):
                    if @pred:
                        result[@k] = {python}
                return result
            """,
            "java": f"""
                Map<String, Integer> result = new HashMap<>();
                for (int i = 0; i < @ks.size(); i++) {{
                    int @v = @vs.get(i);
                    if (@pred) {{
                        result.merge(@ks.get(i), {merge});
                    }}
                }}
                return result;
            """,
            "javascript": f"""
                const result = new Map();
                @ks.forEach((@k, i) => {{
                    const @v = @vs[i];
                    if (@pred) {{
                        result.set(@k, {javascript});
                    }}
                }});
                return result;
            """,
            "cpp": f"""
                std::map<std::string, int> result;
                for (std::size_t i = 0; i < @ks.size(); ++i) {{
                    const int @v = @vs[i];
                    if (@pred) {{
                        {cpp}
                    }}
                }}
                return result;
            """,
        },
        oracle=oracle,
        inputs=(
            ([], []),
            (["ann"], [4]),
            (names, [3, 8, -5, 10, 0, 21, -12, 6]),
            (names, [15, 50, 9, 20, 60, 7, 5, 35]),
            (names, [-9, -4, 13, 28, 42, 18, 100, 16]),
        ),
    )
