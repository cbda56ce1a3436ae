"""Rankings of code variants: the corrected mode prefers variants that keep the meaning."""

from __future__ import annotations

from eval.codebleu_ranking import BREAKING, KEEPING, make_problems, rank, share


def test_corrected_mode_ranks_better_than_the_reference():
    problems = make_problems("python", 3, seed=0)
    assert {v.kind for p in problems for v in p.kept} <= set(KEEPING) and any(p.kept for p in problems)
    assert {v.kind for p in problems for v in p.broken} <= set(BREAKING) and any(p.broken for p in problems)
    right = {}
    for mode in ("reference", "corrected"):
        found = rank(problems, mode)
        right[mode] = sum(count for (_, _, outcome), count in found.items() if outcome == "right")
        assert share(found).startswith(f"{100 * right[mode] / found.total():.1f}%")
    assert right["corrected"] > right["reference"]
