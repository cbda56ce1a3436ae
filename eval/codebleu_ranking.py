"""How often CodeBLEU ranks code that keeps the meaning above code that breaks it.

    python -m eval.codebleu_ranking [--problems 50] [--languages python java javascript cpp] [--seed 0]

The references are solutions of synthetic problems. Variants are made of each: renamed variables, reordered statements
and comments keep the meaning; a wrong operator, a wrong variable and a dropped statement break it. The problem's tests
show which variants really pass or fail, and all others are dropped. Then every passing variant is compared with every
failing one of the same problem: the ranking is right if the passing one scores higher.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from checkpoints.cli import ArgumentParser, run
from eval.codebleu import CodeBLEUError
from eval.codebleu.bench.variants import Variant, VariantMaker
from eval.codebleu.counts import EQUAL_WEIGHTS
from eval.codebleu.score import MODES, Mode, make_scorer, score_of
from eval.execution import CaseTests, Limits, judge_many, missing_tools
from moe.data.synthetic import TASK_LANGUAGES, generate_pairs
from moe.errors import UserError

KEEPING = ("renamed", "reordered", "commented")
BREAKING = ("operator", "variable", "dropped")


@dataclass(frozen=True)
class Problem:
    """A reference with its variants that pass the tests, and those that fail."""

    language: str
    reference: str
    kept: tuple[Variant, ...]
    broken: tuple[Variant, ...]


def make_problems(language: str, count: int, seed: int) -> list[Problem]:
    """Makes variants of ``count`` solutions and runs the tests of each."""
    maker = VariantMaker(language, seed)
    pairs = generate_pairs(language, count, seed=seed, split="test")
    variants = [(pair, [*maker.keeping(pair.code)], [*maker.breaking(pair.code)]) for pair in pairs]
    jobs = [
        (language, variant.text, CaseTests.parse(pair.tests or "", language))
        for pair, kept, broken in variants
        for variant in kept + broken
    ]
    # The variants are of our own solutions, so limits alone do where nothing contains programs.
    results = iter(list(judge_many(jobs, Limits(unsafe=True, sanitize=False))))
    problems = []
    for pair, kept, broken in variants:
        passed = tuple(v for v, result in [(v, next(results)) for v in kept] if result.passed)
        failed = tuple(v for v, result in [(v, next(results)) for v in broken] if not result.passed)
        problems.append(Problem(language, pair.code, passed, failed))
    return problems


def rank(problems: Sequence[Problem], mode: Mode) -> Counter[tuple[str, str, str]]:
    """(kind of keeping variant, kind of breaking variant, "right" | "tied" | "wrong") -> how often."""
    found: Counter[tuple[str, str, str]] = Counter()
    for problem in problems:
        scorer, score = make_scorer(problem.language, mode), score_of(mode)
        kept, broken = (
            [(v.kind, score(scorer.count([problem.reference], v.text), EQUAL_WEIGHTS).codebleu) for v in variants]
            for variants in (problem.kept, problem.broken)
        )
        for kind, value in kept:
            for other, lower in broken:
                outcome = "tied" if abs(value - lower) < 1e-12 else "right" if value > lower else "wrong"
                found[kind, other, outcome] += 1
    return found


def share(found: Counter[tuple[str, str, str]], kept: str | None = None, broken: str | None = None) -> str:
    """Share of right rankings in percent, with the share of ties if there are any."""
    sums: Counter[str] = Counter()
    for (kind, other, outcome), count in found.items():
        if kept in (None, kind) and broken in (None, other):
            sums[outcome] += count
    total = sums.total()
    if not total:
        return "-"
    tied = f" ({100 * sums['tied'] / total:.1f}% tied)" if sums["tied"] else ""
    return f"{100 * sums['right'] / total:.1f}%{tied}"


def main(args: argparse.Namespace) -> int:
    """Prints the share of right rankings by language and by kind of variant."""
    for language in args.languages:
        if tools := missing_tools(language):
            raise UserError(
                f"{language} needs {', '.join(tools)} to run its tests; install it, or leave {language} out"
            )
    everything: dict[Mode, Counter[tuple[str, str, str]]] = defaultdict(Counter)
    print(f"{'':<22}{'rankings':>9}" + "".join(f"{mode:>22}" for mode in MODES))
    for language in args.languages:
        problems = make_problems(language, args.problems, args.seed)
        found = {mode: rank(problems, mode) for mode in MODES}
        print(
            f"{language:<22}{found['reference'].total():>9}" + "".join(f"{share(found[m]):>22}" for m in MODES),
            flush=True,
        )
        for mode in MODES:
            everything[mode].update(found[mode])
    print(f"{'all':<22}{everything['reference'].total():>9}" + "".join(f"{share(everything[m]):>22}" for m in MODES))
    for kept in KEEPING:
        for broken in BREAKING:
            count = sum(n for (k, b, _), n in everything["reference"].items() if (k, b) == (kept, broken))
            cells = "".join(f"{share(everything[m], kept, broken):>22}" for m in MODES)
            print(f"{kept + ' > ' + broken:<22}{count:>9}{cells}")
    return 0


def build_parser() -> ArgumentParser:
    """The parser of the command line."""
    parser = ArgumentParser(
        prog="python -m eval.codebleu_ranking",
        description="How often each mode of CodeBLEU ranks code that keeps the meaning above code that breaks it.",
    )
    parser.add_argument("--problems", type=int, default=50, help="problems per language")
    parser.add_argument(
        "--languages", nargs="+", choices=TASK_LANGUAGES, default=list(TASK_LANGUAGES), help="languages"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems and variants")
    return parser


if __name__ == "__main__":
    sys.exit(run(build_parser(), main, also=(CodeBLEUError,)))
