"""Maps from strings to whole numbers, and maps built from lists."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import STOCKS, WORD_LISTS
from moe.data.synthetic.parts import INT_PREDICATES, INT_TRANSFORMS, STOCK, STR_PREDICATES, WORDS

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


@family("maps", predicate=INT_PREDICATES, transform=INT_TRANSFORMS)
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
        inputs=(*WORD_LISTS, (["stone", "apple", "boy", "stone", "at", "boy", "tea", "stone", "tide", "at"],)),
    )
