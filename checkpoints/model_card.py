"""The model card (README.md) of a written directory: what it is, from which base, how it was made, its license.

A run keeps its model in ``runs/NAME/model`` beside ``run.json`` and ``results.json`` (:class:`RunDirectory`): the card
of that model, and of what is made from it without changing its function, includes the run's settings and scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.hub import is_hub_id
from checkpoints.storage.files import read_json_object
from moe.config import ModelConfig, format_layers
from moe.errors import UserError
from moe.languages import LANGUAGES

RUN_FILE, RESULTS_FILE = "run.json", "results.json"
_ID = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}"
_HUB_CACHE = re.compile(r"models--(.+?)--(.+)")
_BASE = re.compile(rf"^base_model:[ \t]*[\"']?({_ID})[\"']?[ \t]*$", re.MULTILINE | re.ASCII)
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]{1,60})[\"']?[ \t]*$", re.MULTILINE)
_TRAINING = re.compile(r"^## Recipe\n\n(?:\|.*\n)*?\| training \| ([^|\n]{1,2000}) \|$", re.MULTILINE)
NOT_TRAINED = "none yet"
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
# Those of a run that trained a finished mixture on preferences, or on answers of its own that tests judged.
_POLICY = ("policy_steps", "policy_lr", "kl_weight", "tasks_per_step")
_LEARNED = {"preferences": _POLICY, "learn_from_tests": (*_POLICY, "group_size", "updates_per_group", "temperature")}


@dataclass(frozen=True)
class RunFacts:
    """A run's settings by name, and rows of a table of its scores (the header first)."""

    recipe: Mapping[str, str]
    scores: tuple[tuple[str, ...], ...]


def check_hub_id(text: str) -> str:
    """Returns ``text``; raises :class:`UserError` unless it is a hub id."""
    if not is_hub_id(text):
        raise UserError(f"{text[:120]!r} is not a hub id; expected ORG/NAME, such as mistralai/Mistral-7B-v0.3")
    return text


def base_name(checkpoint: Checkpoint, base_id: str | None = None) -> str:
    """The name of a base in a card: its hub id if one is known, else the name of its file or directory.

    A hub id comes from ``base_id``, from the ``_name_or_path`` of config.json or from a path in a hub's cache
    (``models--ORG--NAME/snapshots/HASH``), in this order.

    Raises:
        UserError: ``base_id`` is not of the form ORG/NAME.
    """
    if base_id is not None:
        return check_hub_id(base_id)
    stated = checkpoint.settings.get("_name_or_path")
    if checkpoint.format == "huggingface" and isinstance(stated, str) and is_hub_id(stated):
        return stated
    for folder in checkpoint.directory.resolve().parents:
        match = _HUB_CACHE.fullmatch(folder.parent.name) if folder.name == "snapshots" else None
        if match and is_hub_id("/".join(match.groups())):
            return "/".join(match.groups())
    path = checkpoint.path
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def stated_base(directory: Path) -> str | None:
    """The hub id that the card in ``directory`` names as the base; None without one."""
    match = _BASE.search(_parts_of_card(directory)[0])
    return match[1] if match and is_hub_id(match[1]) else None


def base_license(checkpoint: Checkpoint) -> str | None:
    """The license stated in a model's own files: GGUF metadata, or the front matter of its card; None without one."""
    if checkpoint.format == "gguf":
        stated = checkpoint.settings.get("general.license")
    else:
        match = _LICENSE.search(_parts_of_card(checkpoint.directory)[0])
        stated = match[1] if match else None
    if not isinstance(stated, str) or not re.fullmatch(r"[\w.+-]{1,60}", stated) or stated.lower() in _UNKNOWN:
        return None
    return stated


def _parts_of_card(directory: Path) -> tuple[str, str]:
    """The YAML at the top of the directory's card, and its text; empty where there is none."""
    card = directory / "README.md"
    try:
        if not card.is_file() or card.stat().st_size > _MAX_CARD_BYTES:
            return "", ""
        parts = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    except OSError:  # of a name that is too long, for example
        return "", ""
    return (parts[1], parts[2]) if len(parts) == 3 and not parts[0].strip() else ("", "")


def training_of(directory: Path, earlier_runs: int = 20) -> str:
    """What trained the model in ``directory``, as its card says, or else its run and those before it; "" if unknown."""
    match = _TRAINING.search(_parts_of_card(directory)[1])
    if match and match[1].isprintable():
        return match[1]
    settings, _ = _run_files(directory) or ({}, {})
    config = settings.get("config")
    if not isinstance(config, Mapping) or not isinstance(config.get("languages"), list) or not earlier_runs:
        return ""
    if config.get("preferences"):
        step = "preferences (DPO)"
    elif config.get("learn_from_tests"):
        step = "its own answers, judged by tests (GRPO)"
    elif config.get("new_language"):
        step = f"pairs in {language_name(str(config['new_language']))}, for a new expert"
    else:
        step = "pairs in " + ", ".join(language_name(str(key)) for key in config["languages"])
    base = config.get("base")
    before = training_of(Path(base), earlier_runs - 1) if base and isinstance(base, str) else ""
    return step if before in ("", NOT_TRAINED) else f"{before}; then {step}"


def training_of_parts(parts: Mapping[str, Path]) -> str:
    """What trained the models or adapters, by language, whose experts are put together; "" where nothing is known."""
    found: dict[str, list[str]] = {}
    for language, directory in parts.items():
        found.setdefault(training_of(directory), []).append(language_name(language))
    if len(found) < 2:
        return "".join(found)
    return "; ".join(f"for {', '.join(names)}: {trained or 'unknown'}" for trained, names in found.items())


def _run_files(directory: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Settings and results of the run that ``directory`` belongs to; None without such a run."""
    run = directory.absolute().parent
    try:
        if directory.name not in _SCORED_AS or not (run / RUN_FILE).is_file():
            return None
        results = read_json_object(run / RESULTS_FILE) if (run / RESULTS_FILE).is_file() else {}
        return read_json_object(run / RUN_FILE), results
    except (UserError, OSError):
        return None


def run_facts(directory: Path) -> RunFacts | None:
    """Recipe and scores of the run that ``directory`` belongs to; None without such a run.

    Best effort: what a damaged run file lacks is left out.
    """
    files = _run_files(directory)
    if files is None:
        return None
    settings, results = files
    config = settings.get("config")
    config = config if isinstance(config, Mapping) else {}
    learned = [name for source, more in _LEARNED.items() if config.get(source) for name in (source, *more)]
    names = (*_SETTINGS, *learned)
    recipe = {name.replace("_", " "): str(config[name]) for name in names if name in config}
    if "preferences" in recipe:
        recipe["preferences"] = Path(recipe["preferences"]).name
    if isinstance(config.get("data"), str):
        recipe["data"] = Path(config["data"]).name
    if isinstance(settings.get("date"), str):
        recipe["date"] = settings["date"]
    if trained := training_of(directory):
        recipe["training"] = trained
    return RunFacts(recipe, _score_rows(results, _SCORED_AS[directory.name]))


def _score_rows(results: Mapping[str, Any], model: str) -> tuple[tuple[str, ...], ...]:
    def found(name: str) -> Mapping[str, Any]:
        entry = results.get(f"scores of {name}")
        scores = entry.get("scores") if isinstance(entry, Mapping) else None
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


def language_name(key: str) -> str:
    """``C++`` for ``cpp``; unknown keys stay as they are."""
    return LANGUAGES[key].name if key in LANGUAGES else key


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]


def model_card(
    config: ModelConfig,
    base: str,
    action: str,
    recipe: Mapping[str, str] | None = None,
    scores: Sequence[Sequence[str]] | None = None,
    license_name: str | None = None,
) -> str:
    """A model card in Markdown, with the front matter that model hubs read.

    Args:
        base: name of the model it was made from.
        action: how, in words: "Upcycled to full experts".
        recipe: settings of the conversion or the training, by name.
        scores: rows of a table of results, the header first; None says that the weights have not been scored.
        license_name: of the base, which applies to the weights; None says that the base's files state none.
    """
    languages = [language_name(key) for key in config.expert_languages]
    if config.is_delta:
        kind = "set of low-rank changes to a dense model, without which it cannot be used"
    elif config.is_moe and not config.is_mixtral:
        kind = (
            "sparse mixture of experts (Mixtral's, routed by the document so far: transformers loads it with "
            "`trust_remote_code=True`)"
        )
    else:
        kind = "sparse mixture of experts (Mixtral)" if config.num_experts else "dense model (Mistral architecture)"
    lines = [
        "---",
        f"license: {license_name or 'other'}",
        *([] if license_name else ["license_name: unknown"]),
        f"base_model: {json.dumps(base, ensure_ascii=False)}",
        *([] if config.is_delta else ["library_name: transformers"]),
        "pipeline_tag: text-generation",
        "tags:",
        "- code",
        *(["- mixtral"] if config.is_mixtral else []),
        "- moe" if config.is_moe else "- mistral",
        "---",
        "",
        f"# {base}" + (f" with experts for {', '.join(languages)}" if languages else ""),
        "",
        f"A {kind}. {action}, from the base `{base}`.",
        "",
    ]
    facts = [
        ["fact", "value"],
        ["layers, width, feed-forward", f"{config.n_layers}, {config.dim}, {config.hidden_dim}"],
        ["heads (key/value)", f"{config.n_heads} ({config.n_kv_heads})"],
        ["vocabulary, context", f"{config.vocab_size}, {config.max_seq_len}"],
    ]
    if config.num_experts:
        facts.append(["experts, per token", f"{config.num_experts}, {config.num_experts_per_tok}"])
        facts += [[f"expert {index}", language] for index, language in enumerate(languages)]
    if config.moe_layers is not None:
        facts.append(
            ["layers with experts" if config.num_experts else "layers changed", format_layers(config.moe_layers)]
        )
    if config.attention_experts:
        facts.append(["changed in attention, too", ", ".join(config.attention_experts)])
    lines += _table(facts)
    if recipe:
        lines += ["", "## Recipe", "", *_table([["setting", "value"], *([k, v] for k, v in recipe.items())])]
    lines += ["", "## Scores", ""]
    lines += _table(scores) if scores else ["These weights have not been scored."]
    if license_name:
        terms = f"The license of the base applies to these weights: {license_name}."
    else:
        terms = f"The files of `{base}` state no license; find it before sharing these weights, as it applies to them."
    lines += ["", "## License and checksums", "", f"{terms} `manifest.json` has the SHA-256 of every file.", ""]
    return "\n".join(lines)


def adapter_card(base: str, language: str, rank: int, license_name: str | None = None, training: str = "") -> str:
    """The card of a PEFT adapter that was one language's expert; arguments as for :func:`model_card`.

    ``training``: of the mixture (:func:`training_of`).
    """
    name = language_name(language)
    return "\n".join(
        [
            "---",
            f"license: {license_name or 'other'}",
            *([] if license_name else ["license_name: unknown"]),
            f"base_model: {json.dumps(base, ensure_ascii=False)}",
            "library_name: peft",
            "tags:",
            "- code",
            "- lora",
            "---",
            "",
            f"# {base} for {name}",
            "",
            f"The expert for {name} of a mixture of language experts, as a LoRA adapter of rank {rank} of the base "
            f"`{base}`. With it the base computes what the mixture does for text sent to this expert.",
            "",
            *(["## Recipe", "", *_table([["setting", "value"], ["training", training]]), ""] if training else []),
        ]
    )
