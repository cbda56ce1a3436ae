"""The synthetic tasks: enough of them, the same every time, and held-out problems that training never sees."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from moe.data.synthetic import SPLITS, TASK_LANGUAGES, generate_pairs
from moe.data.synthetic.families import ALL
from moe.data.synthetic.family import describe
from moe.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
CATEGORIES = {"numbers", "strings", "lists", "maps", "matrices"}


@pytest.fixture(scope="module")
def blueprints():
    """Every problem there is, as (family, split, parameters, blueprint)."""
    return [
        (family, split, point, family.build(**point))
        for family in ALL
        for split in SPLITS
        for point in family.split_points(split)
    ]


def test_at_least_sixty_families_over_all_categories():
    names = [family.name for family in ALL]
    assert len(set(names)) == len(names) >= 64
    counts = Counter(family.category for family in ALL)
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 8


def test_split_sizes_and_every_family_in_training(blueprints):
    sizes = Counter(split for _, split, _, _ in blueprints)
    assert sizes["validation"] >= 400
    assert sizes["test"] >= 400
    assert {family.name for family, split, _, _ in blueprints if split == "train"} == {f.name for f in ALL}


def test_splits_have_no_problem_text_or_code_in_common(blueprints):
    texts: dict[str, tuple] = {}
    codes: dict[str, str] = {}
    for family, split, point, blueprint in blueprints:
        problem = (family.name, describe(point))
        for surface in range(blueprint.surfaces):
            # A text asks for one problem only, so a rewording of a held-out problem cannot be in training either.
            assert texts.setdefault(blueprint.text(surface), problem) == problem
        for nouns in range(len(blueprint.nouns)):
            code = blueprint.solution("java", nouns)
            code = re.sub(rf"\b{blueprint.signature('java', nouns).name}\b", "f", code)
            assert codes.setdefault(code, split) == split, code


def test_held_out_problems_combine_parts_known_from_training(blueprints):
    known = {value for _, split, point, _ in blueprints if split == "train" for _, value in describe(point)}
    for family, split, point, _ in blueprints:
        if split != "train":
            assert {value for _, value in describe(point)} <= known, family.name


def test_texts_are_sentences_and_names_are_filled_in(blueprints):
    for family, _, _, blueprint in blueprints:
        for surface in range(blueprint.surfaces):
            text = blueprint.text(surface)
            assert 5 <= len(text.split()) <= 40, text
            assert text[0].isupper() and text.endswith("."), text
            assert not re.search(r"@|~|  | [,;]|\b(False|None|True)\b", text), (family.name, text)
            assert not re.search(r"\ba (item|age|even|odd|empty)\b", text), (family.name, text)


def test_solutions_are_short(blueprints):
    for _, _, _, blueprint in blueprints:
        for language in TASK_LANGUAGES:
            code = blueprint.solution(language, 0)
            assert 2 <= code.count("\n") <= 16, code
            assert max(map(len, code.split("\n"))) <= 120, code
            assert not re.search(r"@|\b(VALUE|ITEM|ROWS|COLS|SIZE|LENGTH|UPDATE|DECLARE|NAME|OUT|CUT|DIV)\b", code), (
                code
            )


def test_expected_values_fit_in_32_bits_and_inputs_are_not_changed(blueprints):
    def numbers(value):
        if isinstance(value, list | tuple):
            for item in value:
                yield from numbers(item)
        elif isinstance(value, int | float):
            yield value

    for family, _, _, blueprint in blueprints:
        before = repr(blueprint.inputs)
        cases = blueprint.cases()
        assert repr(blueprint.inputs) == before, family.name
        assert len(cases) >= 3
        assert all(abs(number) < 2**31 for case in cases for number in numbers((case.arguments, case.expected)))
        # More than one answer: else a function that ignores its arguments would pass.
        assert len({repr(case.expected) for case in cases}) > 1, family.name


@pytest.mark.parametrize("language", TASK_LANGUAGES)
def test_ten_thousand_distinct_training_pairs(language):
    pairs = generate_pairs(language, 10_000, seed=1)
    assert len({(pair.text, pair.code) for pair in pairs}) == 10_000
    assert {pair.language for pair in pairs} == {language}
    assert len({pair.id.split("(")[0] for pair in pairs}) == len(ALL)
    tests = json.loads(pairs[0].tests)
    assert tests["function"] in pairs[0].code
    assert all(name in pairs[0].code for name, _ in tests["parameters"])


def test_pairs_are_the_same_tasks_in_every_language():
    first, *others = (generate_pairs(language, 30, seed=5, split="test") for language in TASK_LANGUAGES)
    for pairs in others:
        assert [(pair.id, pair.text) for pair in pairs] == [(pair.id, pair.text) for pair in first]
        for pair, other in zip(pairs, first):
            assert pair.code != other.code
            assert json.loads(pair.tests)["cases"] == json.loads(other.tests)["cases"]


def test_held_out_draws_give_every_problem_once_before_rewordings():
    pairs = generate_pairs("python", 400, seed=2, split="validation")
    assert len({pair.id.split("#")[0] for pair in pairs}) == 400


SPLIT_DRAWS = {"train": 10_000, "validation": 400, "test": 400}


@pytest.mark.parametrize("language", TASK_LANGUAGES)
def test_what_is_drawn_of_a_held_out_split_is_never_drawn_for_training(language):
    drawn = {split: generate_pairs(language, count, seed=0, split=split) for split, count in SPLIT_DRAWS.items()}
    for split in ("validation", "test"):
        for key in (lambda pair: pair.id.split("#")[0], lambda pair: pair.text, lambda pair: pair.code):
            held_out, train = (set(map(key, drawn[name])) for name in (split, "train"))
            assert len(held_out) > 100 and not held_out & train, split


def test_the_package_has_one_door():
    inside = re.compile(r"(?:from|import) moe\.data\.synthetic\.")
    rooms = [path for room in ("kernels", "moe", "checkpoints", "eval") for path in (ROOT / room).rglob("*.py")]
    outside = [path for path in rooms if "synthetic" not in path.parts]
    assert len(outside) > 50
    assert not [path for path in outside if inside.search(path.read_text(encoding="utf-8"))]


def test_seeds_differ_and_prefixes_agree():
    first, other = generate_pairs("cpp", 50, seed=0), generate_pairs("cpp", 50, seed=1)
    assert first != other
    assert generate_pairs("cpp", 20, seed=0) == first[:20]


def test_same_pairs_whatever_the_hash_seed():
    script = (
        "import hashlib; from moe.data.synthetic import TASK_LANGUAGES, SPLITS, generate_pairs\n"
        "pairs = [generate_pairs(lang, 300, seed=3, split=split) for lang in TASK_LANGUAGES for split in SPLITS]\n"
        "print(hashlib.sha256(repr(pairs).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate_pairs("pyton", 1), "did you mean 'python'"),
        (lambda: generate_pairs("go", 1), "it writes python, java, javascript, cpp"),
        (lambda: generate_pairs("java", 1, split="valid"), "unknown split 'valid'"),
        (lambda: generate_pairs("java", -1), "expected 0 or more"),
        (lambda: generate_pairs("cpp", 10**6, split="test"), "the test split has"),
    ],
)
def test_impossible_requests_get_one_line(call, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
