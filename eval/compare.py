"""``python -m eval compare``: several runs and seeds in one table, with intervals of their differences."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from checkpoints.runs.fingerprints import comparable, run_recipe
from eval.bootstrap import Measured, Sample, bootstrap, common_keys, score
from eval.codebleu.score import borrowed_scorer, count_each
from eval.reporting.page import cost_rows
from eval.reporting.record import ADAPTER, RunRecord
from eval.scoring import language_names
from eval.verdicts import UNJUDGED
from moe.data.rows import parse_row
from moe.errors import UserError

RESAMPLES = 2000
METRICS = ("loss", "CodeBLEU", "pass@1")


@dataclass(frozen=True)
class System:
    """One model of one recipe: what it measured by seed, metric and language, and the rows of its costs.

    ``pairs`` is the fingerprint of the held-out pairs; None in runs of earlier versions.
    """

    label: str
    model: str
    recipe: int
    pairs: str | None
    seeds: dict[int, dict[str, Measured]]
    costs: list[dict[str, str]]


def compared(runs: Sequence[RunRecord], allow_different: bool) -> list[str]:
    """Says in what runs differ that should be the same; empty where they agree.

    Raises:
        UserError: they differ, and ``allow_different`` is not set.
    """
    first = runs[0]
    problems = []
    for run in runs[1:]:
        mine, theirs = (comparable(x.results.get("fingerprints", {})) for x in (first, run))
        if not theirs or not mine:
            problems.append(f"{(first if theirs else run).path} has no fingerprints (of an earlier version)")
            continue
        names = [name for name in ("training data", "test sets", "base", "tokenizer") if mine[name] != theirs[name]]
        if run.languages != first.languages:
            names.append("languages")
        if names:
            problems.append(f"{first.path} and {run.path} differ in {', '.join(names)}")
    if problems and not allow_different:
        raise UserError(f"{problems[0]}; compare runs of the same data, test sets and base, or add --allow-different")
    return list(dict.fromkeys(problems))


def recipes(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """The runs grouped by what they did; those of one group differ in their seed (or in which models they trained)."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run_recipe(run.settings, run.results), sort_keys=True), []).append(run)
    return list(groups.values())


def differing_settings(groups: Sequence[Sequence[RunRecord]]) -> list[dict[str, Any]]:
    """For each recipe the settings that others have otherwise."""
    found = [run_recipe(group[0].settings, group[0].results) for group in groups]
    known = dict.fromkeys(name for recipe in found for name in recipe)
    names = [name for name in known if any(recipe.get(name) != found[0].get(name) for recipe in found)]
    return [{name: recipe.get(name) for name in names} for recipe in found]


def systems(groups: Sequence[Sequence[RunRecord]], split: str) -> list[System]:
    """The models of all recipes, named after their model, with a number where there are several recipes.

    Raises:
        UserError: two runs of one recipe and seed have the same model.
    """
    found: list[System] = []
    for number, group in enumerate(groups):
        suffix = f" {number + 1}" if len(groups) > 1 else ""
        for model in dict.fromkeys(model for run in group for model in run.models):
            known = group[0].results.get("fingerprints", {}).get("test sets", {}).get(split)
            title = group[0].title(model)
            system = System(f"{title}{suffix}", model, number, known, {}, [])
            for run in group:
                if model not in run.models:
                    continue
                seed = run.config["seed"]
                if seed in system.seeds and model != "base":
                    raise UserError(f"{run.path} repeats the settings and the seed {seed} of another run; leave it out")
                if seed in system.seeds:
                    continue
                system.seeds[seed] = measure(run, model, split)
                system.costs.extend([row for row in cost_rows(run) if row["model"] == title])
            found.append(system)
    return found


def measure(run: RunRecord, model: str, split: str) -> dict[str, Measured]:
    """Metric -> language -> the numbers of each pair: what a run has measured, without what it has not."""
    found: dict[str, dict[str, Sample]] = {metric: {} for metric in METRICS}
    answers, losses = run.answers(model, split), run.losses(model, split)
    for language in run.languages:
        own = [row for row in losses if row["language"] == language]
        if own:
            found["loss"][language] = Sample(_keys(own), np.array([[row["nats"], row["tokens"]] for row in own]))
        own = [row for row in answers if row.get("language") == language]
        if not own:
            continue
        rows = [parse_row(row, ("reference", "answer")) for row in own]
        with borrowed_scorer(language, "reference") as scorer:
            counts = count_each([row.references for row in rows], [row.answer or "" for row in rows], scorer)
        found["CodeBLEU"][language] = Sample(_keys(own), np.array(counts))
        judged = [row for row in own if row.get("verdict", UNJUDGED[0]) not in UNJUDGED]
        if judged:
            verdicts = np.array([[row["verdict"] == "passed", 1] for row in judged], dtype=np.int64)
            found["pass@1"][language] = Sample(_keys(judged), verdicts)
    return {metric: by_language for metric, by_language in found.items() if by_language}


def _keys(rows: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
    """The ids, numbered where one comes more than once."""
    seen: Counter[Any] = Counter()
    keys = []
    for row in rows:
        seen[row["id"]] += 1
        keys.append((row["id"], seen[row["id"]]))
    return tuple(keys)


def wanted_differences(found: Sequence[System]) -> list[tuple[System, System]]:
    """Each mixture against its baseline and its base (of its own recipe, else of another), and against the first one.

    Only what was measured on the same held-out pairs is compared.
    """

    def paired(a: System, b: System) -> bool:
        return a.recipe == b.recipe or (a.pairs is not None and a.pairs == b.pairs)

    def other(model: str, system: System) -> System | None:
        same = [x for x in found if x.model == model and paired(x, system)]
        return min(same, key=lambda x: (x.recipe != system.recipe, x.recipe), default=None)

    pairs = []
    mixtures = [x for x in found if x.model == "mixture"]
    for system in mixtures or [x for x in found if x.model == ADAPTER]:
        for model in (ADAPTER, "base"):
            against = other(model, system)
            if against is not None and against is not system:
                pairs.append((system, against))
    return pairs + [(system, mixtures[0]) for system in mixtures[1:] if paired(system, mixtures[0])]


def compare(found: Sequence[System], languages: Sequence[str], resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of a comparison.

    Returns:
        ``values``: system -> metric -> language (and ``mean``) -> mean and standard deviation over seeds, and the value
        of each seed; ``differences``: rows with ``first``, ``second``, ``metric``, ``language`` and an
        :class:`eval.bootstrap.Interval`.
    """
    values: dict[str, Any] = {}
    for system in found:
        values[system.label] = {}
        for metric in METRICS:
            measured = {s: x[metric] for s, x in system.seeds.items() if metric in x}
            names = [x for x in languages if measured and all(x in by_language for by_language in measured.values())]
            if not names:
                continue
            scores = {s: {x: score(metric, m[x]) for x in names} for s, m in measured.items()}
            for by_language in scores.values():
                by_language["mean"] = sum(by_language.values()) / len(by_language)
            values[system.label][metric] = {
                x: _spread({s: by_language[x] for s, by_language in scores.items()}) for x in (*names, "mean")
            }
    differences = []
    for first, second in wanted_differences(found):
        for metric in METRICS:
            shared = [s for s in first.seeds if s in second.seeds]
            runs = [(first.seeds[s].get(metric, {}), second.seeds[s].get(metric, {})) for s in shared]
            names = [x for x in languages if runs and all(_have(pair, x) for pair in runs)]
            if not names:
                continue
            for language, interval in bootstrap(metric, runs, names, resamples, seed).items():
                row = {"first": first.label, "second": second.label, "metric": metric, "language": language}
                differences.append({**row, **asdict(interval)})
    return {"values": values, "differences": differences}


def _have(pair: tuple[Measured, Measured], language: str) -> bool:
    first, second = pair
    return language in first and language in second and bool(common_keys(first[language], second[language]))


def _spread(by_seed: Mapping[int, float]) -> dict[str, Any]:
    values = list(by_seed.values())
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": sum(values) / len(values), "deviation": deviation, "seeds": dict(by_seed)}


def value_rows(numbers: Mapping[str, Any], languages: Sequence[str]) -> list[dict[str, str]]:
    """The scores as cells: a row for each metric and language, a column for each system."""
    rows = []
    for metric in METRICS:
        for language in (*languages, "mean"):
            cells = {}
            for label, metrics in numbers["values"].items():
                value = metrics.get(metric, {}).get(language)
                cells[label] = "-" if value is None else f"{value['mean']:.3f}"
                if value is not None and value["deviation"] is not None:
                    cells[label] += f" ± {value['deviation']:.3f}"
            if set(cells.values()) != {"-"}:
                rows.append({"metric": metric, "language": _name(language), **cells})
    return rows


def difference_rows(numbers: Mapping[str, Any]) -> list[dict[str, str]]:
    """The differences as cells, with the 95% interval; a star where it does not hold 0."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    heads = dict.fromkeys(f"{x['first']} − {x['second']}" for x in numbers["differences"])
    for x in numbers["differences"]:
        blank = {"metric": x["metric"], "language": _name(x["language"]), **dict.fromkeys(heads, "-")}
        row = rows.setdefault((x["metric"], x["language"]), blank)
        star = "*" if x["low"] > 0 or x["high"] < 0 else ""
        row[f"{x['first']} − {x['second']}"] = f"{x['difference']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}]{star}"
    return list(rows.values())


def system_costs(found: Sequence[System]) -> list[dict[str, str]]:
    """What each system takes: sizes of its first run, seconds of each seed."""
    return [
        {**x.costs[0], "model": x.label, "seconds": ", ".join(row["seconds"] for row in x.costs)}
        for x in found
        if x.costs
    ]


def _name(language: str) -> str:
    return language if language == "mean" else language_names([language])[0]


def compare_runs(
    runs: Sequence[RunRecord], splits: Sequence[str] = (), allow_different: bool = False, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Everything that a comparison says: ``notes``, ``recipes``, and for each split its numbers and tables.

    Args:
        splits: test sets; without any all that every run has.

    Raises:
        UserError: the runs cannot be compared.
    """
    notes = compared(runs, allow_different)
    shared = [split for split in runs[0].splits if all(split in run.splits for run in runs)]
    for split in splits:
        if split not in shared:
            raise UserError(f"not every run has the test set {split!r}; all have: {', '.join(shared) or 'none'}")
    languages = [x for x in runs[0].languages if all(x in run.languages for run in runs)]
    if not shared or not languages:
        raise UserError(f"the runs have no {'language' if shared else 'test set'} in common")
    groups = recipes(runs)
    listed = [
        {"recipe": str(number), "runs": ", ".join(run.name for run in group), "settings": _settings(settings)}
        for number, (group, settings) in enumerate(zip(groups, differing_settings(groups), strict=True), start=1)
    ]
    found: dict[str, Any] = {"notes": notes, "recipes": listed, "splits": {}}
    for split in splits or shared:
        models = systems(groups, split)
        numbers = compare(models, languages, resamples, seed=0)
        found["splits"][split] = {
            **numbers,
            "value rows": value_rows(numbers, languages),
            "difference rows": difference_rows(numbers),
            "costs": system_costs(models),
        }
    return found


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items()) or "the same"


def explain(found: Mapping[str, Any]) -> str:
    """How to read the tables, in one line."""
    runs = max((row["runs"] for split in found["splits"].values() for row in split["differences"]), default=1)
    drawn = f"drawing {runs} seeds, then pairs" if runs > 1 else "drawing pairs (one seed: without the spread of seeds)"
    return f"± standard deviation over seeds. [a, b]: 95% bootstrap interval, {drawn}; * where it does not hold 0."


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """The runs at these paths; raises :class:`UserError` for one that is named twice or not scored."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"a run is named twice: {' '.join(map(str, paths))}")
    runs = [RunRecord(path) for path in paths]
    for run in runs:
        if not run.is_scored:
            raise UserError(
                f"answers of {run.path} have no CodeBLEU; first type: python -m eval score-answers {run.path}"
            )
    return runs


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``compare`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "compare",
        help="compare runs of train.py, with intervals of their differences",
        description="Compares the models of several runs and seeds: held-out loss, CodeBLEU and pass@1 by language, "
        "with the spread over seeds and 95% bootstrap intervals of mixture - baseline and mixture - base, and what "
        "each model costs. Runs that differ in their seed alone are one recipe. Resamples draw seeds, then pairs.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's directory")
    parser.add_argument("--split", nargs="+", default=[], metavar="NAME", help="test sets (default: all they share)")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, metavar="N", help="bootstrap resamples")
    parser.add_argument(
        "--allow-different", action="store_true", help="compare runs of different data, test sets or bases"
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    if not 100 <= arguments.resamples <= 10**6:
        raise UserError(f"--resamples is {arguments.resamples}, expected 100 to 1,000,000 for a 95% interval")
    found = compare_runs(read_runs(arguments.runs), arguments.split, arguments.allow_different, arguments.resamples)
    if arguments.json:
        hidden = ("value rows", "difference rows")
        splits = {n: {k: v for k, v in split.items() if k not in hidden} for n, split in found["splits"].items()}
        print(json.dumps({**found, "splits": splits}, indent=2))
        return 0
    console = Console(highlight=False, markup=False, emoji=False)
    for note in found["notes"]:
        print(f"warning: {note}", file=sys.stderr)
    if len(found["recipes"]) > 1:
        _print(console, "recipes", found["recipes"])
    for name, split in found["splits"].items():
        _print(console, f"{name}: scores", split["value rows"])
        _print(console, f"{name}: differences", split["difference rows"])
        console.print(explain(found), soft_wrap=True)
    _print(console, "cost", next(iter(found["splits"].values()))["costs"])
    return 0


def _print(console: Console, title: str, rows: Sequence[Mapping[str, str]]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", collapse_padding=True)
    for index, name in enumerate(rows[0]):
        left = index == 0 or (index == 1 and "metric" in rows[0])
        table.add_column(name, justify="left" if left else "right", min_width=max(map(len, name.split())))
    for place, row in enumerate(rows):
        table.add_row(*row.values(), end_section=row.get("language") == "mean" and place < len(rows) - 1)
    console.print(table)
