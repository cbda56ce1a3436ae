"""A problem of our own in the layout of each benchmark, with its solution, a wrong one, and a chat answer."""

from __future__ import annotations

import json
from typing import Any

from eval.benchmarks.problems import Problem, read_problems

Row = dict[str, Any]
_DESCRIPTION = "Add up the numbers of a list that are greater than limit."
_PYTHON = (
    'from typing import List\n\n\ndef half(x: int) -> int:\n    """Half of x."""\n    return x // 2\n\n\n'
    'def sum_above(numbers: List[int], limit: int) -> int:\n    """ ' + _DESCRIPTION + "\n"
    '    >>> sum_above([1, 5, 7], 4)\n    12\n    """\n'
)
_PYTHON_SOLUTION = (
    "    total = 0\n    for x in numbers:\n        if x > limit:\n            total += x\n    return total\n"
)
_PYTHON_CHECK = "def check(f):\n    assert f([1, 5, 7], 4) == 12\n    assert f([4], 4) == 0\n    assert half(5) == 2\n"
_BODY = """\
TYPE total = 0;
    for (TYPE x : numbers) {
        if (x > limit) {
            total += x;
        }
    }
    return total;
}
"""
_JAVASCRIPT_SOLUTION = """\
  let total = 0;
  for (const x of numbers) {
    if (x > limit) {
      total += x;
    }
  }
  return total;
}
"""
_JAVA = (
    "import java.util.*;\n\nclass Solution {\n    /**\n     * Half of x.\n     */\n    public int half(int x) {\n"
    "        return x / 2;\n    }\n\n    /**\n     * " + _DESCRIPTION + "\n     */\n"
    "    public int sumAbove(List<Integer> numbers, int limit) {\n"
)
_JAVASCRIPT = (
    "const half = (x) => {\n  return Math.floor(x / 2);\n}\n\n/* " + _DESCRIPTION + " */\n"
    "const sumAbove = (numbers, limit) => {\n"
)
_CPP = (
    "/*\n" + _DESCRIPTION + "\n*/\n#include<vector>\nusing namespace std;\nint half(int x){\n    return x / 2;\n}\n"
    "int sum_above(vector<int> numbers, int limit){\n"
)
_JAVA_MAIN = """\
public class Main {
    public static void main(String[] args) {
        Solution s = new Solution();
        List<Boolean> correct = Arrays.asList(
            s.sumAbove(Arrays.asList(1, 5, 7), 4) == 12, s.sumAbove(Arrays.asList(4), 4) == 0, s.half(5) == 2);
        if (correct.contains(false)) {
            throw new AssertionError();
        }
    }
}
"""
_CPP_MAIN = (
    "#undef NDEBUG\n#include<assert.h>\nint main(){\n    assert (sum_above({1, 5, 7}, 4) == 12);\n"
    "    assert (sum_above({4}, 4) == 0);\n    assert (half(5) == 2);\n}\n"
)
_JAVA_SOLUTION = "    " + _BODY.replace("TYPE", "int") + "}\n"
_CPP_SOLUTION = "    " + _BODY.replace("TYPE", "int")

HUMANEVAL_X: dict[str, Row] = {
    "python": {
        "task_id": "Python/7",
        "prompt": _PYTHON,
        "declaration": "def sum_above(numbers, limit):\n",
        "canonical_solution": _PYTHON_SOLUTION,
        "test": _PYTHON_CHECK + "\ncheck(sum_above)\n",
        "example_test": "",
    },
    "java": {
        "task_id": "Java/7",
        "prompt": _JAVA,
        "declaration": "",
        "canonical_solution": _JAVA_SOLUTION,
        "test": _JAVA_MAIN,
    },
    "javascript": {
        "task_id": "JavaScript/7",
        "prompt": _JAVASCRIPT,
        "declaration": "",
        "canonical_solution": _JAVASCRIPT_SOLUTION,
        "test": "const test = () => {\n  console.assert(sumAbove([1, 5, 7], 4) === 12)\n"
        "  console.assert(sumAbove([4], 4) === 0)\n  console.assert(half(5) === 2)\n}\n\ntest()\n",
    },
    "cpp": {
        "task_id": "CPP/7",
        "prompt": _CPP,
        "declaration": "",
        "canonical_solution": _CPP_SOLUTION,
        "test": _CPP_MAIN,
    },
}
HUMANEVAL: Row = {
    "task_id": "HumanEval/7",
    "prompt": _PYTHON,
    "entry_point": "sum_above",
    "canonical_solution": _PYTHON_SOLUTION,
    "test": "METADATA = {}\n\n\n" + _PYTHON_CHECK,
}
MBPP: Row = {
    "task_id": 11,
    "text": _DESCRIPTION,
    "code": "def sum_above(numbers, limit):\r\n    return sum(x for x in numbers if x > limit)",
    "test_list": ["assert sum_above([1, 5, 7], 4) == 12", "assert sum_above(four, 4) == 0"],
    "test_setup_code": "four = [4]",
    "challenge_test_list": [],
}
MBPP_SANITIZED: Row = {
    "task_id": 12,
    "prompt": _DESCRIPTION,
    "code": MBPP["code"],
    "test_list": ["assert math.isclose(sum_above([1, 5, 7], 4), 12)"],
    "test_imports": ["import math"],
    "source_file": "x.ipynb",
}
_MBXP = {
    "python": ("MBPP/3", _PYTHON, _PYTHON_SOLUTION, _PYTHON_CHECK, "sum_above"),
    "java": (
        "MBJP/3",
        _JAVA.replace("Solution", "SumAbove").replace("public int", "public static int"),
        _JAVA_SOLUTION,
        "class Main {\n    public static void main(String[] args) throws Exception {\n"
        "        int x0 = SumAbove.sumAbove(Arrays.asList(1, 5, 7), 4);\n"
        '        if (x0 != 12) {\n            throw new java.lang.Exception("x0 = " + x0);\n        }\n    }\n}\n',
        "sumAbove",
    ),
    "javascript": (
        "MBJSP/3",
        _JAVASCRIPT.replace("const sumAbove = (numbers, limit) =>", "function sumAbove(numbers, limit)"),
        _JAVASCRIPT_SOLUTION,
        "var x0 = sumAbove([1, 5, 7], 4);\nif (x0 !== 12) {\n    throw 'Error at 1th assert statement.'\n}\n",
        "sumAbove",
    ),
    "cpp": (
        "MBCPP/3",
        "#include <bits/stdc++.h>\n" + _CPP,
        _CPP_SOLUTION,
        "int main(int argc, char* argv[]) {\n    if (sum_above({1, 5, 7}, 4) != 12) {\n"
        '        throw runtime_error("x0");\n    }\n    return 0;\n}\n',
        "sum_above",
    ),
}
MBXP: dict[str, Row] = {
    language: {
        "task_id": name,
        "language": language,
        "prompt": prompt,
        "canonical_solution": solution,
        "entry_point": entry,
        "test": test,
        "description": _DESCRIPTION,
    }
    for language, (name, prompt, solution, test, entry) in _MBXP.items()
}
# Its tests close what a completion leaves open: the stop strings are not part of it.
MULTIPL_E: dict[str, Row] = {
    "python": {
        "name": "HumanEval_7_sum_above",
        "language": "py",
        "prompt": _PYTHON,
        "tests": "def check(candidate):\n    assert candidate([1, 5, 7], 4) == 12\n\n"
        "def test_check():\n    check(sum_above)\n\ntest_check()\n",
        "stop_tokens": ["\ndef", "\n#", "\nif", "\nclass"],
    },
    "java": {
        "name": "HumanEval_7_sum_above",
        "language": "java",
        "prompt": "import java.util.*;\nclass Problem {\n    // " + _DESCRIPTION + "\n"
        "    public static long sumAbove(ArrayList<Long> numbers, long limit) {\n",
        "tests": "    }\n    public static void main(String[] args) {\n"
        "    assert(sumAbove((new ArrayList<Long>(Arrays.asList((long)1l, (long)5l, (long)7l))), (4l)) == (12l));\n"
        "    }\n\n}\n",
        "stop_tokens": ["\n    }\n"],
    },
    "javascript": {
        "name": "HumanEval_7_sum_above",
        "language": "js",
        "prompt": "//" + _DESCRIPTION + "\nfunction sum_above(numbers, limit){\n",
        "tests": "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = sum_above;\n"
        "  assert.deepEqual(candidate([1, 5, 7], 4),12);\n}\n\ntest();",
        "stop_tokens": ["\nfunction ", "\n/*", "\n//", "\nconsole.log"],
    },
    "cpp": {
        "name": "HumanEval_7_sum_above",
        "language": "cpp",
        "prompt": "#include<assert.h>\n#include<bits/stdc++.h>\n// " + _DESCRIPTION + "\n"
        "long sum_above(std::vector<long> numbers, long limit) {\n",
        "tests": "}\nint main() {\n    auto candidate = sum_above;\n"
        "    assert(candidate((std::vector<long>({(long)1, (long)5, (long)7})), (4)) == (12));\n}\n",
        "stop_tokens": ["\n}"],
    },
}
MULTIPL_E_COMPLETIONS = {
    "python": _PYTHON_SOLUTION,
    "java": "        " + _BODY.replace("TYPE", "long").removesuffix("}\n"),
    "javascript": _JAVASCRIPT_SOLUTION,
    "cpp": "    " + _BODY.replace("TYPE", "long").removesuffix("}\n"),
}
PAIR: Row = {
    "id": "sum-above",
    "language": "python",
    "text": _DESCRIPTION,
    "code": MBPP["code"],
    "tests": json.dumps(
        {
            "function": "sum_above",
            "parameters": [["numbers", "list[int]"], ["limit", "int"]],
            "returns": "int",
            "cases": [{"arguments": [[1, 5, 7], 4], "expected": 12}, {"arguments": [[4], 4], "expected": 0}],
        }
    ),
}


def problems(name: str, rows: list[Row], folder: Any) -> list[Problem]:
    """The rows as a file of the benchmark, read back."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [problem for items in read_problems(name, path, []).values() for problem in items]
