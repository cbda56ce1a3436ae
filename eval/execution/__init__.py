"""Judges generated code: runs answers against tests in a sandbox and compares their results outside of it.

docs/execution.md says what counts as equal, what is contained and what is not.
"""

from eval.execution.cases import CaseTests, ProgramTests
from eval.execution.judge import Job, judge, judge_many
from eval.execution.limits import Limits
from eval.execution.results import STATUSES, Status, Verdict
from eval.execution.toolchains import PACKAGES, missing_tools

__all__ = [
    "PACKAGES",
    "STATUSES",
    "CaseTests",
    "Job",
    "Limits",
    "ProgramTests",
    "Status",
    "Verdict",
    "judge",
    "judge_many",
    "missing_tools",
]
