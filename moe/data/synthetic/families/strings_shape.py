"""Strings put together and taken apart: padding, splitting, joining, affixes."""

from __future__ import annotations

from collections.abc import Callable

from moe.data.synthetic.characters import SEPARATORS
from moe.data.synthetic.family import Blueprint, family
from moe.data.synthetic.inputs import SENTENCES, TEXTS
from moe.data.synthetic.parts import SENTENCE, TEXT


@family("strings", times=(2, 3, 4, 5, 6), separator=SEPARATORS)
def repeat_text(times: int, separator: tuple[str, str]) -> Blueprint:
    mark, said = separator
    return Blueprint(
        texts=(
            f"Repeat a @s {times} times with a {said} between the copies.",
            f"Given a @s, return {times} copies of it joined with a {said}.",
            f"Return a @s written {times} times, a {said} between the copies.",
        ),
        name="repeat @s",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        code={
            "python": f'return "{mark}".join([@s] * {times})',
            "java": f'return String.join("{mark}", Collections.nCopies({times}, @s));',
            "javascript": f'return Array({times}).fill(@s).join("{mark}");',
            "cpp": f"""
                std::string result = @s;
                for (int i = 1; i < {times}; ++i) {{
                    result += "{mark}" + @s;
                }}
                return result;
            """,
        },
        oracle=lambda s: (s + mark) * (times - 1) + s,
        inputs=TEXTS[:5],
    )


_FILLERS = (("0", "zeros"), ("*", "asterisks"), (" ", "spaces"), ("-", "hyphens"), (".", "dots"))


@family("strings", side=("left", "right"), width=(5, 6, 8, 10, 12, 20), filler=_FILLERS)
def pad_text(side: str, width: int, filler: tuple[str, str]) -> Blueprint:
    mark, said = filler
    left = side == "left"
    java = f'"{mark}".repeat(Math.max(0, {width} - @s.length()))'
    cpp = f"std::string({width} - @s.size(), '{mark}')"
    return Blueprint(
        texts=(
            f"Pad a @s on the {side} with {said} to a length of {width}.",
            f"Given a @s, add {said} on the {side} until it is {width} characters long.",
            f"Return a @s filled up with {said} on the {side} to at least {width} characters.",
        ),
        name=f"pad {side}",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        code={
            "python": f'return @s.{"rjust" if left else "ljust"}({width}, "{mark}")',
            "java": f"return {f'{java} + @s' if left else f'@s + {java}'};",
            "javascript": f'return @s.{"padStart" if left else "padEnd"}({width}, "{mark}");',
            "cpp": f"""
                if (@s.size() >= {width}) {{
                    return @s;
                }}
                return {f"{cpp} + @s" if left else f"@s + {cpp}"};
            """,
        },
        oracle=lambda s: mark * (width - len(s)) * left + s + mark * (width - len(s)) * (not left),
        inputs=(*TEXTS, ("12345678",), ("0123456789",)),
    )


@family("strings", limit=(4, 5, 6, 8, 10, 12, 15, 20), ending=("...", "..", "-", ">"))
def truncate(limit: int, ending: str) -> Blueprint:
    rule = f'longer than {limit} characters, cut it to the first {limit} and append "{ending}"'
    choice = f'@s.length > {limit} ? @s.slice(0, {limit}) + "{ending}" : @s'
    return Blueprint(
        texts=(
            f"If a @s is {rule}, otherwise return it unchanged.",
            f"Given a @s that is {rule}; return shorter ones as they are.",
            f'Shorten a @s to {limit} characters followed by "{ending}" if it is longer than that.',
        ),
        name="truncate @s",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        code={
            "python": f'return @s[:{limit}] + "{ending}" if len(@s) > {limit} else @s',
            "java": f"return {choice.replace('length', 'length()').replace('slice', 'substring')};",
            "javascript": f"return {choice};",
            "cpp": f"return {choice.replace('length', 'size()').replace('slice', 'substr')};",
        },
        oracle=lambda s: s if s == s[:limit] else s[:limit] + ending,
        inputs=(*TEXTS, ("12345678",), ("0123456789",), ("abcde",)),
    )


_WRAPPERS = (
    ("(", ")", "parentheses"),
    ("[", "]", "square brackets"),
    ("{", "}", "curly braces"),
    ("<", ">", "angle brackets"),
    ("*", "*", "asterisks"),
    ("'", "'", "single quotes"),
    ("_", "_", "underscores"),
    ("|", "|", "vertical bars"),
)


@family("strings", wrapper=_WRAPPERS, form=("", "in upper case", "in lower case", "without outer spaces"))
def wrap_text(wrapper: tuple[str, str, str], form: str) -> Blueprint:
    left, right, said = wrapper
    python = {"": "@s", "in upper case": "@s.upper()", "in lower case": "@s.lower()"}.get(form, "@s.strip()")
    java = {"": "@s", "in upper case": "@s.toUpperCase()", "in lower case": "@s.toLowerCase()"}.get(form, "@s.trim()")
    function = "toupper" if form == "in upper case" else "tolower"
    cpp = {
        "": f'return "{left}" + @s + "{right}";',
        "without outer spaces": f"""
            const auto first = @s.find_first_not_of(' ');
            if (first == std::string::npos) {{
                return "{left}{right}";
            }}
            const auto last = @s.find_last_not_of(' ');
            return "{left}" + @s.substr(first, last - first + 1) + "{right}";
        """,
    }.get(
        form,
        f"""
            std::string result = @s;
            std::transform(result.begin(), result.end(), result.begin(), ::{function});
            return "{left}" + result + "{right}";
        """,
    )
    changes: dict[str, Callable[[str], str]] = {
        "in upper case": str.upper,
        "in lower case": str.lower,
        "without outer spaces": str.strip,
    }
    changed = changes.get(form, str)
    return Blueprint(
        texts=(
            f"Return a @s {form} between {said}.".replace("  ", " "),
            f"Given a @s, put it {form} between {said}.".replace("  ", " "),
            f"Surround a @s {f'written {form} ' if 'case' in form else f'{form} '}with {said}.".replace("  ", " "),
        ),
        name="wrap @s",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        code={
            "python": f'return "{left}" + {python} + "{right}"',
            "java": f'return "{left}" + {java} + "{right}";',
            "javascript": f'return "{left}" + {java} + "{right}";',
            "cpp": cpp,
        },
        oracle=lambda s: "".join((left, changed(s), right)),
        inputs=(*TEXTS, ("  two  words ",), ("   ",)),
    )


@family(
    "strings",
    old=SEPARATORS,
    new=SEPARATORS,
    order=("", "in reverse order", "in sorted order"),
    allowed=lambda old, new, order: old != new,
)
def split_and_join(old: tuple[str, str], new: tuple[str, str], order: str) -> Blueprint:
    (cut, cut_name), (glue, glue_name) = old, new
    python = {
        "": "@s.split(CUT)",
        "in reverse order": "reversed(@s.split(CUT))",
        "in sorted order": "sorted(@s.split(CUT))",
    }
    java = {
        "": f'return String.join("{glue}", @s.split("{cut}"));',
        "in reverse order": f"""
            List<String> parts = Arrays.asList(@s.split("{cut}"));
            Collections.reverse(parts);
            return String.join("{glue}", parts);
        """,
        "in sorted order": f"""
            String[] parts = @s.split("{cut}");
            Arrays.sort(parts);
            return String.join("{glue}", parts);
        """,
    }
    chain = {"": "", "in reverse order": ".reverse()", "in sorted order": ".sort()"}
    cpp_order = {
        "": "",
        "in reverse order": "std::reverse(parts.begin(), parts.end());",
        "in sorted order": "std::sort(parts.begin(), parts.end());",
    }[order]
    cpp = f"""
        std::istringstream stream(@s);
        std::vector<std::string> parts;
        for (std::string part; std::getline(stream, part, '{cut}');) {{
            parts.push_back(part);
        }}
        {cpp_order}
        std::string result = parts[0];
        for (std::size_t i = 1; i < parts.size(); ++i) {{
            result += '{glue}' + parts[i];
        }}
        return result;
    """
    if not order:
        cpp = f"""
            std::string result = @s;
            std::replace(result.begin(), result.end(), '{cut}', '{glue}');
            return result;
        """
    words = ["pear", "fig", "lime", "apple"]

    def oracle(s: str) -> str:
        parts = s.split(cut)
        return glue.join({"": parts, "in reverse order": parts[::-1]}.get(order, sorted(parts)))

    return Blueprint(
        texts=(
            f"Split a @s at each {cut_name} and join the parts {order} with a {glue_name}.".replace("  ", " "),
            f"Given a @s whose parts are separated by a {cut_name}, return the parts {order} joined with a "
            f"{glue_name}.".replace("  ", " "),
        ),
        name="split and join" if not order else f"{order.split()[1].replace('reverse', 'reversed')} parts",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        code={
            "python": f'return "{glue}".join({python[order]})'.replace("CUT", f'"{cut}"'),
            "java": java[order],
            "javascript": f'return @s.split("{cut}"){chain[order]}.join("{glue}");',
            "cpp": cpp,
        },
        oracle=oracle,
        inputs=tuple((cut.join(some),) for some in (["one"], words, words[:2], ["b", "a", "b"], ["x", "", "y"])),
    )


@family("strings", side=("before", "after"), which=("first", "last"), separator=(*SEPARATORS, (".", "dot")))
def part_of_text(side: str, which: str, separator: tuple[str, str]) -> Blueprint:
    mark, said = separator
    find, cpp_find = ("indexOf", "find") if which == "first" else ("lastIndexOf", "rfind")
    place = f"the {which} {said}"
    java = f"@s.substring({'0, index' if side == 'before' else 'index + 1'})"
    index = {"before": "0, index", "after": "index + 1"}[side]
    return Blueprint(
        texts=(
            f"Return the part of a @s {side} {place}, or the whole @s if it has none.",
            f"Given a @s, return what comes {side} {place} in it, or all of it if there is none.",
        ),
        name=f"{side} {which} {said}",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        code={
            "python": f"""
                index = @s.{"find" if which == "first" else "rfind"}("{mark}")
                return @s if index < 0 else @s[{":index" if side == "before" else "index + 1:"}]
            """,
            "java": f"""
                int index = @s.{find}("{mark}");
                return index < 0 ? @s : {java};
            """,
            "javascript": f"""
                const index = @s.{find}("{mark}");
                return index < 0 ? @s : @s.slice({index});
            """,
            "cpp": f"""
                const auto index = @s.{cpp_find}('{mark}');
                return index == std::string::npos ? @s : @s.substr({index});
            """,
        },
        oracle=lambda s: (s.split(mark, 1) if which == "first" else s.rsplit(mark, 1))[0 if side == "before" else -1],
        inputs=(*TEXTS, (f"one{mark}two",), (f"a{mark}b{mark}c",), (f"{mark}x",), (f"end{mark}",)),
    )


@family("strings", first="abst", last="deny", joint=("and", "or"))
def starts_and_ends(first: str, last: str, joint: str) -> Blueprint:
    rule = f"starts with the letter {first} {joint} ends with the letter {last}"
    sign = {"and": "&&", "or": "||"}[joint]
    java = f'return @s.startsWith("{first}") {sign} @s.endsWith("{last}");'
    ends = {"and": all, "or": any}[joint]
    return Blueprint(
        texts=(
            f"Check whether a @s {rule}.",
            f"Return true if a @s {rule}, otherwise false.",
            f"Given a @s, tell whether it {rule}.",
        ),
        name=f"starts {joint} ends",
        arguments={"@s": "str"},
        returns="bool",
        nouns=TEXT,
        code={
            "python": f'return @s.startswith("{first}") {joint} @s.endswith("{last}")',
            "java": java,
            "javascript": java,
            "cpp": f"return @s.starts_with('{first}') {sign} @s.ends_with('{last}');",
        },
        oracle=lambda s: s != "" and ends((s[0] == first, s[-1] == last)),
        inputs=(("",), (first,), (first + "x" + last,), (last + first,), (first + "o",), ("o" + last,), ("banana",)),
    )


@family(
    "strings",
    letter=("first", "last"),
    form=("", "in upper case"),
    separator=(("", ""), (".", "a dot"), ("-", "a hyphen"), (" ", "a space"), ("/", "a slash")),
)
def initials(letter: str, form: str, separator: tuple[str, str]) -> Blueprint:
    mark, said = separator
    between = f" with {said} between them" if mark else ""
    what = f"the {letter} letters of the words of a @s {form}".strip()
    upper = bool(form)
    spot = {"python": "0" if letter == "first" else "-1", "cpp": "front" if letter == "first" else "back"}
    java_char = "@x.substring(0, 1)" if letter == "first" else "@x.substring(@x.length() - 1)"
    js_char = "@x[0]" if letter == "first" else "@x.at(-1)"
    cpp_char = f"@x.{spot['cpp']}()"
    return Blueprint(
        texts=(
            f"Join {what}{between}.",
            f"Given a @s, join the {letter} letters of its words {form}".rstrip() + f"{between}.",
            f"Return {what} as one string{between}.",
        ),
        name=f"{letter} letters",
        arguments={"@s": "str"},
        returns="str",
        nouns=SENTENCE,
        code={
            "python": f'return "{mark}".join(@x[{spot["python"]}]{".upper()" if upper else ""} for @x in @s.split())',
            "java": f"""
                return Arrays.stream(@s.split(" "))
                        .map(@x -> {java_char}{".toUpperCase()" if upper else ""})
                        .collect(Collectors.joining("{mark}"));
            """,
            "javascript": f"""
                return @s
                    .split(" ")
                    .map((@x) => {js_char}{".toUpperCase()" if upper else ""})
                    .join("{mark}");
            """,
            "cpp": f"""
                std::istringstream stream(@s);
                std::string result;
                for (std::string @x; stream >> @x;) {{
                    if (!result.empty()) {{
                        result += "{mark}";
                    }}
                    result += {f"static_cast<char>(std::toupper({cpp_char}))" if upper else cpp_char};
                }}
                return result;
            """
            if mark
            else f"""
                std::istringstream stream(@s);
                std::string result;
                for (std::string @x; stream >> @x;) {{
                    result += {f"static_cast<char>(std::toupper({cpp_char}))" if upper else cpp_char};
                }}
                return result;
            """,
        },
        oracle=lambda s: mark.join(
            [(w.upper() if upper else w)[0 if letter == "first" else len(w) - 1] for w in s.split(" ")]
        ),
        inputs=SENTENCES,
    )
