"""What tests say of sampled answers: the share of a task's tests that each passes."""

from __future__ import annotations

from collections.abc import Sequence

from eval.answer_code import answer_code, is_code
from eval.execution.cases import CaseTests
from eval.execution.judge import check_language, judge_many
from eval.execution.toolchains import missing_tools
from moe.data.pairs import Pair
from moe.data.sources import Pairs
from moe.errors import UserError


def usable_tasks(pairs: Pairs) -> dict[str, list[Pair]]:
    """Pairs by language whose tests can be run here; languages without any are left out.

    Raises:
        UserError: there is none, or nothing contains programs here; says why.
    """
    found: dict[str, list[Pair]] = {}
    why = "no training pair has tests"
    for language, items in pairs.items():
        for pair in items:
            if not pair.tests:
                continue
            try:
                check_language(language)
                if missing := missing_tools(language):
                    raise UserError(f"{language} tests need {' and '.join(missing)}, not found on the path")
                CaseTests.parse(pair.tests, language)
            except UserError as error:
                why = str(error)
            else:
                found.setdefault(language, []).append(pair)
    if not found:
        raise UserError(f"there are no tests to learn from: {why}")
    judge_many(())  # raises where nothing contains programs, before hours of scoring and sampling
    return found


def shares_of_tests(answers: Sequence[tuple[Pair, str]]) -> list[float]:
    """The share of its task's tests that each answer passes, 1 for a pass.

    Code is taken out of an answer as for scoring. What does not parse passes none and is not run.

    Raises:
        UserError: nothing contains programs here.
    """
    codes = [answer_code(answer, pair.language) for pair, answer in answers]
    run = [place for place, code in enumerate(codes) if is_code(code, answers[place][0].language)]
    jobs = []
    for place in run:
        pair = answers[place][0]
        jobs.append((pair.language, codes[place], CaseTests.parse(pair.tests or "", pair.language)))
    shares = [0.0] * len(answers)
    for place, verdict in zip(run, judge_many(jobs), strict=True):
        shares[place] = 1.0 if verdict.passed else verdict.share
    return shares
