"""Layouts: which fields of other people's data hold the description, the code and the language of a pair.

A layout is found by the names of the first object's fields, and holds for the whole file. Where several fit, or none,
the file is refused: the setting ``fields`` then says what is what.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moe.data.code_blocks import fenced_blocks, without_thoughts
from moe.data.containers import shown_keys
from moe.data.grammars import parses
from moe.errors import UserError, did_you_mean
from moe.files import json_type
from moe.languages import LANGUAGES, language_key

OWN = "text/code"  # the project's own rows, and everything else with these two names
LANGUAGE_FIELDS = ("language", "lang", "programming_language")
ID_FIELDS = ("id", "task_id", "idx")
CODE_FIELDS = ("reference", "references", "code")
TASKS = ("instruction", "prompt", "question", "problem", "query")
ANSWERS = ("output", "completion", "response", "answer", "solution")
BEFORE, AFTER = ("system_prompt", "system"), ("input", "context")  # parts of a task that may be empty
CONVERSATIONS = ("messages", "conversations")
PARTS = ("text", "code", "language", "id")  # what the setting ``fields`` can name
_USER, _ASSISTANT = ("user", "human", "prompter"), ("assistant", "gpt", "model", "bot")
_EMPTY_INPUTS = ("", "<noinput>", "not applicable", "n/a")
_FENCE_LINE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)  # as in Markdown; deeper ones belong to doc comments
# Where three backticks are no syntax, an answer that parses is code whose comments have fences.
_NO_BACKTICKS = ("python", "java", "cpp", "c", "c_sharp", "rust", "go")
# HumanEval's names and MBXP's for its translations of MBPP, as they stand before the number of a task.
_TASK_LANGUAGES = {"humaneval": "python", "mbpp": "python", "mbjp": "java", "mbjsp": "javascript", "mbcpp": "cpp"}
_TASK_LANGUAGES |= {"mbgp": "go", "mbtsp": "typescript", "mbcsp": "c_sharp", "mbphp": "php", "mbrbp": "ruby"}


class Skip(Exception):
    """An object that is no pair, by no fault of the file; the message completes "left out N ..."."""


@dataclass(frozen=True)
class Layout:
    """How an object becomes ``text`` and ``code``.

    Attributes:
        name: as reports show it.
        text, code: fields; several are joined by blank lines.
        answers: ``code`` is what somebody answered, in which code may stand in a Markdown block.
        language: of all objects, where the layout has one alone.
        make: computes text, code and, where it knows it, the language from the object instead.
        fixed: the user's own choice of fields for the language and the id.
        own: objects are rows (:mod:`moe.data.rows`) as they are.
    """

    name: str
    text: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    answers: bool = False
    language: str | None = None
    make: Callable[[Mapping[str, Any]], tuple[str, str, str | None]] | None = None
    fixed: Mapping[str, str] = field(default_factory=dict)
    own: bool = False


@dataclass
class Reading:
    """What was read, for one line to the user: pairs, their layout, where languages come from, what was left out."""

    layouts: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """Such as "read as instruction/output, 8,123 pairs, language from field lang"."""
        line = f"read as {' and '.join(self.layouts)}, {self.layouts.total():,} pairs" if self.layouts else "no pairs"
        line += f", language from {' and '.join(self.languages)}" if self.languages else ""
        parts = [f"{count:,} {reason}" for reason, count in self.left_out.most_common()]
        return line + (f"; left out {', '.join(parts)}" if parts else "")


def parse_fields(fields: Sequence[str]) -> dict[str, str]:
    """``text=prompt`` and so on as a dictionary; raises :class:`UserError` for anything else."""
    found: dict[str, str] = {}
    for item in fields:
        part, equals, name = item.partition("=")
        if not equals or part not in PARTS:
            hint = did_you_mean(part, PARTS) if equals else ""
            raise UserError(f"fields has {item!r}{hint}; expected PART=FIELD with the parts {', '.join(PARTS)}")
        if part in found or (not name and part != "language"):
            raise UserError(f"fields has {item!r}; expected the name of one field for {part}, once")
        found[part] = name
    if "text" in found and found["text"] == found.get("code"):
        raise UserError(f"fields has {found['text']!r} as text and as code; expected two fields")
    return found


def find_layout(found: Mapping[str, Any], fields: Mapping[str, str]) -> Layout:
    """The layout of the objects that look like ``found``.

    Args:
        fields: the user's choice (:func:`parse_fields`).

    Raises:
        UserError: no layout fits, or several do; the message lists the fields.
    """
    if "text" in fields or "code" in fields:
        text = fields.get("text") or next((x for x in ("text", *TASKS) if x in found), "text")
        code = fields.get("code") or next((x for x in (*CODE_FIELDS, *ANSWERS) if x in found), "code")
        for name in (*text.split("+"), *code.split("+")):
            if name not in found:
                hint = did_you_mean(name, found)
                raise UserError(f"has no field {name!r}{hint}; found {shown_keys(found)}")
        return Layout(f"{text}/{code}", tuple(text.split("+")), tuple(code.split("+")), True, fixed=fields)
    layout = _known_layout({name for name, value in found.items() if value is not None}, found)
    return replace(layout, fixed=fields)


def _known_layout(names: set[str], found: Mapping[str, Any]) -> Layout:
    if {"task_id", "prompt"} <= names and "canonical_solution" in found:
        return Layout("HumanEval" if "description" not in found else "MBXP", make=_benchmark_task)
    if {"code", "test_list"} <= names and ({"text"} <= names or {"prompt"} <= names):
        return Layout("MBPP", ("text",) if "text" in names else ("prompt",), ("code",), language="python")
    if {"func_documentation_string", "func_code_string"} <= names:
        return Layout("CodeSearchNet", ("func_documentation_string",), ("func_code_string",))
    if {"docstring", "code"} <= found.keys() and "text" not in names:
        return Layout("CodeSearchNet", ("docstring",), ("code",))
    if {"nl", "code"} <= names and "text" not in names:
        concode = isinstance(found["nl"], str) and "concode_field_sep" in found["nl"]
        return Layout("CodeXGLUE nl/code", ("nl",), ("code",), language="java" if concode else None)
    fitting = [Layout(OWN, own=True)] if "text" in found and any(name in found for name in CODE_FIELDS) else []
    if {"chosen", "rejected"} <= names:
        raise UserError("holds preferences (chosen, rejected), not pairs; set fields to text=prompt code=chosen")
    answers = [x for x in ANSWERS if x in found]
    tasks = [x for x in TASKS if x in names] or [x for x in ("input",) if x in names]
    for task in tasks:
        for answer in answers:
            parts = (*BEFORE, task, *(x for x in AFTER if x != task))
            shown = "+".join(x for x in parts if x in found)
            turns = isinstance(found[task], list) and all(isinstance(turn, dict) for turn in found[task])
            make = _conversation(task, answer) if turns else None
            fitting.append(Layout(f"{shown}/{answer}", parts, (answer,), True, make=make))
    fitting += [Layout(name, make=_conversation(name), answers=True) for name in CONVERSATIONS if name in names]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        options = " or ".join(layout.name for layout in fitting)
        raise UserError(f"could be read as {options}; set fields, such as text={TASKS[0]} code={ANSWERS[0]}")
    raise UserError(
        f"has no fields that are known as a pair; found {shown_keys(found)}; expected text and code, "
        "instruction and output, prompt and completion, question and answer, or messages, or set fields"
    )


def pair_parts(layout: Layout, found: Mapping[str, Any], file_language: str | None) -> tuple[dict[str, Any], str]:
    """An object of the layout as a row's keys, and where its language comes from.

    Args:
        file_language: what the file's name says; None where it says nothing.

    Raises:
        Skip: the object is no pair.
        UserError: it does not have the layout's fields.
    """
    language, source = _language(layout, found, file_language)
    if layout.own:
        row = dict(found)
        name = next((x for x in CODE_FIELDS if isinstance(row.get(x), str)), None)
        if name is not None and row[name].lstrip().startswith(("```", "~~~")):
            row[name], language, source = _code_of_answer(row[name], language, source)
        elif name is not None and "\n" not in row[name].strip() and _XLCOST.search(row[name]):
            row[name] = restore_xlcost(row[name])
        row = {key: value for key, value in row.items() if key not in LANGUAGE_FIELDS or key in ("language", "lang")}
    else:
        if layout.answers and found.get("history"):
            raise Skip("of several turns")
        if layout.answers and found.get("label") is False:  # prompt, completion and label, as KTO trains on
            raise Skip("labeled as bad answers")
        if layout.make is None:
            text, code = (_joined(found, names) for names in (layout.text, layout.code))
        else:
            text, code, known = layout.make(found)
            if known is not None and not source.startswith("field"):
                language, source = known, "the names of tasks"
        if not text.strip() or not code.strip():
            raise Skip("without text or code")
        if layout.answers:
            code, language, source = _code_of_answer(code, language, source)
        row = {"text": text, "code": code}
        row |= {"id": next((found[x] for x in ID_FIELDS if isinstance(found.get(x), int | str)), None)}
    if "id" in layout.fixed:
        row["id"] = found.get(layout.fixed["id"])
    if language is not None:
        row.pop("lang", None)
        row["language"] = language
    return row, source


def _language(layout: Layout, found: Mapping[str, Any], file_language: str | None) -> tuple[str | None, str]:
    """The language of an object and where that comes from: its field, the layout, then the file's name."""
    chosen = layout.fixed.get("language")
    names = LANGUAGE_FIELDS if chosen is None else (chosen,)
    if chosen and chosen not in found:
        if language_key(chosen) in LANGUAGES:
            return language_key(chosen), "the setting fields"
        raise UserError(f"has no field {chosen!r}{did_you_mean(chosen, found)}; found {shown_keys(found)}")
    given: dict[str, str] = {}
    for name in (x for x in names if found.get(x) is not None):
        if not isinstance(found[name], str):
            raise UserError(f"{name!r} is {json_type(found[name])}; expected a string")
        given[name] = language_key(found[name].strip())
    if len(set(given.values())) > 1:
        raise UserError(f"{' and '.join(map(repr, given))} differ; set fields to language=FIELD")
    for name, value in given.items():
        return value, f"field {name}"
    if layout.language is not None:
        return layout.language, f"{layout.name}, which is {LANGUAGES[layout.language].name}"
    return file_language, "the file's name" if file_language else ""


def _joined(found: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        if name not in found and name not in (*BEFORE, *AFTER):
            raise UserError(f"lacks the field {name!r}; found {shown_keys(found)}")
        value = found.get(name)
        if value is None:
            continue
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            value = value[0]
        if not isinstance(value, str):
            raise UserError(f"{name!r} is {json_type(value)}; expected a string")
        if name not in (*BEFORE, *AFTER) or value.strip().lower() not in _EMPTY_INPUTS:
            parts.append(value)
    return "\n\n".join(parts)


def _code_of_answer(answer: str, language: str | None, source: str) -> tuple[str, str | None, str]:
    """The code of an answer: its one Markdown block, or all of it; with language, which a block may name."""
    answer = without_thoughts(answer)
    if not answer.strip():
        raise Skip("that only think")
    if not _FENCE_LINE.search(answer) or (language in _NO_BACKTICKS and parses(answer, language)):
        return answer, language, source
    blocks = [(language_key(name), code) for name, code, _ in fenced_blocks(answer) if code.strip()]
    known = {name for name, _ in blocks if name in LANGUAGES}
    if language is None and len(known) == 1:
        language, source = known.pop(), "code blocks"
    fitting = [code for name, code in blocks if name == language]
    fitting = fitting or [code for name, code in blocks if not name]
    if len(fitting) == 1:
        return fitting[0], language, source
    if not fitting and known:
        raise Skip("with a code block in another language")
    raise Skip("with several code blocks" if fitting else "without a code block of a known language")


def _conversation(*names: str) -> Callable[[Mapping[str, Any]], tuple[str, str, str | None]]:
    """Reads the turns in a field, or in two: trl's prompt and completion may be lists of messages."""

    def turns(found: Mapping[str, Any]) -> tuple[str, str, str | None]:
        messages: list[dict[str, Any]] = []
        for name in names:
            part = found.get(name)
            if not isinstance(part, list) or not all(isinstance(turn, dict) for turn in part):
                raise UserError(f"{name!r} is {json_type(part)}; expected a list of objects with role and content")
            messages += part
        said: list[tuple[str, str]] = []
        for turn in messages:
            role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
            if not isinstance(role, str):
                raise UserError(f"{names[0]!r} has a turn without role; found {shown_keys(turn)}")
            if isinstance(content, list):  # parts, as multimodal programs write them
                if not all(isinstance(x, dict) and isinstance(x.get("text"), str) for x in content):
                    raise Skip("with turns that are no text")
                content = "".join(part["text"] for part in content)
            if not isinstance(content, str):
                raise Skip("with turns that are no text")
            if role.lower() in _ASSISTANT and turn.get("weight") == 0:  # fine-tuning services' "do not train on it"
                raise Skip("with an answer of weight 0")
            said.append((role.lower(), content))
        system = [text for role, text in said if role in ("system", "developer")]
        rest = [(role, text) for role, text in said if role not in ("system", "developer")]
        if len(rest) > 2:
            raise Skip("of several turns")
        if len(rest) != 2 or rest[0][0] not in _USER or rest[1][0] not in _ASSISTANT:
            raise Skip("that are not a user's turn and an assistant's")
        return "\n\n".join(x for x in (*system, rest[0][1]) if x.strip()), rest[1][1], None

    return turns


_DOC = re.compile(
    r"[ \t]*[rR]?(\"\"\"|''')(.*?)\1[ \t]*\n?|[ \t]*/\*(.*?)\*/[ \t]*\n?|((?:^[ \t]*//.*\n?)+)", re.S | re.M
)


def _benchmark_task(found: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """A task of HumanEval, HumanEval-X or MBXP: its description, and the declaration with the solution."""
    prompt, solution = found["prompt"], found.get("canonical_solution")
    if not isinstance(solution, str) or not solution.strip():
        raise Skip("without text or code")
    if not isinstance(prompt, str):
        raise UserError(f"'prompt' is {json_type(prompt)}; expected a string")
    docs = list(_DOC.finditer(prompt))
    text, declaration = found.get("description"), found.get("declaration")
    if docs:
        comment = next((x for x in docs[-1].groups()[1:] if x), "")
        text = text or "\n".join(re.sub(r"^\s*(?:\*|//)+ ?", "", line).strip() for line in comment.split("\n"))
        if docs[-1][1] or not declaration:  # HumanEval-X's declarations in Python are cut out less cleanly
            declaration = prompt[: docs[-1].start()] + prompt[docs[-1].end() :]
    text = text or prompt
    prefix = str(found.get("task_id")).partition("/")[0].lower()
    language = _TASK_LANGUAGES.get(prefix, language_key(prefix))
    return (
        text.strip(),
        (declaration or prompt).strip("\n") + "\n" + solution,
        language if language in LANGUAGES else None,
    )


# XLCoST writes code as tokens; strings hold a mark for each space.
_XLCOST = re.compile(r"(?:^| )(?:NEW_LINE|▁|STRNEWLINE|TABSYMBOL)(?: |$)")
_XLCOST_STRING = re.compile(r"(?<![^ ])([\"']) ((?:(?!\1 )[^ ]+ )*)\1(?![^ ])")


def restore_xlcost(code: str) -> str:
    """Code from XLCoST's tokens: lines and indentation of Python, and strings, are as they were."""

    def string(found: re.Match[str]) -> str:
        inside = found[2].replace(" ", "").replace("▁", " ").replace("STRNEWLINE", "\\n").replace("TABSYMBOL", "\\t")
        return found[1] + inside.replace(" ", "\0") + found[1]

    lines, level, line = [], 0, list[str]()
    for token in _XLCOST_STRING.sub(string, code).split(" "):
        if token == "NEW_LINE":
            lines.append("    " * level + " ".join(line))
            line = []
        elif token in ("INDENT", "DEDENT"):
            level = max(0, level + (1 if token == "INDENT" else -1))
        elif token:
            line.append(token)
    lines.append("    " * level + " ".join(line))
    return "\n".join(x for x in lines if x.strip()).replace("\0", " ")
