"""What a model card can say beyond sizes: the base's name and licence, and a training run's recipe and scores.

A run keeps its model in ``runs/NAME/model`` beside ``run.json`` and ``results.json`` (:class:`RunDirectory`), so
whatever is written there, or made from it without changing its function, can tell both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.storage.files import read_json_object
from moe.errors import UserError
from moe.languages import LANGUAGES

RUN_FILE, RESULTS_FILE = "run.json", "results.json"
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]{1,60})[\"']?[ \t]*$", re.MULTILINE)
_UNKNOWN = ("other", "unknown", "none")
_MAX_CARD_BYTES = 1 << 20
# The name under which a run notes the scores of each directory that it writes.
_SCORED_AS = {"model": "mixture", "mixtral": "mixture", "adapter": "dense adapter"}
_SETTINGS = (
    *("expert_form", "moe_layers", "expert_rank", "shared_rank", "num_experts_per_tok", "delta_scale"),
    *("branch_steps", "mix_steps"),
    *("tokens_per_batch", "accumulate", "branch_lr", "mix_lr", "balance_loss_weight", "z_loss_weight", "template"),
    *("max_tokens", "seed"),
)


@dataclass(frozen=True)
class RunFacts:
    """A run's settings by name, and rows of a table of its scores (the header first)."""

    recipe: Mapping[str, str]
    scores: tuple[tuple[str, ...], ...]


def base_name(checkpoint: Checkpoint) -> str:
    """What to call a model: the name of its file or directory."""
    path = checkpoint.path
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def base_license(checkpoint: Checkpoint) -> str | None:
    """The licence that a model's own files state: GGUF metadata, or the front matter of its card; None without."""
    stated = checkpoint.settings.get("general.license") if checkpoint.format == "gguf" else None
    card = checkpoint.directory / "README.md"
    if checkpoint.format != "gguf" and card.is_file() and card.stat().st_size <= _MAX_CARD_BYTES:
        front = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
        match = _LICENSE.search(front[1]) if len(front) == 3 and not front[0].strip() else None
        stated = match[1] if match else None
    if not isinstance(stated, str) or not re.fullmatch(r"[\w.+-]{1,60}", stated) or stated.lower() in _UNKNOWN:
        return None
    return stated


def run_facts(directory: Path) -> RunFacts | None:
    """Recipe and scores of the run that ``directory`` belongs to; None where there is no such run.

    A card is never worth failing for: what a damaged run file does not tell is left out.
    """
    run = directory.absolute().parent
    if directory.name not in _SCORED_AS or not (run / RUN_FILE).is_file():
        return None
    try:
        settings = read_json_object(run / RUN_FILE)
        results = read_json_object(run / RESULTS_FILE) if (run / RESULTS_FILE).is_file() else {}
    except UserError:
        return None
    config = settings.get("config")
    config = config if isinstance(config, Mapping) else {}
    recipe = {name.replace("_", " "): str(config[name]) for name in _SETTINGS if name in config}
    if isinstance(config.get("data"), str):
        recipe["data"] = Path(config["data"]).name
    if isinstance(settings.get("date"), str):
        recipe["date"] = settings["date"]
    return RunFacts(recipe, _score_rows(results, _SCORED_AS[directory.name]))


def _score_rows(results: Mapping[str, Any], model: str) -> tuple[tuple[str, ...], ...]:
    def found(name: str) -> Mapping[str, Any]:
        noted = results.get(f"scores of {name}")
        scores = noted.get("scores") if isinstance(noted, Mapping) else None
        return scores if isinstance(scores, Mapping) else {}

    mine, base = found(model), found("base")
    rows = []
    for split, languages in mine.items():
        for language in languages if isinstance(languages, Mapping) else ():
            ours = _codebleu(mine, split, language)
            if ours is not None:
                name = LANGUAGES[language].name if language in LANGUAGES else language
                before = _codebleu(base, split, language)
                rows.append((split, name, "-" if before is None else before[0], *ours))
    return (("held-out pairs", "language", "CodeBLEU, base", "CodeBLEU, this model", "answers"), *rows) if rows else ()


def _codebleu(scores: Mapping[str, Any], split: str, language: str) -> tuple[str, str] | None:
    try:
        entry = scores[split][language]
        return f"{float(entry['codebleu']):.3f}", str(entry.get("answers", "-"))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
