"""Compares the judge's verdicts with plain runs of the same programs: a benchmark's own solutions and mutants of them.

python -m tests.eval.benchmarks.agreement humaneval-x --data DIR [--mutants 40] [--seed 0] [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eval.benchmarks.cli import read_numbers
from eval.benchmarks.libraries import node_folder
from eval.benchmarks.problems import LAYOUTS, Problem, read_problems
from eval.benchmarks.programs import canonical_code
from eval.benchmarks.scoring import Answer, score
from eval.execution import Limits
from moe.files import write_json_lines
from tests.eval.benchmarks.independent import passes
from tests.eval.benchmarks.mutants import KINDS, choose, mutants


def programs(problem: Problem, seed: int) -> list[tuple[str, str, str]]:
    """The solution and one mutant of each kind, as (kind, what was changed, code)."""
    code = canonical_code(problem)
    start = len(problem.prompt.encode()) if problem.in_program else 0
    found = mutants(code, problem.language, start)
    chosen = [choose(found, f"{seed}-{problem.id}-{kind}", kind) for kind in KINDS]
    return [("solution", "", code), *((m.kind, m.change, m.code) for m in chosen if m is not None)]


def plain(answer: Answer) -> bool:
    """The plain run's verdict, with the libraries that are installed."""
    code = answer.code
    folder = node_folder("lodash") or node_folder("js-md5")
    return passes(answer.problem, code, 10.0, str(folder or ""), ("-lcrypto",) if "openssl/" in code else ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(LAYOUTS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--language", nargs="+", default=[])
    parser.add_argument("--problems")
    parser.add_argument("--every", type=int, default=1, help="take each n-th problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON Lines of all programs and both verdicts")
    arguments = parser.parse_args()
    rows = []
    for language, problems in read_problems(
        arguments.name, arguments.data, arguments.language, read_numbers(arguments.problems)
    ).items():
        kinds, changes, answers = [], [], []
        for problem in problems[:: arguments.every]:
            if problem.solution is not None:
                for number, (kind, change, code) in enumerate(programs(problem, arguments.seed)):
                    kinds.append(kind)
                    changes.append(change)
                    answers.append(Answer(problem, number, code, "completion", own=True))
        started = time.monotonic()
        verdicts = score(answers, None, Limits(), None)
        judged = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            truth = list(pool.map(plain, answers))
        seconds = f"{judged - started:.0f} s judged, {time.monotonic() - judged:.0f} s plain"
        counts: Counter[tuple[str, str]] = Counter()
        for kind, change, answer, passed in zip(kinds, changes, answers, truth):
            verdict = verdicts[answer.key]
            if verdict.status == "unavailable":
                counts[kind, "not run"] += 1
                continue
            same = "both pass" if passed and verdict.passed else "both fail" if passed == verdict.passed else ""
            counts[kind, same or f"plain {'passes' if passed else 'fails'}, judge {verdict.status}"] += 1
            row = {"id": answer.problem.id, "language": language, "kind": kind, "change": change, "plain": passed}
            rows.append({**row, "status": verdict.status, "detail": verdict.detail, "code": answer.code})
            if not same:
                print(f"{answer.problem.id}, {kind} {change}: plain {passed}, judge {verdict.status} {verdict.detail}")
        for kind in ("solution", *KINDS):
            shown = {result: count for (k, result), count in counts.items() if k == kind}
            print(f"{language:<12}{kind:<10}{shown}", flush=True)
        print(f"{language:<12}{len(answers)} programs, {seconds}", flush=True)
    if arguments.output:
        write_json_lines(arguments.output, rows)


if __name__ == "__main__":
    main()
