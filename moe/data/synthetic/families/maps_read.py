"""Maps from strings to whole numbers: look up, aggregate, list."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import STOCKS
from moe.data.synthetic.parts import (
    AGGREGATES,
    DOUBLE,
    INT_PREDICATES,
    MINUS,
    NEGATE,
    PLUS,
    SAME,
    SQUARE,
    STOCK,
    STR_PREDICATES,
    TRIPLE,
)

_PLACE = {"place": "in a map from @ks to @vs", "given": "a map from @ks to @vs"}


@family("maps", predicate=INT_PREDICATES, goal=("sum", "count"))
def aggregate_values(predicate: Part, goal: str) -> Blueprint:
    what = f"the {'sum' if goal == 'sum' else 'number'} of the @vs~ that {predicate.plural}"
    start, update = {"sum": ("int total = 0", "total += @v"), "count": ("int count = 0", "count++")}[goal]
    reduce = ".reduce((total, @v) => total + @v, 0)" if goal == "sum" else ".length"
    return Blueprint(
        texts=(
            *ask(what, **_PLACE)[:2],
            f"{'Add up' if goal == 'sum' else 'Count'} the @vs in a map from @ks to @vs that {predicate.plural}.",
        ),
        name=f"{goal} {predicate.naming('@vs')}",
        arguments={"@m": "map[str, int]"},
        returns="int",
        nouns=STOCK,
        parts={"pred": (predicate, "@v")},
        code={
            "python": f"return sum({'@v' if goal == 'sum' else '1'} for @v in @m.values() if @pred)",
            "java": f"""
                {start};
                for (int @v : @m.values()) {{
                    if (@pred) {{
                        {update};
                    }}
                }}
                return {start.split()[1]};
            """,
            "javascript": f"return [...@m.values()].filter((@v) => @pred){reduce};",
            "cpp": f"""
                {start};
                for (const auto& [@k, @v] : @m) {{
                    if (@pred) {{
                        {update.replace("count++", "++count")};
                    }}
                }}
                return {start.split()[1]};
            """,
        },
        oracle=lambda m: AGGREGATES[goal](list(filter(predicate.apply, m.values()))),
        inputs=STOCKS,
    )


@family("maps", predicate=STR_PREDICATES, goal=("sum", "largest", "average"))
def values_of_keys(predicate: Part, goal: str) -> Blueprint:
    otherwise = "" if goal == "sum" else ", or 0 if there are none"
    what = f"the {goal} of the @vs~ whose @k {predicate.singular}{otherwise}"
    return Blueprint(
        texts=ask(what, **_PLACE),
        name=f"{goal} of @vs {predicate.name}",
        arguments={"@m": "map[str, int]"},
        returns="float" if goal == "average" else "int",
        nouns=STOCK,
        parts={"pred": (predicate, "@k")},
        code={
            "python": {
                "sum": "return sum(@v for @k, @v in @m.items() if @pred)",
                "largest": "return max((@v for @k, @v in @m.items() if @pred), default=0)",
            }.get(
                goal,
                """
                chosen = [@v for @k, @v in @m.items() if @pred]
                return sum(chosen) / len(chosen) if chosen else 0
            """,
            ),
            "java": """
                return @m.keySet().stream()
                        .filter(@k -> @pred)
                        .mapToInt(@m::get)
                        {"sum": ".sum()", "largest": ".max()"}
            """.replace(
                '{"sum": ".sum()", "largest": ".max()"}',
                {"sum": ".sum();", "largest": ".max().orElse(0);", "average": ".average().orElse(0);"}[goal],
            ),
            "javascript": {
                "sum": """
                    const chosen = [...@m.keys()].filter((@k) => @pred);
                    return chosen.reduce((total, @k) => total + @m.get(@k), 0);
                """,
                "largest": """
                    const chosen = [...@m.keys()].filter((@k) => @pred);
                    return chosen.length > 0 ? Math.max(...chosen.map((@k) => @m.get(@k))) : 0;
                """,
                "average": """
                    const chosen = [...@m.keys()].filter((@k) => @pred);
                    const total = chosen.reduce((sum, @k) => sum + @m.get(@k), 0);
                    return chosen.length > 0 ? total / chosen.length : 0;
                """,
            }[goal],
            "cpp": {
                "sum": """
                    int total = 0;
                    for (const auto& [@k, @v] : @m) {
                        if (@pred) {
                            total += @v;
                        }
                    }
                    return total;
                """,
                "largest": """
                    std::optional<int> largest;
                    for (const auto& [@k, @v] : @m) {
                        if (@pred) {
                            largest = std::max(largest.value_or(@v), @v);
                        }
                    }
                    return largest.value_or(0);
                """,
                "average": """
                    double total = 0;
                    int count = 0;
                    for (const auto& [@k, @v] : @m) {
                        if (@pred) {
                            total += @v;
                            ++count;
                        }
                    }
                    return count == 0 ? 0 : total / count;
                """,
            }[goal],
        },
        oracle=lambda m: {"sum": sum, "largest": lambda c: max(c or [0]), "average": lambda c: sum(c) / max(len(c), 1)}[
            goal
        ]([m[k] for k in m if predicate.apply(k)]),
        inputs=STOCKS,
    )


@family("maps", predicate=INT_PREDICATES, order=("ascending", "descending"))
def matching_keys(predicate: Part, order: str) -> Blueprint:
    down = order == "descending"
    return Blueprint(
        texts=ask(f"a list of the @ks~ whose @v {predicate.singular}, in {order} order", **_PLACE, verb="Build"),
        name=f"@ks with {predicate.name} @v" if predicate.before else f"@ks {predicate.name}",
        arguments={"@m": "map[str, int]"},
        returns="list[str]",
        nouns=STOCK,
        parts={"pred": (predicate, "@v"), "java_pred": (predicate, "@m.get(@k)"), "js_pred": (predicate, "@v")},
        code={
            "python": f"return sorted((@k for @k, @v in @m.items() if @pred){', reverse=True' if down else ''})",
            "java": f"""
                List<String> result = new ArrayList<>();
                @m.forEach((@k, @v) -> {{
                    if (@pred) {{
                        result.add(@k);
                    }}
                }});
                result.sort(Comparator.{"reverseOrder" if down else "naturalOrder"}());
                return result;
            """,
            "javascript": f"""
                const entries = [...@m].filter(([, @v]) => @pred);
                return entries.map(([@k]) => @k).sort(){".reverse()" if down else ""};
            """,
            "cpp": f"""
                std::vector<std::string> result;
                for (const auto& [@k, @v] : @m) {{
                    if (@pred) {{
                        result.push_back(@k);
                    }}
                }}
                {"std::reverse(result.begin(), result.end());" if down else ""}
                return result;
            """,
        },
        oracle=lambda m: [k for k in sorted(m, reverse=down) if predicate.apply(m[k])],
        inputs=STOCKS,
    )


@family("maps", default=(0, 1, -1, 10, 100), transform=(SAME, DOUBLE, TRIPLE, SQUARE, NEGATE, PLUS[1], MINUS[0]))
def look_up(default: int, transform: Part) -> Blueprint:
    how = f" {transform.text}" if transform.text else ""
    plain = transform is SAME
    return Blueprint(
        texts=(
            f"Return the @v of a @k in a map from @ks to @vs{how and ','}{how}, or {default} if the @k is missing.",
            f"Given a map from @ks to @vs and a @k, look up its @v{how and ' and return it'}{how}; use {default} for "
            "a @k that is missing.",
        ),
        name=f"{transform.name} @v of @k",
        arguments={"@m": "map[str, int]", "@k": "str"},
        returns="int",
        nouns=STOCK,
        parts={"out": (transform, "@v"), "get": (transform, "@m[@k]"), "at": (transform, "found->second")},
        code={
            "python": f"return @m.get(@k, {default})" if plain else f"return @get if @k in @m else {default}",
            "java": f"return @m.getOrDefault(@k, {default});"
            if plain
            else f"""
                if (!@m.containsKey(@k)) {{
                    return {default};
                }}
                int @v = @m.get(@k);
                return @out;
            """,
            "javascript": f"return @m.get(@k) ?? {default};"
            if plain
            else f"""
                if (!@m.has(@k)) {{
                    return {default};
                }}
                const @v = @m.get(@k);
                return @out;
            """,
            "cpp": f"""
                const auto found = @m.find(@k);
                return found == @m.end() ? {default} : @at;
            """,
        },
        oracle=lambda m, k: transform.apply(m[k]) if k in m else default,
        inputs=(
            ({}, "tea"),
            ({"tea": 4}, "tea"),
            ({"bob": 12, "tea": -3}, "tea"),
            ({"bob": 12, "tea": -3}, "bo"),
            ({"apple": 3, "bread": 20, "sand": 0}, "sand"),
            ({"apple": 3, "bread": 20, "sand": 0}, "bread"),
        ),
    )


@family(
    "maps",
    pair=("=", ":", " ", "->"),
    between=(
        (", ", "a comma and a space"),
        ("; ", "a semicolon and a space"),
        ("&", "an ampersand"),
        ("|", "a vertical bar"),
        ("/", "a slash"),
    ),
)
def format_map(pair: str, between: tuple[str, str]) -> Blueprint:
    mark, said = between
    inner = {"=": "an equals sign", ":": "a colon", " ": "a space", "->": "an arrow ->"}[pair]
    return Blueprint(
        texts=(
            f"Write a map from @ks to @vs as text, sorted by @k, with {inner} between @k and @v and {said} between "
            "the entries.",
            f"Given a map from @ks to @vs, return its entries sorted by @k as one string, {inner} between @k and @v, "
            f"{said} between entries.",
        ),
        name="format @m",
        arguments={"@m": "map[str, int]"},
        returns="str",
        nouns=STOCK,
        code={
            "python": f'return "{mark}".join(f"{{@k}}{pair}{{@m[@k]}}" for @k in sorted(@m))',
            "java": f"""
                return new TreeMap<>(@m).entrySet().stream()
                        .map(entry -> entry.getKey() + "{pair}" + entry.getValue())
                        .collect(Collectors.joining("{mark}"));
            """,
            "javascript": f"""
                return [...@m.keys()]
                    .sort()
                    .map((@k) => `${{@k}}{pair}${{@m.get(@k)}}`)
                    .join("{mark}");
            """,
            "cpp": f"""
                std::string result;
                for (const auto& [@k, @v] : @m) {{
                    if (!result.empty()) {{
                        result += "{mark}";
                    }}
                    result += @k + "{pair}" + std::to_string(@v);
                }}
                return result;
            """,
        },
        oracle=lambda m: mark.join([k + pair + str(v) for k, v in sorted(m.items())]),
        inputs=STOCKS,
    )


@family("maps", predicate=STR_PREDICATES, extreme=("largest", "smallest"))
def extreme_key(predicate: Part, extreme: str) -> Blueprint:
    what = (
        f"the @k with the {extreme} @v~ among those @ks that {predicate.plural}, the alphabetically first of several, "
        "or an empty string if there is none"
    )
    sign, function = (">", "max") if extreme == "largest" else ("<", "min")
    return Blueprint(
        texts=ask(what, **_PLACE, verb="Find")[:3],
        name=f"@k with {extreme} @v",
        arguments={"@m": "map[str, int]"},
        returns="str",
        nouns=STOCK,
        parts={"pred": (predicate, "@k")},
        code={
            "python": f"""
                chosen = sorted(@k for @k in @m if @pred)
                return {function}(chosen, key=@m.get, default="")
            """,
            "java": f"""
                String result = "";
                for (String @k : new TreeSet<>(@m.keySet())) {{
                    if (@pred && (result.isEmpty() || @m.get(@k) {sign} @m.get(result))) {{
                        result = @k;
                    }}
                }}
                return result;
            """,
            "javascript": f"""
                let result = "";
                for (const @k of [...@m.keys()].sort()) {{
                    if (@pred && (result === "" || @m.get(@k) {sign} @m.get(result))) {{
                        result = @k;
                    }}
                }}
                return result;
            """,
            "cpp": f"""
                std::string result;
                for (const auto& [@k, @v] : @m) {{
                    if (@pred && (result.empty() || @v {sign} @m.at(result))) {{
                        result = @k;
                    }}
                }}
                return result;
            """,
        },
        oracle=lambda m: (
            [k for v, k in sorted(((-v if sign == ">" else v), k) for k, v in m.items()) if predicate.apply(k)] + [""]
        )[0],
        inputs=(*STOCKS, ({"tea": 5, "bread": 5, "ant": 5, "on": 5, "stare": 5, "by": 5, "be": 5, "bony": 5},)),
    )
