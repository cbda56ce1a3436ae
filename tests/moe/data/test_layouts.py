"""Layouts: other people's fields are recognized, ambiguous ones refused, and what is no pair is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moe.data.layouts import Reading, parse_fields, restore_xlcost
from moe.data.pairs import Pair, iterate_pairs, read_pairs
from moe.errors import UserError

CODE = "def f(x):\n    return x"
MARKDOWN = f"Here is it:\n\n```python\n{CODE}\n```\nIt returns x."


def read(tmp_path: Path, *rows, name="python.jsonl", fields=()):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reading = Reading()
    from moe.data.splits import data_language

    pairs = [pair for _, pair in iterate_pairs(path, parse_fields(fields), reading, data_language(name))]
    return pairs, reading.describe()


def turn(role, content):
    return {"role": role, "content": content}


LAYOUTS = {
    "text/code": {"text": "T", "code": CODE},
    "instruction+input/output": {"instruction": "T", "input": "", "output": CODE},
    "instruction/output": {"instruction": "T", "output": MARKDOWN},
    "instruction/response": {"instruction": "T", "response": CODE},
    "input/output": {"input": "T", "output": CODE},
    "instruction+context/response": {"instruction": "T", "context": "", "response": CODE, "category": "x"},
    "system_prompt+question/response": {"system_prompt": "", "question": "T", "response": CODE},
    "prompt/completion": {"prompt": "T", "completion": MARKDOWN},
    "prompt/completion ": {"prompt": [turn("user", "T")], "completion": [turn("assistant", MARKDOWN)]},
    "question/answer": {"question": "T", "answer": CODE},
    "problem/solution": {"problem": "T", "solution": CODE, "seed": "x"},
    "messages": {"messages": [turn("user", "T"), turn("assistant", MARKDOWN)]},
    "conversations": {"conversations": [{"from": "human", "value": "T"}, {"from": "gpt", "value": CODE}]},
    "CodeSearchNet": {"func_name": "f", "docstring": "T", "code": CODE, "code_tokens": ["def"]},
    "CodeXGLUE nl/code": {"nl": "T", "code": CODE},
    "MBPP": {"task_id": 2, "text": "T", "code": CODE, "test_list": ["assert f(1) == 1"]},
    "HumanEval": {
        "task_id": "HumanEval/0",
        "prompt": 'def f(x):\n    """T\n    """\n',
        "canonical_solution": "    return x",
        "test": "def check(f): ...",
        "entry_point": "f",
    },
    "MBXP": {
        "task_id": "MBPP/1",
        "language": "python",
        "prompt": '\n\ndef f(x):\n\t"""\n\tlonger T\n\t"""\n',
        "description": "T",
        "canonical_solution": "    return x",
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_known_layouts(tmp_path, name):
    pairs, line = read(tmp_path, LAYOUTS[name])
    assert [(pair.language, pair.text, pair.code) for pair in pairs] == [("python", "T", CODE)]
    assert line.startswith(f"read as {name.strip()}, 1 pairs, language from ")


def test_languages_come_from_field_name_or_block(tmp_path):
    task = {"instruction": "T", "output": CODE}
    assert read(tmp_path, {**task, "lang": "Python"}, name="a.jsonl")[1].endswith("language from field lang")
    assert read(tmp_path, task, name="py-00000-of-00002.jsonl")[1].endswith("language from the file's name")
    pairs, line = read(tmp_path, {**task, "output": MARKDOWN}, task, name="a.jsonl")
    assert len(pairs) == 1 and "language from code blocks; left out 1 that name no language" in line
    pairs, line = read(tmp_path, {**task, "lang": "en"}, fields=["language="])
    assert pairs[0].language == "python" and line.endswith("the file's name")
    assert read(tmp_path, task, name="a.jsonl", fields=["language=js"])[0][0].language == "javascript"
    with pytest.raises(UserError, match="line 1: language is 'java'; expected 'python', as in the file's name"):
        read(tmp_path, {**task, "lang": "java"})
    with pytest.raises(UserError, match="line 2: language is 'java'; expected 'python'"):
        read(tmp_path, task, {**task, "programming_language": "Java"})
    java = {"task_id": "Java/0", "prompt": "/* T */\nint f() {", "canonical_solution": "return 1; }"}
    with pytest.raises(UserError, match="line 1: language is 'java'; expected 'python'"):
        read(tmp_path, java)
    with pytest.raises(UserError, match="language is 'python'; expected 'java'"):
        read(tmp_path, LAYOUTS["MBPP"], name="java.jsonl")


def test_what_is_no_pair_is_left_out_and_counted(tmp_path):
    several = [turn("user", "T"), turn("assistant", CODE), turn("user", "U"), turn("assistant", CODE)]
    tool = [turn("user", "T"), turn("tool", CODE)]
    system = [turn("system", "Be brief."), turn("user", "T"), turn("assistant", CODE)]
    rows = [{"messages": x} for x in (system, several, tool, several)]
    pairs, line = read(tmp_path, *rows)
    assert [pair.text for pair in pairs] == ["Be brief.\n\nT"]
    assert line.endswith("left out 2 of several turns, 1 that are not a user's turn and an assistant's")
    twice = MARKDOWN + "\n```python\nf(1)\n```"
    answers = [
        twice,
        "```java\nint x;\n```",
        "  \n",
        MARKDOWN,
        MARKDOWN + "\n```\nfree text\n```",
        MARKDOWN + "\n```bash\nls\n```",
    ]
    pairs, line = read(tmp_path, *({"prompt": "T", "completion": x} for x in answers))
    assert [pair.code for pair in pairs] == [CODE] * 3
    for reason in ("1 with several code blocks", "1 with a code block in another language", "1 without text or code"):
        assert reason in line
    with pytest.raises(UserError, match=r"holds no pairs \(left out 1 of several turns\)"):
        read(tmp_path, {"messages": several})


def test_blocks_in_doc_comments_are_no_markdown(tmp_path):
    code = 'def f():\n    """Such as\n\n    ```python\n    f()\n    ```\n    """\n    return 1'
    assert read(tmp_path, {"prompt": "T", "completion": code})[0][0].code == code
    assert read(tmp_path, {"text": "T", "code": code})[0][0].code == code
    two_spaces = code.replace("    ", "  ")
    assert read(tmp_path, {"prompt": "T", "completion": two_spaces})[0][0].code == two_spaces
    assert read(tmp_path, {"text": "T", "code": f"```python\n{code}\n```"})[0][0].code.startswith("def f")


def test_input_is_part_of_the_instruction(tmp_path):
    rows = [{"instruction": "T", "input": x, "output": CODE} for x in ("x = 3", None, "<noinput>")]
    assert [pair.text for pair in read(tmp_path, *rows)[0]] == ["T\n\nx = 3", "T", "T"]
    later = {**rows[0], "input": None}
    del later["input"]
    assert read(tmp_path, later, rows[0])[0][1].text == "T\n\nx = 3", "a field that the first line lacks"
    row = {"system": "S", "instruction": "T", "context": "C", "output": CODE}
    pairs, line = read(tmp_path, row, {**row, "history": [["a", "b"]]})
    assert pairs[0].text == "S\n\nT\n\nC" and line.endswith("left out 1 of several turns")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a", "output": "b", "prompt": "c"}, "could be read as instruction/output or prompt/output"),
        (
            {"text": "a", "code": "b", "instruction": "c", "output": "d"},
            "could be read as text/code or instruction/output",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "holds preferences"),
        ({"data": [1]}, "has no fields that are known as a pair; found 'data'"),
        ({"prompt": ["a", "b"], "completion": "b"}, "'prompt' is a list; expected a string"),
        ({"messages": "hello"}, "'messages' is a string; expected a list of objects"),
        ({"messages": [{"text": "x"}]}, "'messages' has a turn without role"),
        (
            {"prompt": [{"role": "user", "content": "T"}], "completion": "x"},
            "'completion' is a string; expected a list",
        ),
        ({"text": "a", "code": "b", "lang": 3}, "'lang' is a number; expected a string"),
        ({"text": "a", "code": "b", "lang": "python", "language": "en"}, "'language' and 'lang' differ; set fields"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path, row, message):
    with pytest.raises(UserError, match=rf"python\.jsonl, line 1: {message}"):
        read(tmp_path, row)


def test_the_layout_of_the_first_line_holds_for_all(tmp_path):
    with pytest.raises(UserError, match=r"line 2: lacks the field 'instruction'; found 'prompt', 'completion'"):
        read(tmp_path, {"instruction": "T", "output": CODE}, {"prompt": "T", "completion": CODE})


def test_fields_say_what_is_what(tmp_path):
    row = {"a": "T", "b": "more", "c": CODE, "n": 7, "text": "other", "code": "other"}
    pairs, line = read(tmp_path, row, fields=["text=a+b", "code=c", "id=n"])
    assert pairs == [Pair("python", "T\n\nmore", CODE, id="7")] and line.startswith("read as a+b/c, 1 pairs")
    assert read_pairs(tmp_path / "python.jsonl", fields=["text=a"])[0].code == "other"
    both = {"text": "T", "code": CODE, "reference": "x"}
    assert read(tmp_path, both, fields=["text=text", "code=code"])[0][0].code == CODE
    for fields, message in (
        (["language=n"], "'n' is a number; expected a string"),
        (["text=txt"], "has no field 'txt' .did you mean 'text'"),
        (["language=x"], "has no field 'x'"),
        (["txt=a"], "fields has 'txt=a' .did you mean 'text'"),
        (["text"], "fields has 'text'; expected PART=FIELD"),
        (["text=a", "text=b"], "once"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, row, fields=fields)


def test_xlcost_code_is_code_again(tmp_path):
    tokens = (
        'def f ( a ) : NEW_LINE INDENT for x in a : NEW_LINE INDENT print ( " Hello ▁ you " ) NEW_LINE DEDENT '
        "return a NEW_LINE DEDENT f ( [ ] ) NEW_LINE"
    )
    code = 'def f ( a ) :\n    for x in a :\n        print ( "Hello you" )\n    return a\nf ( [ ] )'
    assert restore_xlcost(tokens) == code
    assert read(tmp_path, {"text": "T", "code": tokens})[0][0].code == code
    compile(code, "x", "exec")


def test_benchmarks_as_they_are(shared_data):
    """HumanEval-X and MBXP: descriptions stand in no code, and Python's parses."""
    for benchmark in ("humaneval-x", "mbxp"):
        folder = shared_data / "benchmarks" / benchmark
        for language, name in (("python", "Python"), ("java", "Java"), ("javascript", "JavaScript"), ("cpp", "C++")):
            pairs = read_pairs(folder / f"{language}.jsonl.gz")
            assert len(pairs) > 150 and not [p for p in pairs if p.text in p.code or p.text.startswith(("*", "/"))], (
                name
            )
            if language == "python":
                for pair in pairs:
                    compile(pair.code, pair.id or "", "exec")


def test_answers_that_are_marked_as_bad_are_left_out(tmp_path):
    rows = [{"prompt": f"T{i}", "completion": CODE, "label": i > 0} for i in range(2)]
    pairs, said = read(tmp_path, *rows)
    assert [pair.text for pair in pairs] == ["T1"] and "left out 1 labeled as bad answers" in said
    rows = [{"messages": [turn("user", f"T{i}"), turn("assistant", CODE) | {"weight": i}]} for i in range(2)]
    pairs, said = read(tmp_path, *rows)
    assert [pair.text for pair in pairs] == ["T1"] and "left out 1 with an answer of weight 0" in said


def test_one_field_is_not_both_text_and_code():
    with pytest.raises(UserError, match="fields has 'code' as text and as code"):
        parse_fields(["text=code", "code=code"])
