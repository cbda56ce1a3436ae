"""Lists of whole numbers: filter, transform, aggregate."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import INT_LISTS
from moe.data.synthetic.parts import INT_PREDICATES, INT_TRANSFORMS, MAYBE_TRANSFORMS, NUMBERS, transformed

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
            "javascript": "return @xs.filter((@x) => @pred).reduce((total, @x) => total + @out, 0);",
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
    adjective = predicate.text.removeprefix("of ")
    claim = {"all": f"all @xs~ are {adjective}", "any": f"any @x~ is {adjective}", "none": f"no @x~ is {adjective}"}
    python = {"all": "all(@pred", "any": "any(@pred", "none": "not any(@pred"}[quantifier]
    match = {"all": ("all", "every", "all_of"), "any": ("any", "some", "any_of"), "none": ("none", "some", "none_of")}
    java, javascript, cpp = match[quantifier]
    return Blueprint(
        texts=(
            *ask(f"true if {claim[quantifier]}, otherwise false", **_PLACE),
            f"Check whether {claim[quantifier].replace('~', ' in a list')}.",
        )
        if quantifier != "any"
        else (
            *ask(f"whether {claim[quantifier]}", **_PLACE, verb="Tell"),
            f"Check if {claim[quantifier].replace('~', ' in a list')}.",
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
        inputs=(*INT_LISTS, ([2, 4, 20],), ([3, 9, 15],), ([-2, -7],), ([60, 120],), ([12, 60, 420],), ([7, 8, 1],)),
    )
