"""Prompts taken apart, the brace that ends a function, and answers joined with what they need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.benchmarks.programs import answer_code, canonical_code, problem_tests
from eval.benchmarks.prompts import STYLES, check_style, instruction
from eval.benchmarks.source import brace_depth, function_end, prompt_parts
from moe.errors import UserError
from tests.eval.benchmarks.embedded import HUMANEVAL_X, MBPP, MBXP, MULTIPL_E, PAIR, problems

TARGETS = {"python": "sum_above", "java": "sumAbove", "javascript": "sumAbove", "cpp": "sum_above"}
BRACED = ("java", "javascript", "cpp")


@pytest.fixture
def humaneval_x(tmp_path):
    return {p.language: p for p in problems("humaneval-x", list(HUMANEVAL_X.values()), tmp_path)}


@pytest.mark.parametrize("language", TARGETS)
def test_prompts_are_taken_apart(language):
    parts = prompt_parts(HUMANEVAL_X[language]["prompt"], language)
    assert parts.name == TARGETS[language]
    assert list(parts.helpers) == ["half"]
    assert parts.description.startswith("Add up the numbers of a list that are greater than limit.")
    assert "Half" not in parts.description
    assert TARGETS[language] in parts.signature and "Add up" not in parts.signature and "half" not in parts.signature
    assert parts.class_name == ("Solution" if language == "java" else "")
    preamble = {"python": "from typing import List", "java": "import java.util.*;", "javascript": "", "cpp": "#include"}
    assert parts.preamble.startswith(preamble[language])


@pytest.mark.parametrize(
    ("prompt", "description", "signature"),
    [
        ('def f(x):\n\t"""\n\tDo it.\n\t  more\n\t"""\n', "Do it.\n  more", "def f(x):"),
        ("def f(x):\n    # Do it.\n    # Twice.\n", "Do it.\nTwice.", "def f(x):"),
        ("class A:\n    pass\n\n\n@cache\ndef f(x):\n    '''Do it.'''\n", "Do it.", "@cache\ndef f(x):"),
    ],
)
def test_python_prompts_of_other_forms(prompt, description, signature):
    parts = prompt_parts(prompt, "python")
    assert (parts.description, parts.signature, parts.name) == (description, signature, "f")


def test_a_list_with_stars_in_a_comment_keeps_them():
    parts = prompt_parts("/*\nDo it.\n* one\n* two\n*/\nint f(int x){\n", "cpp")
    assert parts.description == "Do it.\n* one\n* two"
    assert (
        prompt_parts("/**\n * * Do it.\n *\n * > f(1)\n */\nint f(int x){\n", "cpp").description == "Do it.\n\n> f(1)"
    )


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("  return 1;\n}\nint g() {}", "  return 1;\n}"),
        ("  if (x) { y(); }\n}", "  if (x) { y(); }\n}"),
        ("  s = \"}\"; c = '}'; // }\n  /* } */\n}x", "  s = \"}\"; c = '}'; // }\n  /* } */\n}"),
        ("  s = `}${y}`;\n}x", "  s = `}${y}`;\n}"),
        ("  s.replace(/[}/]}/g, '');\n}x", "  s.replace(/[}/]}/g, '');\n}"),
        ("  x = a / b; y = c / d }x", "  x = a / b; y = c / d }"),
        ('  s = "\\"}";\n}x', '  s = "\\"}";\n}'),
        ("  x = 1'000'000;\n}x", "  x = 1'000'000;\n}"),
        ("  if (x) {\n", None),
        ("  // }\n", None),
    ],
)
def test_a_function_ends_with_its_own_brace(completion, kept):
    end = function_end(completion)
    assert (None if end is None else completion[:end]) == kept


def test_braces_of_strings_and_comments_do_not_count():
    assert brace_depth("class A { char c = '{'; String s = \"{{\"; // {\n void f() { /* { */") == 2


def test_a_completion_follows_its_prompt_and_java_gets_its_class_closed(humaneval_x):
    for language, problem in humaneval_x.items():
        answer = "\n" + problem.solution.rstrip()
        if language == "java":
            answer = answer[: function_end(answer)]
        code = answer_code(problem, answer, "completion")
        assert code.startswith(problem.prompt)
        assert "".join(code.split()) == "".join(canonical_code(problem).split())


def test_a_cut_off_completion_stays_cut_off(humaneval_x):
    code = answer_code(humaneval_x["java"], "\n        if (true) {", "completion")
    assert code.endswith("if (true) {")


def test_instructions_show_description_and_signature(humaneval_x, tmp_path):
    for language, problem in humaneval_x.items():
        text = instruction(problem, "code-only")
        assert "Add up the numbers" in text and prompt_parts(problem.prompt, language).signature in text
        assert "one ```" in text and text.startswith("Write a ")
    assert "class Solution {" in instruction(humaneval_x["java"], "train")
    mbpp = problems("mbpp", [MBPP], tmp_path)[0]
    assert MBPP["test_list"][0] in instruction(mbpp, "train")


@pytest.mark.parametrize("language", TARGETS)
def test_code_blocks_get_what_they_need_of_the_prompt(language, humaneval_x):
    problem = humaneval_x[language]
    parts = prompt_parts(problem.prompt, language)
    function = (
        f"{parts.signature}\n{problem.solution.removesuffix('}' + chr(10)) if language == 'java' else problem.solution}"
    )
    answer = f"Sure!\n```{language}\n{function}\n```\nThat is it."
    code = answer_code(problem, answer, "instruction")
    assert code.count("half") == 1 and "Sure" not in code and "That is it" not in code
    assert parts.preamble in code
    own = answer_code(problem, f"```\n{parts.helpers['half']}\n{function}\n```", "instruction")
    assert own.count("half") == 1
    if language == "java":
        assert code.count("class Solution") == 1
        whole = answer_code(
            problem, f"```java\nimport java.io.*;\nclass Solution {{\n{function}\n}}\n```", "instruction"
        )
        assert whole.count("class Solution") == 1 and whole.count("half") == 1
        assert whole.index("import java.io") < whole.index("class Solution")


def test_mains_of_answers_make_way_for_those_of_the_tests(humaneval_x):
    cpp = answer_code(
        humaneval_x["cpp"], "```cpp\nint sum_above() { return 1; }\nint main() { return 0; }\n```", "instruction"
    )
    assert "main" not in cpp
    java = "```java\nclass Solution { int sumAbove() { return 1; } }\npublic class Main { static void main() {} }\n```"
    assert "Main" not in answer_code(humaneval_x["java"], java, "instruction")


@pytest.mark.parametrize(
    "code",
    [
        'from "x" import y\npublic class Main {\nstatic int f() {\nreturn 1;\n}\nstatic int g() {\nif (1 > 0',
        "int f() { return a.map(x => x.y('('))); }\n[ '(', '())' ]",
        "}\nint f() { return 1; }\n{",
    ],
)
def test_java_that_does_not_parse_is_taken_as_it_is(code, humaneval_x):
    assert "return" in answer_code(humaneval_x["java"], f"```java\n{code}\n```", "instruction")


def test_multipl_e_tests_close_what_a_completion_leaves_open(tmp_path):
    for problem in problems("multipl-e", list(MULTIPL_E.values()), tmp_path):
        code, tests = problem_tests(problem, "completion", answer_code(problem, "x", "completion"))
        assert code == problem.prompt + "x"
        assert tests.after == problem.tests
        parts = prompt_parts(problem.prompt, problem.language)
        assert parts.description.startswith("Add up")


def test_pairs_have_no_signature_to_complete(tmp_path):
    pairs = problems("pairs", [PAIR], tmp_path)
    with pytest.raises(UserError, match="has no signature to complete; type --style instruction"):
        check_style("completion", pairs)
    check_style("instruction", pairs)
    for style in STYLES:
        check_style(style, problems("mbxp", list(MBXP.values()), tmp_path))


def test_a_prompt_that_declares_nothing_is_kept_whole(humaneval_x):
    problem = replace(humaneval_x["python"], prompt="x = 1\n")
    assert answer_code(problem, "```python\ny = 2\n```", "instruction") == "x = 1\n\ny = 2\n"
