"""The model card (README.md) of a written directory: what it is, from which base, how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from moe.config import ModelConfig, format_layers
from moe.languages import LANGUAGES


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
    """Writes a model card in Markdown with the front matter that model hubs read.

    Args:
        base: the name of what the model was made from.
        action: how, in words: "Upcycled to full experts".
        recipe: settings of the making or the training, by name.
        scores: rows of a table of results, the header first; without them the card says that there are none.
        license_name: of the base, which the weights carry on; None when its files state none, which the card then says.
    """
    languages = [language_name(key) for key in config.expert_languages]
    if config.is_delta:
        kind = "set of low-rank changes to a dense model, which is needed beside it"
    else:
        kind = "sparse mixture of experts (Mixtral)" if config.num_experts else "dense model (Mistral architecture)"
    name = base
    lines = [
        "---",
        f"license: {license_name or 'other'}",
        *([] if license_name else ["license_name: unknown"]),
        f"base_model: {json.dumps(name, ensure_ascii=False)}",
        *([] if config.is_delta else ["library_name: transformers"]),
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
    if config.moe_layers is not None:
        facts.append(
            ["layers with experts" if config.num_experts else "layers changed", format_layers(config.moe_layers)]
        )
    lines += _table(facts)
    if recipe:
        lines += ["", "## Recipe", "", *_table([["setting", "value"], *([k, v] for k, v in recipe.items())])]
    lines += ["", "## Scores", ""]
    lines += _table(scores) if scores else ["None are known: these weights have not been scored."]
    if license_name:
        licence = f"The weights are under the licence of the base: {license_name}."
    else:
        licence = (
            f"The files of `{name}` state no licence; find it before you pass these weights on: it holds for them."
        )
    lines += ["", "## Licence and checks", "", f"{licence} `manifest.json` has the SHA-256 of every file.", ""]
    return "\n".join(lines)
