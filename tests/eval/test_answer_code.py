"""Code taken out of chat answers."""

from __future__ import annotations

import pytest

from eval.answer_code import answer_code, is_complete

CODE = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (f"Sure!\n\n```python\n{CODE}\n```\nThis works.", CODE),
        (f"```\n{CODE}\n```", CODE),
        (f"Here: ```py\n{CODE}\n```", CODE),
        (f"```java\nint f();\n```\n```Python\n{CODE}\n```", CODE),
        (f"```bash\npip install x\n```\nthen\n```\n{CODE}\n```", CODE),
        ("```java\nint f();\n```", "int f();"),
        (f"```python\n{CODE}\n```\n```python\nf(1)\n```", CODE),
        (f"```python\n{CODE}", CODE),
        (f"``` python title=x\n\n{CODE}\n\n```", CODE),
        (f"~~~~python\n{CODE}\n~~~~\nDone.", CODE),
        (f"````python\n{CODE}\n# ```\n````", f"{CODE}\n# ```"),
        ("1. First:\n   ```python\n   def f(x):\n       return x\n   ```", CODE),
        (f"```python\n```\n```python\n{CODE}\n```", CODE),
        (f"```python\r\n{CODE}\r\n```\r\n", CODE),
        (CODE, CODE),
        (f"\n{CODE}\n\n", f"\n{CODE}\n\n"),
        (f"Sure! Here is the function:\n\n{CODE}\n\nThis function returns `x`. It takes one argument.\nNotes:\n", CODE),
        ("    return x\n", "    return x\n"),
        ("// Adds two numbers.\nint f();", "// Adds two numbers.\nint f();"),
        ('"""Doc.\n\nReturns the sum of all.\n"""', '"""Doc.\n\nReturns the sum of all.\n"""'),
        ("I cannot do that.", "I cannot do that."),
        (f"<think>\nFirst\n```python\nx = 1\n```\n</think>\n\n```python\n{CODE}\n```", CODE),
        (f"<think>A function.</think>\n{CODE}", CODE),
        (f"Hm, f.\n</think>\n{CODE}", CODE),
        ("<think>\nIt never ends:\ndef f(x):", ""),
        ('print("<think>")\nx = "</think>"', 'print("<think>")\nx = "</think>"'),
        ("", ""),
    ],
)
def test_code_is_taken_out_of_an_answer(answer: str, code: str) -> None:
    assert answer_code(answer, "python") == code


def test_the_fence_of_the_language_asked_for_wins() -> None:
    answer = "```c\nint f(void);\n```\n```c++\nauto f() -> int;\n```\n```js\nlet f;\n```"
    assert answer_code(answer, "cpp") == "auto f() -> int;"
    assert answer_code(answer, "javascript") == "let f;"
    assert answer_code(answer, "java") == "int f(void);"


FENCE = "```"
DOCUMENTED = f'def f(x):\n    """Doc.\n\n    {FENCE}\n    f(1)\n    {FENCE}\n    """\n    return x'


@pytest.mark.parametrize(
    ("answer", "language", "code"),
    [
        (f"{FENCE}javascript\nlet x;\n{FENCE}", "javascript", "let x;"),
        (f"Here's the code:\n{FENCE}javascript\nlet x = `a`;\n{FENCE}\nIt's `x`.", "javascript", "let x = `a`;"),
        (f"{FENCE}\nint x;\n", "cpp", "int x;"),
        ("Here it is:\nint x;\n", "java", "int x;\n"),
        ("\ufeff#!/usr/bin/python\nx = 1\n", "python", None),
        (DOCUMENTED, "python", None),
        (f"{DOCUMENTED} +", "python", None),
        (f"{DOCUMENTED.replace('    ', '  ')}", "python", None),
        (f"It's here:\n\n{FENCE}python\n{DOCUMENTED}\n{FENCE}\nThat's it.", "python", DOCUMENTED),
        (f"Here is the function:\n{DOCUMENTED}\nIt returns its argument.", "python", DOCUMENTED),
        (f'"""Notes.\n\n{FENCE}\nf(1)\n{FENCE}\n"""\n{DOCUMENTED}', "python", None),
        (f"/**\n * {FENCE}js\n * f()\n * {FENCE}\n */\nfunction f() {{}}\n", "javascript", None),
        (f"/*\n{FENCE}\nf()\n{FENCE}\n*/\nconst f = () => `a${{1}}`;\n", "javascript", None),
        (f"/// {FENCE}\n/// f();\n/// {FENCE}\nvoid f() {{}}\n", "cpp", None),
        (f"#define EACH(i, n) while (n)\n/*\n{FENCE}\nf();\n{FENCE}\n*/\nvoid f() {{ EACH(i, 3) {{ }} }}",
         "cpp", None),
        (f'class A {{ String s = """\n{FENCE}\nx\n{FENCE}\n"""; }}\n', "java", None),
    ],
)  # fmt: skip
def test_fences_in_comments_and_strings_are_code(answer: str, language: str, code: str | None) -> None:
    assert answer_code(answer, language).strip("\n") == (answer if code is None else code).strip("\n")


@pytest.mark.parametrize(
    ("answer", "complete"),
    [
        (f"Sure:\n{FENCE}python\n{CODE}\n{FENCE}", True),
        (f"{FENCE}\n{CODE}\n{FENCE}\n", True),
        (f"{FENCE}python\n{CODE}\n", False),
        (f"{FENCE}bash\npip install x\n{FENCE}\n", False),
        (f"{FENCE}bash\npip install x\n{FENCE}\n{FENCE}python\n{CODE}\n{FENCE}", True),
        (f"{FENCE}python\n{DOCUMENTED}", False),
        (f"{FENCE}python\n{DOCUMENTED}\n{FENCE}", True),
        (DOCUMENTED, False),
        (f"{FENCE}python\n{FENCE}\n", False),
        (CODE, False),
    ],
)
def test_a_model_may_stop_when_its_block_is_closed(answer: str, complete: bool) -> None:
    assert is_complete(answer, "python") is complete
