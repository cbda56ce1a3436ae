"""Strings: characters, words, affixes."""

from __future__ import annotations

from moe.data.synthetic.family import Blueprint, Part, ask, family
from moe.data.synthetic.inputs import SENTENCES, WORD_LISTS
from moe.data.synthetic.parts import SENTENCE, STR_PREDICATES, STR_TRANSFORMS, WORDS


@family("strings", predicate=STR_PREDICATES)
def count_words(predicate: Part) -> Blueprint:
    chosen = predicate.of("words")
    return Blueprint(
        texts=(
            f"Count the {chosen} in a @s.",
            f"Return the number of {chosen} in a @s.",
            f"Given a @s, return how many {chosen} it has.",
        ),
        name=f"count words {predicate.name}",
        arguments={"@s": "str"},
        returns="int",
        nouns=SENTENCE,
        parts={"pred": (predicate, "@x")},
        code={
            "python": "return sum(1 for @x in @s.split() if @pred)",
            "java": """
                int count = 0;
                for (String @x : @s.split(" ")) {
                    if (@pred) {
                        count++;
                    }
                }
                return count;
            """,
            "javascript": 'return @s.split(" ").filter((@x) => @pred).length;',
            "cpp": """
                std::istringstream stream(@s);
                std::string @x;
                int count = 0;
                while (stream >> @x) {
                    if (@pred) {
                        ++count;
                    }
                }
                return count;
            """,
        },
        oracle=lambda s: sum(1 for x in s.split() if predicate.apply(x)),
        inputs=SENTENCES,
    )


@family("strings", predicate=STR_PREDICATES, transform=STR_TRANSFORMS)
def map_words(predicate: Part, transform: Part) -> Blueprint:
    chosen = predicate.of("@xs")
    return Blueprint(
        texts=ask(
            f"a list of the {chosen}~, each {transform.text}", place="in a list", given="a list of @xs", verb="Build"
        ),
        name=f"{transform.name} @xs {predicate.name}",
        arguments={"@xs": "list[str]"},
        returns="list[str]",
        nouns=WORDS,
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
                std::vector<std::string> result;
                for (const auto& @x : @xs) {
                    if (@pred) {
                        result.push_back(@out);
                    }
                }
                return result;
            """,
        },
        oracle=lambda xs: [transform.apply(x) for x in xs if predicate.apply(x)],
        inputs=WORD_LISTS,
    )


@family("strings", predicate=STR_PREDICATES, separator=((", ", "a comma and a space"), ("-", "a hyphen"),
        ("/", "a slash"), (" ", "a space"), ("", "nothing"), ("|", "a vertical bar")))  # fmt: skip
def join_matching(predicate: Part, separator: tuple[str, str]) -> Blueprint:
    symbol, said = separator
    chosen = predicate.of("@xs")
    between = f"with {said} between them"
    return Blueprint(
        texts=(
            f"Join the {chosen} of a list {between}.",
            f"Given a list of @xs, join the {chosen} into one string {between}.",
            f"Return the {chosen} of a list as one string {between}.",
        ),
        name=f"join @xs {predicate.name}",
        arguments={"@xs": "list[str]"},
        returns="str",
        nouns=WORDS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f'return "{symbol}".join(@x for @x in @xs if @pred)',
            "java": f'return @xs.stream().filter(@x -> @pred).collect(Collectors.joining("{symbol}"));',
            "javascript": f'return @xs.filter((@x) => @pred).join("{symbol}");',
            "cpp": f"""
                std::string result;
                for (const auto& @x : @xs) {{
                    if (@pred) {{
                        if (!result.empty()) {{
                            result += "{symbol}";
                        }}
                        result += @x;
                    }}
                }}
                return result;
            """
            if symbol
            else """
                std::string result;
                for (const auto& @x : @xs) {
                    if (@pred) {
                        result += @x;
                    }
                }
                return result;
            """,
        },
        oracle=lambda xs: symbol.join(x for x in xs if predicate.apply(x)),
        inputs=WORD_LISTS,
    )
