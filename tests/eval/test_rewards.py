"""What tests say of sampled answers."""

from __future__ import annotations

import json

import pytest

from eval.rewards import shares_of_tests, usable_tasks
from moe.data.pairs import Pair
from moe.errors import UserError

TESTS = json.dumps(
    {
        "function": "double",
        "parameters": [["n", "int"]],
        "returns": "int",
        "cases": [{"arguments": [n], "expected": 2 * n} for n in (0, 1, 2, 3)],
    }
)
TASK = Pair("python", "Double it.", "", "double", TESTS)


def test_the_share_of_right_cases_is_the_reward():
    answers = {
        "def double(n):\n    return 2 * n": 1.0,
        "def double(n):\n    return n * n": 0.5,
        "def double(n):\n    return 1 / n": 0.0,
        "def double(n):\n    return {1: 2, 2: 4}[n]": 0.5,
        "def double(n) return 2 * n": 0.0,
        "```python\ndef double(n):\n    return n + n\n```": 1.0,
        "": 0.0,
    }
    assert shares_of_tests([(TASK, answer) for answer in answers]) == list(answers.values())


def test_without_containment_nothing_is_learned(monkeypatch):
    monkeypatch.setattr("eval.execution.sandbox.works", lambda mode: "no")
    with pytest.raises(UserError, match="nothing here contains the code"):
        usable_tasks({"python": [TASK]})


def test_tasks_without_usable_tests_are_left_out():
    bad, untested = (Pair("python", "x", "", None, tests) for tests in ("{}", None))
    ruby = Pair("ruby", "x", "", None, TESTS)
    assert usable_tasks({"python": [bad, TASK, untested], "ruby": [ruby]}) == {"python": [TASK]}
    for pairs, why in (({"python": [untested]}, "no training pair has tests"), ({"ruby": [ruby]}, "cannot run 'ruby'")):
        with pytest.raises(UserError, match=why):
            usable_tasks(pairs)
