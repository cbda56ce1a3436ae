"""Strings seen as sequences of characters."""

from __future__ import annotations

from moe.data.synthetic.characters import CHAR_CLASSES, SYMBOLS
from moe.data.synthetic.family import Blueprint, Part, family
from moe.data.synthetic.inputs import TEXTS
from moe.data.synthetic.parts import TEXT

_MORE_TEXTS = (*TEXTS, ("aeiou",), ("ABC",), ("2024",), ("nnn",), ("lost sun",), ("?!",))


@family("strings", chars=CHAR_CLASSES)
def count_characters(chars: Part) -> Blueprint:
    return Blueprint(
        texts=(
            f"Count the {chars.text} in a @s.",
            f"Return the number of {chars.text} in a @s.",
            f"Given a @s, return how many {chars.text} it has.",
            f"Find out how many {chars.text} there are in a @s.",
        ),
        name=f"count {chars.name}",
        arguments={"@s": "str"},
        returns="int",
        nouns=TEXT,
        parts={"pred": (chars, "c")},
        code={
            "python": "return sum(1 for c in @s if @pred)",
            "java": """
                int count = 0;
                for (char c : @s.toCharArray()) {
                    if (@pred) {
                        count++;
                    }
                }
                return count;
            """,
            "javascript": "return [...@s].filter((c) => @pred).length;",
            "cpp": "return std::count_if(@s.begin(), @s.end(), [](char c) { return @pred; });",
        },
        oracle=lambda s: len([c for c in s if chars.apply(c)]),
        inputs=_MORE_TEXTS,
    )


@family("strings", chars=CHAR_CLASSES, keep=(True, False))
def filter_characters(chars: Part, keep: bool) -> Blueprint:
    verb = "keep" if keep else "remove"
    python, other = ("@pred", "@pred") if keep else ("not (@pred)", "!(@pred)")
    return Blueprint(
        texts=(
            f"Keep only the {chars.text} of a @s." if keep else f"Remove the {chars.text} from a @s.",
            f"Return a @s with only its {chars.text} left." if keep else f"Return a @s without its {chars.text}.",
            f"Given a @s, {'drop everything but' if keep else 'leave out'} the {chars.text}.",
        ),
        name=f"{verb} {chars.name}",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        parts={"pred": (chars, "c")},
        code={
            "python": f'return "".join(c for c in @s if {python})',
            "java": f"""
                StringBuilder result = new StringBuilder();
                for (char c : @s.toCharArray()) {{
                    if ({other}) {{
                        result.append(c);
                    }}
                }}
                return result.toString();
            """,
            "javascript": f'return [...@s].filter((c) => {other}).join("");',
            "cpp": f"""
                std::string result;
                for (char c : @s) {{
                    if ({other}) {{
                        result += c;
                    }}
                }}
                return result;
            """,
        },
        oracle=lambda s: "".join(filter(lambda c: chars.apply(c) == keep, s)),
        inputs=_MORE_TEXTS,
    )


@family("strings", chars=CHAR_CLASSES, symbol=SYMBOLS)
def replace_characters(chars: Part, symbol: tuple[str, str]) -> Blueprint:
    mark, said = symbol
    return Blueprint(
        texts=(
            f"Replace the {chars.text} in a @s by {said}.",
            f"Return a @s with all its {chars.text} replaced by {said}.",
            f"Given a @s, put {said} in place of each of the {chars.text}.",
        ),
        name=f"replace {chars.name}",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        parts={"pred": (chars, "c")},
        code={
            "python": f'return "".join("{mark}" if @pred else c for c in @s)',
            "java": f"""
                StringBuilder result = new StringBuilder();
                for (char c : @s.toCharArray()) {{
                    result.append(@pred ? '{mark}' : c);
                }}
                return result.toString();
            """,
            "javascript": f'return [...@s].map((c) => (@pred ? "{mark}" : c)).join("");',
            "cpp": f"""
                std::string result = @s;
                for (char& c : result) {{
                    if (@pred) {{
                        c = '{mark}';
                    }}
                }}
                return result;
            """,
        },
        oracle=lambda s: "".join([c, mark][chars.apply(c)] for c in s),
        inputs=_MORE_TEXTS,
    )


@family("strings", chars=CHAR_CLASSES, side=("first", "last"))
def find_character(chars: Part, side: str) -> Blueprint:
    last = side == "last"
    what = f"the index of the {side} character of a @s that is among the {chars.text}, or -1 if there is none"
    if chars.key.startswith("letter "):
        what = f"the index of the {side} letter {chars.key[-1]} in a @s, or -1 if there is none"
    java = "for (int i = 0; i < @s.length(); i++)"
    cpp = "for (std::size_t i = 0; i < @s.size(); ++i)"
    cpp_result = "static_cast<int>(i)"
    if last:
        java = "for (int i = @s.length() - 1; i >= 0; i--)"
        cpp, cpp_result = "for (int i = static_cast<int>(@s.size()) - 1; i >= 0; --i)", "i"
    javascript = java.replace("int ", "let ").replace("length()", "length")
    order = "range(len(@s) - 1, -1, -1)" if last else "range(len(@s))"
    return Blueprint(
        texts=(f"Return {what}.", f"Find {what}.", f"Given a @s, return {what.replace('a @s', 'it')}."),
        name=f"{side} index of {chars.name}",
        arguments={"@s": "str"},
        returns="int",
        nouns=TEXT,
        parts={"pred": (chars, "@s[i]"), "java_pred": (chars, "@s.charAt(i)")},
        code={
            "python": f"return next((i for i in {order} if @pred), -1)",
            "java": f"""
                {java} {{
                    if (@java_pred) {{
                        return i;
                    }}
                }}
                return -1;
            """,
            "javascript": f"""
                {javascript} {{
                    if (@pred) {{
                        return i;
                    }}
                }}
                return -1;
            """,
            "cpp": f"""
                {cpp} {{
                    if (@pred) {{
                        return {cpp_result};
                    }}
                }}
                return -1;
            """,
        },
        oracle=lambda s: ([-1] + sorted((i for i, c in enumerate(s) if chars.apply(c)), reverse=not last))[-1],
        inputs=_MORE_TEXTS,
    )


@family("strings", chars=CHAR_CLASSES, quantifier=("only", "any", "no"))
def check_characters(chars: Part, quantifier: str) -> Blueprint:
    python, java, cpp = {
        "only": ("all(@pred", "allMatch", "all_of"),
        "any": ("any(@pred", "anyMatch", "any_of"),
        "no": ("not any(@pred", "noneMatch", "none_of"),
    }[quantifier]
    javascript = {"only": "[...@s].every", "any": "[...@s].some", "no": "![...@s].some"}[quantifier]
    claim = f"has {quantifier} {chars.text}"
    return Blueprint(
        texts=(
            f"Check whether a @s {claim}.",
            f"Return true if a @s {claim}, otherwise false.",
            f"Given a @s, tell whether it {claim}.",
        ),
        name=f"has {quantifier} {chars.name}",
        arguments={"@s": "str"},
        returns="bool",
        nouns=TEXT,
        parts={"pred": (chars, "c"), "java_pred": (chars, "(char) c")},
        code={
            "python": f"return {python} for c in @s)",
            "java": f"return @s.chars().{java}(c -> @java_pred);"
            if "(@v)" in chars.code["java"] and "indexOf" not in chars.code["java"]
            else f"return @s.chars().{java}(c -> @pred);",
            "javascript": f"return {javascript}((c) => @pred);",
            "cpp": f"return std::{cpp}(@s.begin(), @s.end(), [](char c) {{ return @pred; }});",
        },
        oracle=lambda s: {"only": all, "any": any, "no": lambda found: not any(found)}[quantifier](map(chars.apply, s)),
        inputs=_MORE_TEXTS,
    )


@family("strings", start=(1, 2, 3, 4), step=(2, 3, 4, 5, 6))
def every_kth_character(start: int, step: int) -> Blueprint:
    ordinal = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", 6: "sixth"}
    what = f"every {ordinal[step]} character of a @s, starting with the {ordinal[start]} one"
    return Blueprint(
        texts=(f"Return {what}.", f"Given a @s, take {what.replace('a @s', 'it')}.", f"Keep only {what}."),
        name=f"every {ordinal[step]} character",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        code={
            "python": f"return @s[{start - 1}::{step}]",
            "java": f"""
                StringBuilder result = new StringBuilder();
                for (int i = {start - 1}; i < @s.length(); i += {step}) {{
                    result.append(@s.charAt(i));
                }}
                return result.toString();
            """,
            "javascript": f"""
                let result = "";
                for (let i = {start - 1}; i < @s.length; i += {step}) {{
                    result += @s[i];
                }}
                return result;
            """,
            "cpp": f"""
                std::string result;
                for (std::size_t i = {start - 1}; i < @s.size(); i += {step}) {{
                    result += @s[i];
                }}
                return result;
            """,
        },
        oracle=lambda s: "".join(c for i, c in enumerate(s, 1) if i >= start and (i - start) % step == 0),
        inputs=TEXTS,
    )


@family("strings", side=("first", "last"), count=(1, 2, 3, 4, 5, 6), keep=(True, False))
def cut_text(side: str, count: int, keep: bool) -> Blueprint:
    what = f"the {side} {count} characters" if count > 1 else f"the {side} character"
    size = "@s.length()"
    java = {
        ("first", True): f"@s.substring(0, Math.min({count}, {size}))",
        ("last", True): f"@s.substring(Math.max(0, {size} - {count}))",
        ("first", False): f"@s.substring(Math.min({count}, {size}))",
        ("last", False): f"@s.substring(0, Math.max(0, {size} - {count}))",
    }[side, keep]
    cpp = {
        ("first", True): f"@s.substr(0, {count})",
        ("last", True): f"@s.size() > {count} ? @s.substr(@s.size() - {count}) : @s",
        ("first", False): f'@s.size() > {count} ? @s.substr({count}) : ""',
        ("last", False): f'@s.size() > {count} ? @s.substr(0, @s.size() - {count}) : ""',
    }[side, keep]
    bounds = {("first", True): (0, count), ("last", True): (-count, None), ("first", False): (count, None)}
    low, high = bounds.get((side, keep), (0, -count))
    return Blueprint(
        texts=(
            f"Return {what} of a @s, or all of it if it is shorter." if keep else f"Return a @s without {what}.",
            f"Given a @s, keep only {what}." if keep else f"Given a @s, cut off {what}.",
            f"Take {what} of a @s." if keep else f"Remove {what} from a @s.",
        ),
        name=f"{'keep' if keep else 'drop'} {side} {count}",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT,
        code={
            "python": f"return @s[{low or ''}:{'' if high is None else high}]",
            "java": f"return {java};",
            "javascript": f"return @s.slice({low}{'' if high is None else f', {high}'});",
            "cpp": f"return {cpp};",
        },
        oracle=lambda s: "".join(
            c for i, c in enumerate(s) if ((i if side == "first" else len(s) - 1 - i) < count) == keep
        ),
        inputs=TEXTS,
    )


@family("strings", shift=tuple(range(1, 13)), direction=("forward", "back"))
def shift_letters(shift: int, direction: str) -> Blueprint:
    move = f"+ {shift}" if direction == "forward" else f"- {shift} + 26"
    python = f"+ {shift}" if direction == "forward" else f"- {shift}"
    rule = f"by {shift} {'place' if shift == 1 else 'places'} {direction} in the alphabet, wrapping around"
    return Blueprint(
        texts=(
            f"Move each letter of a lowercase @s {rule}.",
            f"Given a @s of lowercase letters, shift each letter {rule}.",
            f"Encode a @s of lowercase letters by moving every letter {rule}.",
        ),
        name="shift letters",
        arguments={"@s": "str"},
        returns="str",
        nouns=TEXT[:2],
        code={
            "python": f'return "".join(chr((ord(c) - ord("a") {python}) % 26 + ord("a")) for c in @s)',
            "java": f"""
                StringBuilder result = new StringBuilder();
                for (char c : @s.toCharArray()) {{
                    result.append((char) ((c - 'a' {move}) % 26 + 'a'));
                }}
                return result.toString();
            """,
            "javascript": f"""
                return [...@s]
                    .map((c) => String.fromCharCode(((c.charCodeAt(0) - 97 {move}) % 26) + 97))
                    .join("");
            """,
            "cpp": f"""
                std::string result = @s;
                for (char& c : result) {{
                    c = static_cast<char>((c - 'a' {move}) % 26 + 'a');
                }}
                return result;
            """,
        },
        oracle=lambda s: s.translate(
            {97 + i: 97 + (i + (shift if direction == "forward" else -shift)) % 26 for i in range(26)}
        ),
        inputs=(("",), ("a",), ("hello",), ("xyz",), ("thequickbrownfoxjumpsoverthelazydog",)),
    )


@family("strings", ignoring=("", "case", "spaces"))
def is_palindrome(ignoring: str) -> Blueprint:
    how = f", ignoring {ignoring}" if ignoring else ""
    python = {"": "@s", "case": "@s.lower()", "spaces": '@s.replace(" ", "")'}[ignoring]
    java = {"": "@s", "case": "@s.toLowerCase()", "spaces": '@s.replace(" ", "")'}[ignoring]
    prepare = {
        "": "",
        "case": "std::transform(letters.begin(), letters.end(), letters.begin(), ::tolower);",
        "spaces": "std::erase(letters, ' ');",
    }[ignoring]
    return Blueprint(
        texts=(
            f"Check whether a @s is a palindrome{how}.",
            f"Return true if a @s reads the same backwards{how}, otherwise false.",
            f"Given a @s, tell whether it reads the same in both directions{how}.",
        ),
        name="is palindrome",
        arguments={"@s": "str"},
        returns="bool",
        nouns=TEXT,
        code={
            "python": f"""
                letters = {python}
                return letters == letters[::-1]
            """,
            "java": f"""
                String letters = {java};
                return letters.equals(new StringBuilder(letters).reverse().toString());
            """,
            "javascript": f"""
                const letters = {java.replace("replace", "replaceAll")};
                return letters === [...letters].reverse().join("");
            """,
            "cpp": f"""
                std::string letters = @s;
                {prepare}
                return std::equal(letters.begin(), letters.end(), letters.rbegin());
            """,
        },
        oracle=lambda s: (lambda t: all(t[i] == t[-1 - i] for i in range(len(t))))(
            {"": s, "case": s.casefold()}.get(ignoring, "".join(s.split(" ")))
        ),
        inputs=(*TEXTS, ("Level",), ("a b a",), ("ab a",), ("Noon",), ("taco cat",), ("was it",), ("stats",)),
    )
