"""The model card (README.md) of a written directory: what it is, from which base, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from moe.config import ModelConfig
from moe.languages import LANGUAGES


def language_name(key: str) -> str:
    """``C++`` for ``cpp``; unknown keys stay as they are."""
    return LANGUAGES[key].name if key in LANGUAGES else key


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]


def model_card(
    config: ModelConfig,
    base: Path | str,
    action: str,
    recipe: Mapping[str, str] | None = None,
    scores: Sequence[Sequence[str]] | None = None,
    license_name: str = "other",
) -> str:
    """Writes a model card in Markdown with the front matter that model hubs read.

    Args:
        base: what the model was made from.
        action: how, in words: "Upcycled to full experts".
        recipe: settings of the training to list, by name.
        scores: rows of a table of results, the header first.
        license_name: of the weights; they carry the base's licence, so ``other`` when it is not known.
    """
    languages = [language_name(key) for key in config.expert_languages]
    kind = "sparse mixture of experts (Mixtral architecture)" if config.num_experts else "dense (Mistral architecture)"
    name = Path(base).name
    lines = [
        "---",
        f"license: {license_name}",
        f"base_model: {name}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- code",
        *(["- mixtral", "- moe"] if config.num_experts else ["- mistral"]),
        "---",
        "",
        f"# {name}" + (f" with experts for {', '.join(languages)}" if languages else ""),
        "",
        f"A {kind}. {action}, from the base `{name}`.",
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
    lines += _table(facts)
    if recipe:
        lines += ["", "## Recipe", "", *_table([["setting", "value"], *([k, v] for k, v in recipe.items())])]
    if scores:
        lines += ["", "## Scores", "", *_table(scores)]
    lines += [
        "",
        "## Licence and checks",
        "",
        "The weights are under the licence of the base. `manifest.json` has the SHA-256 of every file.",
        "",
    ]
    return "\n".join(lines)
