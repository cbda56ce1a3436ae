"""What settings must be, each by itself and beside the others."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from moe.config import EXPERT_FORMS, ROUTER_CONTEXTS, ROUTER_LAYERS, parse_layers
from moe.data.layouts import parse_fields
from moe.data.prompt import check_template
from moe.data.sources import AUTO
from moe.errors import UserError
from moe.languages import get_language

INT4 = "int4"


def require_sound(config: Any) -> None:
    """Raises :class:`UserError` for the first setting of a :class:`~moe.training.config.RunConfig` that cannot be."""
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{item.name} is {value}, expected a finite number")
    if config.seed >= 2**63:
        raise UserError(f"seed is {config.seed}, expected a number below 2**63")
    for name in ("warmup_ratio", "min_lr_ratio", "unnamed_share", "test_share_weight"):
        if getattr(config, name) > 1:
            raise UserError(f"{name} is {getattr(config, name)}, expected a share between 0 and 1")
    if config.dtype in ("float16", "fp16"):
        raise UserError(
            f"dtype is {config.dtype}, whose small range overflows in training; expected bfloat16 or float32"
        )
    choices: dict[str, tuple[Any, ...]] = {
        "base_dtype": ("auto", INT4),
        "expert_form": EXPERT_FORMS,
        "optimizer_bits": (8, 32),
    }
    choices |= {"router_context": ROUTER_CONTEXTS, "router_layers": ROUTER_LAYERS}
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise UserError(f"{name} is {getattr(config, name)!r}, expected {' or '.join(map(str, known))}")
    if config.base_dtype == INT4 and config.expert_form == "full":
        raise UserError("base_dtype int4 freezes what full experts train; set expert_form to delta")
    if config.expert_parallel and config.expert_form == "delta":
        raise UserError("expert_parallel deals out full experts; leave it out, or set expert_form to full")
    if config.optimizer_bits == 8 and (config.shard or config.expert_parallel):
        raise UserError("optimizer_bits 8 needs whole weights; leave it out, or shard and expert_parallel")
    if config.template != "auto":
        check_template(config.template)
    if not config.test_sets or len(set(config.test_sets)) != len(config.test_sets):
        raise UserError(f"test_sets is {' '.join(config.test_sets)!r}, expected at least one split, each once")
    if AUTO in config.test_sets and len(config.test_sets) > 1:
        raise UserError(f"test_sets is {' '.join(config.test_sets)!r}, expected {AUTO} alone or names of splits")
    if config.router_half_life == 0:
        raise UserError("router_half_life is 0, expected a positive number of tokens")
    if config.merge and (config.router_context != "none" or config.router_layers != "each"):
        raise UserError(
            "merge writes a Mixtral model, which routes each token by itself; set router_context to none and "
            "router_layers to each, or leave merge out"
        )
    if not config.languages:
        raise UserError("languages is empty, expected at least one, such as python")
    if len(set(config.languages)) != len(config.languages):
        raise UserError(f"languages names one twice: {' '.join(config.languages)}")
    for language in config.languages:
        get_language(language)
    if config.new_language and config.new_language != config.languages[-1]:
        raise UserError(f"new_language is {config.new_language!r}, expected the last of languages")
    if config.preferences and config.learn_from_tests:
        raise UserError("preferences and learn_from_tests are both set; learn from one after the other")
    if config.policy and config.expert_form == "full":
        raise UserError("the run has full experts; only experts that are deltas learn from preferences and tests")
    if config.preferences and config.kl_weight == 0:
        raise UserError("kl_weight is 0, expected a positive number: DPO has no gradient then")
    if config.group_size < 2:
        raise UserError(f"group_size is {config.group_size}, expected at least 2 answers to compare")
    if config.temperature == 0:
        raise UserError("temperature is 0, expected a positive number: equal answers teach nothing")
    parse_fields(config.fields)
    parse_layers(config.moe_layers)
    if config.attention_experts and (config.expert_form == "full" or config.merge):
        other = "expert_form full" if config.expert_form == "full" else "merge"
        raise UserError(f"attention_experts are low-rank deltas, and {other} makes full experts; leave one out")
    if not 1 <= config.num_experts_per_tok <= len(config.languages):
        raise UserError(
            f"num_experts_per_tok is {config.num_experts_per_tok}, expected 1 to the number of languages, "
            f"{len(config.languages)}"
        )
    counts = ("expert_rank", "validation_pairs", "max_tokens", "tokens_per_batch", "accumulate", "eval_pairs")
    more = ("router_documents", "max_new_tokens", "eval_batch_size", "tasks_per_step", "updates_per_group")
    for name in (*counts, *more):
        if getattr(config, name) < 1:
            raise UserError(f"{name} is {getattr(config, name)}, expected at least 1")
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, (int, float)) and value < 0:
            raise UserError(f"{item.name} is {value}, expected no negative number")
    if config.max_tokens > config.tokens_per_batch:
        raise UserError(
            f"max_tokens {config.max_tokens} is more than tokens_per_batch {config.tokens_per_batch}; "
            "an example must fit into a batch"
        )
