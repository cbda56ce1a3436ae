"""Maps made from other maps: choose, change, merge, invert."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import STOCKS
from moe.data.synthetic.parts import CHANGES, INT_PREDICATES, PAIRWISE, STOCK, STR_PREDICATES

_PLACE = {"place": "in a map from @ks to @vs", "given": "a map from @ks to @vs"}


@family("maps", predicate=INT_PREDICATES)
def filter_map(predicate: Part) -> Blueprint:
    chosen = f"entries whose @v is {predicate.text.removeprefix('of ')}"
    return Blueprint(
        texts=(*ask(f"the {chosen}~", **_PLACE, verb="Select"), f"Keep only the {chosen} in a map from @ks to @vs."),
        name=f"keep {predicate.naming('@vs')}",
        arguments={"@m": "map[str, int]"},
        returns="map[str, int]",
        nouns=STOCK,
        parts={"pred": (predicate, "@v")},
        code={
            "python": "return {@k: @v for @k, @v in @m.items() if @pred}",
            "java": """
                Map<String, Integer> result = new HashMap<>();
                @m.forEach((@k, @v) -> {
                    if (@pred) {
                        result.put(@k, @v);
                    }
                });
                return result;
            """,
            "javascript": "return new Map([...@m].filter(([@k, @v]) => @pred));",
            "cpp": """
                std::map<std::string, int> result;
                for (const auto& [@k, @v] : @m) {
                    if (@pred) {
                        result[@k] = @v;
                    }
                }
                return result;
            """,
        },
        oracle=lambda m: {k: v for k, v in m.items() if predicate.apply(v)},
        inputs=STOCKS,
    )


@family("maps", predicate=INT_PREDICATES, transform=CHANGES)
def update_values(predicate: Part, transform: Part) -> Blueprint:
    condition = predicate.text.removeprefix("of ")
    return Blueprint(
        texts=(
            f"Return a map from @ks to @vs in which each @v that is {condition} is {transform.text}.",
            f"Given a map from @ks to @vs, return a copy where every @v that is {condition} is {transform.text}.",
        ),
        name=f"update {predicate.naming('@vs')}",
        arguments={"@m": "map[str, int]"},
        returns="map[str, int]",
        nouns=STOCK,
        parts={"pred": (predicate, "@v"), "out": (transform, "@v")},
        code={
            "python": "return {@k: @out if @pred else @v for @k, @v in @m.items()}",
            "java": """
                Map<String, Integer> result = new HashMap<>();
                @m.forEach((@k, @v) -> result.put(@k, @pred ? @out : @v));
                return result;
            """,
            "javascript": "return new Map([...@m].map(([@k, @v]) => [@k, @pred ? @out : @v]));",
            "cpp": """
                std::map<std::string, int> result;
                for (const auto& [@k, @v] : @m) {
                    result[@k] = @pred ? @out : @v;
                }
                return result;
            """,
        },
        oracle=lambda m: {k: transform.apply(v) if predicate.apply(v) else v for k, v in m.items()},
        inputs=STOCKS,
    )


@family("maps", predicate=STR_PREDICATES, keep=(True, False))
def filter_keys(predicate: Part, keep: bool) -> Blueprint:
    which = f"entries whose @k {predicate.singular}"
    python, other = ("@pred", "@pred") if keep else ("not (@pred)", "!(@pred)")
    return Blueprint(
        texts=(
            f"Return only the {which} of a map from @ks to @vs."
            if keep
            else f"Return a map from @ks to @vs without the {which}.",
            f"Given a map from @ks to @vs, {'keep' if keep else 'drop'} the {which}.",
            f"{'Select' if keep else 'Leave out'} the {which} in a map from @ks to @vs.",
        ),
        name=f"{'keep' if keep else 'remove'} @ks {predicate.name}",
        arguments={"@m": "map[str, int]"},
        returns="map[str, int]",
        nouns=STOCK,
        parts={"pred": (predicate, "@k")},
        code={
            "python": f"return {{@k: @v for @k, @v in @m.items() if {python}}}",
            "java": f"""
                Map<String, Integer> result = new HashMap<>(@m);
                result.keySet().removeIf(@k -> {"@pred" if not keep else "!(@pred)"});
                return result;
            """,
            "javascript": f"return new Map([...@m].filter(([@k]) => {other}));",
            "cpp": f"""
                std::map<std::string, int> result;
                for (const auto& [@k, @v] : @m) {{
                    if ({other}) {{
                        result[@k] = @v;
                    }}
                }}
                return result;
            """,
        },
        oracle=lambda m: {k: m[k] for k in filter(lambda k: predicate.apply(k) == keep, m)},
        inputs=STOCKS,
    )


_MERGES = {  # how two values become one, in C-like code
    "sum": "a[key] + b[key]",
    "difference": "a[key] - b[key]",
    "product": "a[key] * b[key]",
    "larger": "max(a[key], b[key])",
    "smaller": "min(a[key], b[key])",
}


@family(
    "maps",
    operation=tuple(_MERGES),
    keys=("both", "either"),
    allowed=lambda operation, keys: keys == "both" or operation != "difference",
)
def merge_maps(operation: str, keys: str) -> Blueprint:
    expression, apply = _MERGES[operation], PAIRWISE[operation]
    both = keys == "both"
    value = {"sum": "the sum", "difference": "the value in a minus the value in b", "product": "the product"}.get(
        operation, f"the {operation}"
    )
    of = "" if operation == "difference" else " of the two values"
    get = expression.replace("max(", "Math.max(").replace("min(", "Math.min(").replace("[key]", ".get(key)")
    at = expression.replace("max(", "std::max(").replace("min(", "std::min(").replace("[key]", ".at(key)")
    if both:
        texts = (
            f"Given two maps a and b from names to numbers, return a map of the names in both to {value}{of}.",
            f"Return a map from each name that is in both maps a and b to {value}{of}.",
        )
        code = {
            "python": f"return {{key: {expression} for key in a if key in b}}",
            "java": f"""
                Map<String, Integer> result = new HashMap<>();
                for (String key : a.keySet()) {{
                    if (b.containsKey(key)) {{
                        result.put(key, {get});
                    }}
                }}
                return result;
            """,
            "javascript": f"""
                const result = new Map();
                for (const key of a.keys()) {{
                    if (b.has(key)) {{
                        result.set(key, {get});
                    }}
                }}
                return result;
            """,
            "cpp": f"""
                std::map<std::string, int> result;
                for (const auto& [key, value] : a) {{
                    if (b.count(key) > 0) {{
                        result[key] = {at};
                    }}
                }}
                return result;
            """,
        }
    else:
        merged = expression.replace("a[key]", "result[key]").replace("b[key]", "value")
        texts = (
            f"Merge two maps a and b from names to numbers; a name that is in both gets {value}{of}.",
            f"Given two maps a and b from names to numbers, return their union with {value}{of} for names in both.",
        )
        function = {"sum": "Integer::sum", "product": "(x, y) -> x * y", "larger": "Integer::max"}.get(
            operation, "Integer::min"
        )
        js = merged.replace("max(", "Math.max(").replace("min(", "Math.min(").replace("result[key]", "result.get(key)")
        cpp = merged.replace("max(", "std::max(").replace("min(", "std::min(")
        code = {
            "python": f"""
                result = dict(a)
                for key, value in b.items():
                    result[key] = {merged} if key in result else value
                return result
            """,
            "java": f"""
                Map<String, Integer> result = new HashMap<>(a);
                b.forEach((key, value) -> result.merge(key, value, {function}));
                return result;
            """,
            "javascript": f"""
                const result = new Map(a);
                for (const [key, value] of b) {{
                    result.set(key, result.has(key) ? {js} : value);
                }}
                return result;
            """,
            "cpp": f"""
                std::map<std::string, int> result = a;
                for (const auto& [key, value] : b) {{
                    result[key] = a.count(key) > 0 ? {cpp} : value;
                }}
                return result;
            """,
        }
    return Blueprint(
        texts=texts,
        name=f"{'combine' if both else 'merge'} {operation}",
        arguments={"a": "map[str, int]", "b": "map[str, int]"},
        returns="map[str, int]",
        nouns=({},),
        code=code,
        oracle=lambda a, b: {
            k: apply(a[k], b[k]) if k in a and k in b else {**a, **b}[k]
            for k in (set(a) & set(b) if both else set(a) | set(b))
        },
        inputs=(
            ({}, {}),
            ({"x": 1}, {}),
            ({"x": 4}, {"x": 7, "y": 2}),
            ({"x": 9, "z": -3}, {"z": -5, "x": 9}),
            ({"a": 5, "b": 6, "c": 7}, {"b": 3, "c": 12, "d": 1}),
        ),
    )


@family("maps", predicate=INT_PREDICATES)
def invert_map(predicate: Part) -> Blueprint:
    chosen = f"@v that {predicate.singular}"
    return Blueprint(
        texts=(
            f"Given a map from @ks to @vs, return a map from each {chosen} to the sorted list of its @ks.",
            f"Invert a map from @ks to @vs: each {chosen} gets the list of its @ks in alphabetical order.",
        ),
        name=f"@ks by {predicate.name} @v" if predicate.before else f"@ks by @v {predicate.name}",
        arguments={"@m": "map[str, int]"},
        returns="map[int, list[str]]",
        nouns=STOCK,
        parts={"pred": (predicate, "@v")},
        code={
            "python": """
                result = {}
                for @k, @v in sorted(@m.items()):
                    if @pred:
                        result.setdefault(@v, []).append(@k)
                return result
            """,
            "java": """
                Map<Integer, List<String>> result = new HashMap<>();
                for (String @k : new TreeSet<>(@m.keySet())) {
                    int @v = @m.get(@k);
                    if (@pred) {
                        result.computeIfAbsent(@v, key -> new ArrayList<>()).add(@k);
                    }
                }
                return result;
            """,
            "javascript": """
                const result = new Map();
                for (const @k of [...@m.keys()].sort()) {
                    const @v = @m.get(@k);
                    if (@pred) {
                        result.set(@v, [...(result.get(@v) ?? []), @k]);
                    }
                }
                return result;
            """,
            "cpp": """
                std::map<int, std::vector<std::string>> result;
                for (const auto& [@k, @v] : @m) {
                    if (@pred) {
                        result[@v].push_back(@k);
                    }
                }
                return result;
            """,
        },
        oracle=lambda m: {
            v: sorted(k for k, other in m.items() if other == v) for v in m.values() if predicate.apply(v)
        },
        inputs=(*STOCKS, ({"tea": 5, "bread": 20, "ant": 5, "on": -4, "stare": 12, "by": 12, "be": 21, "a": 5},)),
    )
