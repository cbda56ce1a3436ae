"""Shared by the tests of the judge."""

import pytest

from eval.execution import CaseTests, Limits, judge_many, missing_tools

# Containers without user namespaces run the suite, too; test_containment.py skips what needs more.
LIMITS = Limits(seconds=30, unsafe=True)


def needs(language):
    if missing := missing_tools(language):
        pytest.skip(f"{language} needs {' and '.join(missing)} on the path")


def cases(function, types, returns, *rows):
    """Tests of one function; each row is its arguments and, last, what is expected."""
    return CaseTests.parse(
        {
            "function": function,
            "parameters": [[f"p{i}", type_] for i, type_ in enumerate(types)],
            "returns": returns,
            "cases": [{"arguments": list(row[:-1]), "expected": row[-1]} for row in rows],
        }
    )


TWICE = cases("twice", ["int"], "int", (2, 4), (-3, -6))


def check(language, answers, limits=LIMITS):
    """Judges {name: (answer, tests, statuses)} and compares all at once."""
    needs(language)
    verdicts = judge_many([(language, answer, tests) for answer, tests, _ in answers.values()], limits, 2)
    got = dict(zip(answers, verdicts))
    wrong = {name: (got[name], expected) for name, (_, _, expected) in answers.items() if got[name].status != expected}
    assert not wrong, "\n".join(f"{name}: {verdict}, expected {status}" for name, (verdict, status) in wrong.items())
    return got
