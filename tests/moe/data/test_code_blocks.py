"""Code taken out of chat answers."""

from __future__ import annotations

import pytest

from moe.data.code_blocks import extract_code

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
        (f"\n{CODE}\n\n", CODE),
        (f"Sure! Here is the function:\n\n{CODE}\n\nThis function returns `x`. It takes one argument.\nNotes:\n", CODE),
        ("    return x\n", "    return x"),
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
    assert extract_code(answer, "python") == code


def test_the_fence_of_the_language_asked_for_wins() -> None:
    answer = "```c\nint f(void);\n```\n```c++\nauto f() -> int;\n```\n```js\nlet f;\n```"
    assert extract_code(answer, "cpp") == "auto f() -> int;"
    assert extract_code(answer, "javascript") == "let f;"
    assert extract_code(answer, "java") == "int f(void);"
