"""A request's say in the router's decisions: languages that it forces or favors, experts that it leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe.config import ModelConfig
from moe.errors import UserError, did_you_mean
from moe.languages import language_key

ROUTINGS = ("free", "biased", "forced")
FAVOR = math.log(10)  # biased: the odds of the language's expert are ten times as high, at each decision


def expert_names(config: ModelConfig) -> list[str]:
    """The experts' languages, or their numbers where they have none."""
    return list(config.expert_languages) or [f"expert {number}" for number in range(config.num_experts)]


def expert_bias(
    config: ModelConfig, language: str | None, routing: str = "free", experts: Sequence[int | str] | None = None
) -> tuple[float, ...] | None:
    """What is added to the logits that routers decide by, a number an expert; None where the router alone decides.

    It comes after the router's memory of the document (``router_context``), which stays that of the router alone: a
    forced expert has gate 1 at every token, and gates of the experts left are those of a router without the others.

    Args:
        routing: ``free``: the language is only mentioned in the prompt; ``biased``: its expert's odds rise tenfold;
            ``forced``: its expert alone.
        experts: the experts that may be chosen, by number or language; None: all.

    Raises :class:`UserError` for unknown experts, and where no expert is left.
    """
    if routing not in ROUTINGS:
        raise UserError(f"unknown routing {routing!r}{did_you_mean(routing, ROUTINGS)}; known: {', '.join(ROUTINGS)}")
    if routing == "free" and experts is None:
        return None
    if not config.is_moe:
        raise UserError("the model has no experts, so there is nothing to route; leave routing and experts out")
    allowed = set(range(config.num_experts) if experts is None else _numbers(config, experts))
    bias = [0.0] * config.num_experts
    if routing != "free":
        if language is None:
            raise UserError(f"routing is {routing!r} without a language; name one, or choose 'free'")
        own = {number for number, name in enumerate(config.expert_languages) if name == language}
        if not own:
            raise UserError(f"no expert is for {language}; experts: {', '.join(expert_names(config))}")
        if not own & allowed:
            raise UserError(f"the expert for {language} is not among the chosen experts")
        bias = [FAVOR if number in own else 0.0 for number in range(config.num_experts)]
        allowed = own & allowed if routing == "forced" else allowed
    return tuple(value if number in allowed else -math.inf for number, value in enumerate(bias))


def _numbers(config: ModelConfig, experts: Sequence[int | str]) -> list[int]:
    """Numbers of experts that are given by number or language."""
    names, found = expert_names(config), []
    for expert in experts:
        text = str(expert).strip()
        if text.isascii() and text.isdigit() and int(text) < config.num_experts:
            found.append(int(text))
        elif language_key(text) in names:
            found.append(names.index(language_key(text)))
        else:
            known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
            raise UserError(f"unknown expert {text!r}{did_you_mean(text, names)}; experts: {known}")
    if not found:
        raise UserError("no expert is chosen; name at least one")
    return found
