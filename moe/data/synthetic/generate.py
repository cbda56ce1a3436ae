"""Draws pairs from the families, deterministically by seed and split."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from typing import Any

from moe.data.pairs import Pair
from moe.data.synthetic.families import ALL
from moe.data.synthetic.family import SPLITS, TASK_LANGUAGES, Blueprint, Case, Signature, describe
from moe.errors import UserError, did_you_mean


def generate_pairs(language: str, count: int, seed: int = 0, split: str = "train") -> list[Pair]:
    """Draws ``count`` text-to-code pairs in one language; the i-th pair is the same problem in every language.

    No two pairs of a draw have the same text. Families take turns, larger families more often (by the square root of
    their size) and smaller ones until they are exhausted; the rewordings of one problem come after all other problems
    of its family, and in a held-out split after all other problems.

    ``Pair.id`` is ``FAMILY(PARAMETERS)#WORDING``; ``Pair.tests`` a JSON object with ``function``, ``parameters`` (name
    and type), ``returns`` and ``cases``.

    Raises:
        UserError: an unknown language or split, or a split with fewer than ``count`` texts.
    """
    if language not in TASK_LANGUAGES:
        raise UserError(
            f"the embedded task generator does not write {language!r}{did_you_mean(language, TASK_LANGUAGES)}; "
            f"it writes {', '.join(TASK_LANGUAGES)}"
        )
    return [
        Pair(
            language=language,
            text=blueprint.text(surface),
            code=blueprint.solution(language, surface),
            id=f"{problem}#{surface}",
            tests=_tests_json(blueprint.signature(language, surface), cases),
        )
        for problem, blueprint, surface, cases in _draw(count, seed, split)
    ]


def _identifier(family: str, parameters: tuple[tuple[str, str], ...]) -> str:
    return f"{family}({', '.join(f'{name}={value}' for name, value in parameters)})"


def _cases_json(cases: tuple[Case, ...]) -> str:
    return json.dumps([{"arguments": case.arguments, "expected": case.expected} for case in cases])


def _tests_json(signature: Signature, cases: str) -> str:
    head = json.dumps({"function": signature.name, "parameters": signature.parameters, "returns": signature.returns})
    return f'{head[:-1]}, "cases": {cases}}}'


@lru_cache(maxsize=4)  # the languages of a run draw the same problems
def _draw(count: int, seed: int, split: str) -> list[tuple[str, Blueprint, int, str]]:
    """(problem, blueprint, surface, test cases) for the first ``count`` places of the split's random order."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}{did_you_mean(split, SPLITS)}; known splits: {', '.join(SPLITS)}")
    if count < 0:
        raise UserError(f"count is {count}, expected 0 or more problems")
    places: list[tuple[int, float, int, int, int]] = []  # (round if held out, priority, family, problem, round)
    available = 0
    built: list[list[Blueprint]] = []
    points: list[list[dict[str, Any]]] = []
    for index, family in enumerate(ALL):
        # A string seeds `random` through SHA-512: the same on every machine, whatever PYTHONHASHSEED.
        rng = random.Random(f"{seed}:{split}:{family.name}")
        points.append(family.split_points(split))
        rng.shuffle(points[index])
        built.append([family.build(**point) for point in points[index]])
        surfaces = [blueprint.surfaces for blueprint in built[index]]
        available += sum(surfaces)
        weight = len(surfaces) ** 0.5
        position = 0
        for turn in range(max(surfaces, default=0)):
            for problem, limit in enumerate(surfaces):
                if turn < limit:
                    first = 0 if split == "train" else turn
                    places.append((first, (position + rng.random()) / weight, index, problem, turn))
                    position += 1
            if position > count:
                break
    if count > available:
        raise UserError(f"count is {count}, but the {split} split has only {available} problems")
    places.sort()
    drawn = []
    shared: dict[int, str] = {}  # by blueprint: rewordings share their test cases
    for _, _, index, problem, turn in places[:count]:
        family, blueprint = ALL[index], built[index][problem]
        parameters = describe(points[index][problem])
        order = list(range(blueprint.surfaces))
        random.Random(f"{seed}:{family.name}:{parameters}").shuffle(order)
        if id(blueprint) not in shared:
            shared[id(blueprint)] = _cases_json(blueprint.cases())
        drawn.append((_identifier(family.name, parameters), blueprint, order[turn], shared[id(blueprint)]))
    return drawn
