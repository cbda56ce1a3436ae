"""Words: of a sentence, or given as a list."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

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


@family(
    "strings",
    predicate=STR_PREDICATES,
    separator=(
        (", ", "a comma and a space"),
        ("-", "a hyphen"),
        ("/", "a slash"),
        (" ", "a space"),
        ("", "nothing"),
        ("|", "a vertical bar"),
    ),
)
def join_matching(predicate: Part, separator: tuple[str, str]) -> Blueprint:
    symbol, said = separator
    chosen = predicate.of("@xs")
    between = f"with {said} between them"
    return Blueprint(
        texts=(
            f"Join the {chosen} in a list {between}.",
            f"Given a list of @xs, join the {chosen} into one string {between}.",
            f"Return the {chosen} in a list as one string {between}.",
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


@family("strings", predicate=STR_PREDICATES, extreme=("longest", "shortest"))
def extreme_word(predicate: Part, extreme: str) -> Blueprint:
    chosen = f"the {extreme} of the {predicate.of('@xs')}"
    sign = ">" if extreme == "longest" else "<"
    function = "max" if extreme == "longest" else "min"
    return Blueprint(
        texts=(
            f"Return {chosen} in a list, the first one if there are several, or an empty string if there is none.",
            f"Given a list of @xs, find {chosen}; of equally long ones take the first, and return an "
            "empty string if there is none.",
        ),
        name=f"{extreme} @x {predicate.name}",
        arguments={"@xs": "list[str]"},
        returns="str",
        nouns=WORDS,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f'return {function}((@x for @x in @xs if @pred), key=len, default="")',
            "java": f"""
                String result = "";
                for (String @x : @xs) {{
                    if (@pred && (result.isEmpty() || @x.length() {sign} result.length())) {{
                        result = @x;
                    }}
                }}
                return result;
            """,
            "javascript": f"""
                let result = "";
                for (const @x of @xs) {{
                    if (@pred && (result === "" || @x.length {sign} result.length)) {{
                        result = @x;
                    }}
                }}
                return result;
            """,
            "cpp": f"""
                std::string result;
                for (const auto& @x : @xs) {{
                    if (@pred && (result.empty() || @x.size() {sign} result.size())) {{
                        result = @x;
                    }}
                }}
                return result;
            """,
        },
        oracle=lambda xs: next(
            iter(sorted(filter(predicate.apply, xs), key=lambda x: -len(x) if extreme == "longest" else len(x))), ""
        ),
        inputs=WORD_LISTS,
    )


@family(
    "strings",
    predicate=STR_PREDICATES,
    edit=("reversed", "left out", "replaced by three asterisks", "put in parentheses", "written twice"),
)
def edit_words(predicate: Part, edit: str) -> Blueprint:
    drop = edit == "left out"
    python, java, javascript, cpp, apply = {
        "reversed": (
            "@x[::-1]",
            "new StringBuilder(@x).reverse()",
            '[...@x].reverse().join("")',
            "std::string(@x.rbegin(), @x.rend())",
            lambda x: "".join(reversed(x)),
        ),
        "replaced by three asterisks": ('"***"', '"***"', '"***"', '"***"', lambda x: "***"),
        "put in parentheses": ('"(" + @x + ")"',) * 4 + (lambda x: f"({x})",),
        "written twice": ("@x * 2", "@x.repeat(2)", "@x.repeat(2)", "@x + @x", lambda x: x + x),
    }.get(edit, ("", "", "", "", str))
    java_edit = f".map(@x -> @pred ? {java}{'.toString()' if 'new' in java else ''} : @x)"
    cpp_add = f"result += @pred ? {cpp} : @x;"
    javascript_edit = f".map((@x) => (@pred ? {javascript} : @x))"
    each = f"each word that {predicate.singular}"
    if drop:
        java_edit, javascript_edit, cpp_add = ".filter(@x -> !(@pred))", ".filter((@x) => !(@pred))", "result += @x;"
    cpp_skip = "if (@pred) {\n    continue;\n}" if drop else ""
    return Blueprint(
        texts=(f"Return a @s in which {each} is {edit}.", f"Given a @s, return it with {each} {edit}."),
        name=f"{edit.split()[0] if not drop else 'drop'} words {predicate.name}",
        arguments={"@s": "str"},
        returns="str",
        nouns=SENTENCE,
        parts={"pred": (predicate, "@x")},
        code={
            "python": f'return " ".join({python} if @pred else @x for @x in @s.split())'
            if not drop
            else 'return " ".join(@x for @x in @s.split() if not (@pred))',
            "java": f"""
                return Arrays.stream(@s.split(" "))
                        {java_edit}
                        .collect(Collectors.joining(" "));
            """,
            "javascript": f"""
                return @s
                    .split(" ")
                    {javascript_edit}
                    .join(" ");
            """,
            "cpp": f"""
                std::istringstream stream(@s);
                std::string result;
                for (std::string @x; stream >> @x;) {{
                    SKIP
                    if (!result.empty()) {{
                        result += ' ';
                    }}
                    {cpp_add}
                }}
                return result;
            """.replace("                    SKIP\n", textwrap.indent(cpp_skip, " " * 20) + "\n" if drop else ""),
        },
        oracle=lambda s: " ".join(
            apply(x) if predicate.apply(x) else x for x in s.split(" ") if not (drop and predicate.apply(x))
        ),
        inputs=SENTENCES,
    )


@family("strings", place=(1, 2, 3, 4), end=("beginning", "end"), form=("", "in upper case", "reversed"))
def nth_word(place: int, end: str, form: str) -> Blueprint:
    ordinal = {1: "first", 2: "second", 3: "third", 4: "fourth"}[place]
    which = f"{ordinal} word" if end == "beginning" else ("last word" if place == 1 else f"{ordinal} word from the end")
    index = "@SIZE - " + str(place) if end == "end" else str(place - 1)
    python = f"parts[{place - 1 if end == 'beginning' else -place}]"
    changes: dict[str, Callable[[str], str]] = {"in upper case": str.upper, "reversed": lambda w: w[::-1]}
    change = changes.get(form, str)
    suffix = {"in upper case": ".upper()", "reversed": "[::-1]"}.get(form, "")
    java = f"parts[{index.replace('@SIZE', 'parts.length')}]"
    javascript = f"parts[{place - 1}]" if end == "beginning" else f"parts[parts.length - {place}]"
    cpp = f"parts[{index.replace('@SIZE', 'parts.size()')}]"
    upper = "std::transform(result.begin(), result.end(), result.begin(), ::toupper);"
    finish = {"in upper case": upper, "reversed": "std::reverse(result.begin(), result.end());"}.get(form, "")
    returned = (
        f"return parts.size() < {place} ? std::string() : {cpp};"
        if not form
        else (
            f'if (parts.size() < {place}) {{\n    return "";\n}}\nstd::string result = {cpp};\n{finish}\nreturn result;'
        )
    )
    return Blueprint(
        texts=(
            f"Return the {which} of a @s {form}, or an empty string if there are fewer words.".replace(" ,", ","),
            f"Given a @s, return its {which} {form}, or an empty string if it has too few words.".replace(" ,", ","),
        ),
        name=f"{ordinal} word" if end == "beginning" else ("last word" if place == 1 else f"{ordinal} last word"),
        arguments={"@s": "str"},
        returns="str",
        nouns=SENTENCE,
        code={
            "python": f"""
                parts = @s.split()
                return {python + suffix} if len(parts) >= {place} else ""
            """,
            "java": f"""
                String[] parts = @s.split(" ");
                return parts.length < {place} ? "" : {
                {"": java, "in upper case": f"{java}.toUpperCase()"}.get(
                    form, f"new StringBuilder({java}).reverse().toString()"
                )
            };
            """,
            "javascript": f"""
                const parts = @s.split(" ");
                return parts.length < {place} ? "" : {
                {"": javascript, "in upper case": f"{javascript}.toUpperCase()"}.get(
                    form, f'[...{javascript}].reverse().join("")'
                )
            };
            """,
            "cpp": "std::istringstream stream(@s);\nstd::vector<std::string> parts;\n"
            "for (std::string @x; stream >> @x;) {\n    parts.push_back(@x);\n}\n" + returned,
        },
        oracle=lambda s: change(
            dict(enumerate(s.split(" ") if end == "beginning" else reversed(s.split(" ")), 1)).get(place, "")
        ),
        inputs=SENTENCES,
    )
