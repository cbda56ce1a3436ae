"""Fingerprints of what a run starts from, so that runs of different data or bases are not compared unawares.

A fingerprint does not depend on the run's seed, on where files lie or on how they are packed. What a run makes itself
from its seed (the synthetic tasks, the tiny base, its tokenizer) is known by its recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from checkpoints.model_card import RESULTS_FILE, RUN_FILE
from checkpoints.model_io import LoadedModel
from checkpoints.runs.directory import RunDirectory
from checkpoints.storage.files import read_json_object, sha256_file
from moe.data.pairs import load_split
from moe.data.sources import SYNTHETIC, Pairs
from moe.data.synthetic import generate_pairs
from moe.errors import UserError
from moe.files import json_bytes
from moe.training.config import TINY, RunConfig
from moe.training.tiny_base import TOKENIZER_PAIRS, VOCABULARY, tiny_config

SAMPLED = 100  # synthetic pairs per language, drawn by seed 0, that the generator is known by
WEIGHTS = (".safetensors", ".gguf", "config.json", "params.json")
# Settings in which runs of one recipe may differ: where and on what they ran, and what fingerprints say better.
FREE = (
    *("seed", "device", "save_minutes", "merge", "baseline", "base", "base_id", "data", "test_sets", "preferences"),
    *("eval_pairs", "loss_pairs", "test_pairs", "eval_batch_size"),
)
PRETRAINING = ("pretrain_steps", "pretrain_lr", "warmup_ratio", "min_lr_ratio", "weight_decay", "max_grad_norm")


def run_fingerprints(config: RunConfig, base: LoadedModel) -> dict[str, Any]:
    """Fingerprints of the training data, each test set (under ``test sets``), the base's weights and its tokenizer.

    Of a base that another run made there is its recipe, too, and of preferences their file.

    Reads every file once more; SHA-256 takes about a second per gigabyte.
    """
    train = _digest([_split(config, "train"), config.train_pairs])
    test_sets = {split: _split(config, split) for split in config.test_sets}
    if config.base == TINY:
        tokenizer = _digest([TINY, VOCABULARY, TOKENIZER_PAIRS, train])
        recipe = [getattr(config, name) for name in (*PRETRAINING, "tokens_per_batch", "accumulate", "max_tokens")]
        weights = _digest([tiny_config(VOCABULARY).to_dict(), recipe, tokenizer])
    else:
        assert base.tokenizer is not None, "a run's base has one"
        tokenizer = _digest([hashlib.sha256(content).hexdigest() for content in base.tokenizer.files().values()])
        weights = _digest([sha256_file(path) for path in _weight_files(base.path)])
    found = {"training data": train, "test sets": test_sets, "base": weights, "tokenizer": tokenizer}
    run = base.path.parent
    if base.path.name == "model" and (run / RUN_FILE).is_file() and (run / RESULTS_FILE).is_file():
        found["base recipe"] = _digest(run_recipe(*(read_json_object(run / x) for x in (RUN_FILE, RESULTS_FILE))))
    return found | ({"preferences": sha256_file(Path(config.preferences))[:16]} if config.preferences else {})


def run_recipe(settings: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """What runs that differ in their seed alone share, from what ``run.json`` and ``results.json`` hold."""
    config = settings.get("config", {})
    shared = {name: value for name, value in config.items() if name not in FREE}
    learned = {"preferences": True} if config.get("preferences") else {}
    return {**shared, **learned, **comparable(results.get("fingerprints", {}))}


def comparable(fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprints without what differs between the seeds of one recipe: the weights that another run made."""
    found = {name: value for name, value in fingerprints.items() if name not in ("base recipe", "preferences")}
    return found | ({"base": fingerprints["base recipe"]} if "base recipe" in fingerprints else {})


def check_inputs(directory: RunDirectory, now: Mapping[str, Any], accept: bool) -> list[str]:
    """Notes what a run starts from; a resumed run has to start from the same, unless that is accepted.

    What is accepted replaces the note, and all scores and test results are forgotten, so that they are made anew.

    Returns:
        names of what differs and was accepted.

    Raises:
        UserError: data, base or tokenizer are others than before; names which.
    """
    before = directory.results.get("fingerprints")
    if before is None:
        directory.note("fingerprints", dict(now))
        return []
    changed = [name for name, value in now.items() if name != "test sets" and before.get(name, value) != value]
    old_tests, new_tests = before.get("test sets", {}), now["test sets"]
    splits = sorted(old_tests.keys() | new_tests.keys())
    changed += [f"test set {name!r}" for name in splits if old_tests.get(name) != new_tests.get(name)]
    if changed and not accept:
        raise UserError(
            f"{directory.path} was started with another {', '.join(changed)}; put the old files back or start a new "
            "run, or add --accept-new-data to go on with the new ones and score all models anew"
        )
    if changed:
        made = ("scores of ", "tests of ")
        directory.results = {name: x for name, x in directory.results.items() if not name.startswith(made)}
        for unfinished in (directory.path / "answers").glob("*.un*"):  # journals of answers and of verdicts
            unfinished.unlink(missing_ok=True)  # by any of several processes
        directory.note("fingerprints", dict(now))
    return changed


def _split(config: RunConfig, split: str) -> str:
    """The pairs of a split in the run's languages; of the synthetic ones, what the generator draws for seed 0."""
    pairs: Pairs
    if config.data == SYNTHETIC:
        pairs = {language: generate_pairs(language, SAMPLED, 0, split) for language in config.languages}
    else:
        pairs = load_split(config.data, split, config.languages, fields=config.fields)
    rows = ((json_bytes([p.text, p.code, p.tests]) for p in pairs[language]) for language in config.languages)
    return _digest([[language, _hash(parts)] for language, parts in zip(config.languages, rows)])


def _weight_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.iterdir() if p.name.endswith(WEIGHTS))


def _digest(value: Any) -> str:
    return _hash([json_bytes(value)])


def _hash(parts: Iterable[bytes]) -> str:
    """Hexadecimal SHA-256 of the parts, each with its length, cut to 16 digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]
