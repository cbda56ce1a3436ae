"""Every recorded score of the published metric, with the grammars it was recorded with."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from eval.codebleu import EQUAL_WEIGHTS, CodeBLEUError, CodeBLEUScore, codebleu
from eval.codebleu.reference.native import SWITCH, describe_native, native_module

TOLERANCE = 1e-9
PARTS = ("ngram_match_score", "weighted_ngram_match_score", "syntax_match_score", "dataflow_match_score")
OWN = [json.loads(line) for line in Path(__file__).with_name("goldens.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(params=["C", "Python"], autouse=True)
def code_in_use(request, monkeypatch) -> None:
    """Checks every score without the extension, and with it if it is built."""
    if request.param == "Python":
        monkeypatch.setenv(SWITCH, "0")
    elif native_module() is None:
        pytest.skip(describe_native())


@pytest.fixture(scope="module")
def grammars(root) -> None:
    """Skips if a grammar is not the one that the scores were recorded with."""
    pins = dict(re.findall(r"^(tree-sitter\S*)==(\S+)", (root / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    assert pins
    for package, wanted in pins.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        if found != wanted:
            pytest.skip(f"{package} is {found}, the scores were recorded with {wanted}")


@pytest.fixture(scope="module")
def recorded(shared_data) -> dict[str, dict[str, Any]]:
    """Pairs and corpora with the scores of the newest grammars."""
    folder = shared_data / "codebleu"
    if not folder.is_dir():
        pytest.skip("no shared/data/codebleu")
    rows = [json.loads(line) for line in (folder / "golden_public.jsonl").read_text("utf-8").splitlines()]
    for row in rows:
        row["predictions"], row["references"] = [row["hypothesis"]], [row["references"]]
    rows += json.loads((folder / "golden_corpus_public.json").read_text("utf-8"))
    newest = json.loads((folder / "golden_public_newstack.json").read_text("utf-8"))
    inputs = ("id", "lang", "kind", "weights", "predictions", "references")
    return {row["id"]: {**{name: row[name] for name in inputs}, **newest[row["id"]]} for row in rows}


def total(weights: list[float], parts: list[float]) -> float:
    """As published: a dataflow match of 0 counts as 1."""
    return sum(weight * part for weight, part in zip(weights, [*parts[:3], parts[3] or 1.0]))


def differences(row: dict[str, Any]) -> list[str]:
    """How our score of a golden differs from the recorded one."""
    weights = row["weights"]
    try:
        score = codebleu(row["references"], row["predictions"], row["lang"], weights)
    except CodeBLEUError as error:
        return [] if "error" in row else [f"{row['id']}: {error}"]
    if "error" in row:
        return [f"{row['id']}: scored, although the published metric fails with {row['error']}"]
    return [f"{row['id']} ({row['kind']}) {text}" for text in wrong_parts(score, row, weights)]


def wrong_parts(score: CodeBLEUScore, row: dict[str, Any], weights: list[float]) -> list[str]:
    ours = score.as_dict()
    flows = row.get("dataflow_values") or [row["dataflow_match_score"]]
    totals = [total(weights, [*(row[part] for part in PARTS[:3]), flow]) for flow in flows]
    allowed = {part: [row[part]] for part in PARTS[:3]} | {PARTS[3]: flows, "codebleu": totals + [row["codebleu"]]}
    return [
        f"{part}: {ours[part]} not in {min(values)} to {max(values)}"
        for part, values in allowed.items()
        if not min(values) - TOLERANCE <= ours[part] <= max(values) + TOLERANCE
    ]


@pytest.mark.parametrize(
    "language", ["python", "java", "javascript", "cpp", "c", "go", "rust", "c_sharp", "php", "ruby"]
)
def test_pairs(recorded, grammars, language):
    rows = [row for row in recorded.values() if row["lang"] == language and "corpus" not in row["id"]]
    assert len(rows) >= 20
    wrong = [text for row in rows for text in differences(row)]
    assert not wrong, "\n".join(wrong)


def test_corpora(recorded, grammars):
    rows = [row for row in recorded.values() if "corpus" in row["id"]]
    assert len(rows) == 6
    wrong = [text for row in rows for text in differences(row)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("row", OWN, ids=[row["id"] for row in OWN])
def test_own_pairs(grammars, row):
    score = codebleu([row["references"]], [row["hypothesis"]], row["lang"], row.get("weights", EQUAL_WEIGHTS))
    assert score.as_dict() == pytest.approx(row["scores"], abs=TOLERANCE)


def test_own_pairs_cover_all_languages():
    counts = Counter(row["lang"] for row in OWN)
    assert len(counts) == 10 and all(counts[language] >= 10 for language in ("python", "java", "javascript", "cpp"))
    assert len({row["id"] for row in OWN}) == len(OWN)
