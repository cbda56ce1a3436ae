"""Checks before a run starts: its precision, data and base, memory and disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from checkpoints.formats import Checkpoint, open_checkpoint
from checkpoints.formats.delta import is_delta, open_delta
from checkpoints.formats.extras import checkpoint_tokenizer, find_template, require_fit
from checkpoints.formats.quantized import METHOD, is_quantized
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.model_io import read_config
from checkpoints.runs.state import KEPT
from checkpoints.storage.files import DiskUsage, free_bytes, require_free_space
from checkpoints.storage.writer import SMALL_FILES_BYTES
from checkpoints.transforms.experts import grown_config
from checkpoints.transforms.upcycle import continued_config, upcycled_config
from kernels.int4 import group_of
from moe.config import ALL_LAYERS, ModelConfig, parse_layers
from moe.data.preferences import read_preferences
from moe.data.prompt import encode_prompt, stop_ids
from moe.data.sources import SYNTHETIC, DataSets, Pairs, load_data, load_held_out, sample_all
from moe.data.splits import list_splits
from moe.data.validate import quick_findings
from moe.errors import UserError
from moe.hardware import choose_dtype
from moe.model import Transformer, count_parameters
from moe.tokenizer import Tokenizer
from moe.training import distributed
from moe.training.config import INT4, TINY, RunConfig
from moe.training.memory_plan import GIB, MemoryPlan, most_tokens, plan_memory
from moe.training.optimizer import require_bitsandbytes
from moe.training.sharding import expert_ranks
from moe.training.stages import is_expert, is_router
from moe.training.tiny_base import VOCABULARY, tiny_config
from moe.training.trainer import training_flops

METRICS_BYTES = 4096  # of a step, in metrics.csv and TensorBoard's files


def run_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """Precision of the run's frozen weights; raises :class:`UserError` where experts could not learn in it."""
    dtype = choose_dtype(device, config.dtype)
    if config.expert_form == "full" and dtype.itemsize < 4:
        raise UserError(f"full experts cannot learn in {dtype}, small steps are rounded away; add --dtype float32")
    return dtype


def run_data(config: RunConfig) -> DataSets:
    """The pairs that a run trains on and is scored by; raises :class:`UserError` where they are not given or broken."""
    if not config.data:
        raise UserError("no data given; add --data DIR with train/LANGUAGE.jsonl and so on, or --data synthetic")
    return load_data(
        config.data,
        config.languages,
        seed=config.seed,
        train_pairs=config.train_pairs,
        test_sets=config.test_sets,
        fields=config.fields,
    )


def validation_pairs(config: RunConfig) -> Pairs | None:
    """The pairs that early stopping measures; None without ``validation_steps`` or where the data have none."""
    synthetic = config.data == SYNTHETIC
    if not config.validation_steps or not (synthetic or "validation" in list_splits(Path(config.data))):
        return None
    pairs = load_held_out(config.data, config.languages, "validation", config.seed, config.fields)
    return sample_all(pairs, config.validation_pairs, config.seed)


def check_data(config: RunConfig, data: DataSets) -> list[str]:
    """What is wrong with the data as far as seconds can tell, a line each.

    Raises:
        UserError: there is nothing to learn from, where answers are to be learned from.
        UserError: test pairs are in train, word for word, and the settings do not allow it.
    """
    if config.preferences:
        read_preferences(Path(config.preferences), config.languages)
    if config.learn_from_tests and not any(pair.tests for pairs in data.train.values() for pair in pairs):
        raise UserError(f"no training pair of {config.data} has tests, which answers would be judged by")
    if config.data == SYNTHETIC:  # whose tests hold by construction
        return []
    found = quick_findings(data)
    leaks = [finding.text for finding in found if finding.leak]
    if leaks and not config.allow_leaks:
        raise UserError(f"{'; '.join(leaks)}: scores would mean nothing; take them out of train, or add --allow-leaks")
    return [finding.text for finding in found]


def base_config(config: RunConfig) -> ModelConfig:
    """Sizes of the run's base, read without its weights.

    Raises:
        UserError: the base is missing, or a mixture that cannot be trained further, its tokenizer or template does not
            fit it, or its context is shorter than the longest example.
    """
    if not config.base:
        raise UserError("no base given; add --base DIR with the dense model, or --base tiny for the embedded one")
    base = tiny_config(VOCABULARY) if config.base == TINY else _checked_base(config)
    if config.shard and has_int4_base(config):
        raise UserError("an int4 base is not sharded, it is small and whole on each card; leave --shard out")
    if config.optimizer_bits == 8:
        require_bitsandbytes()
    experts, processes = len(config.languages), distributed.world()
    if config.expert_parallel and processes > 1 and expert_ranks(experts, processes) == 1:
        raise UserError(
            f"{experts} experts cannot be dealt out to {processes} processes; start {experts} of them, a divisor or a "
            "multiple of that, or give --no-expert-parallel --shard"
        )
    if config.max_tokens > base.max_seq_len:
        raise UserError(
            f"max_tokens is {config.max_tokens}, but the context of {config.base} has {base.max_seq_len} tokens; "
            f"set --max-tokens to at most {base.max_seq_len}"
        )
    return base


def _checked_base(config: RunConfig) -> ModelConfig:
    path = resolve_model_path(config.base)
    if config.new_language or config.policy:
        return read_config(path)
    checkpoint = None if is_delta(path) else open_checkpoint(path)
    if checkpoint is None or (checkpoint.config.is_moe and config.expert_form != "full"):
        remedy = "" if checkpoint is None else ", or add --expert-form full to train its experts further"
        raise UserError(f"{config.base} is a mixture already; give the dense model it was made from as --base{remedy}")
    tokenizer = require_tokenizer(checkpoint_tokenizer(checkpoint), path)
    require_fit(tokenizer, checkpoint.config.vocab_size, path)
    template = given_template(config)
    if template is None:
        places = [(checkpoint.directory, checkpoint.settings)]
        template = find_template(path, places, tokenizer, require_own=config.chat_base)
    if config.base_dtype == INT4:
        check_rounding(checkpoint)
    stop_ids(tokenizer, template)
    encode_prompt(tokenizer, template, "Add two numbers.")  # refuses a template that this tokenizer cannot write
    return checkpoint.config


def check_rounding(checkpoint: Checkpoint) -> None:
    """Raises :class:`UserError` where a base can be neither rounded to int4 nor taken as it is."""
    stored = checkpoint.settings.get("quantization_config")
    if is_quantized(checkpoint.settings) and isinstance(stored, Mapping) and stored.get("quant_method") != METHOD:
        raise UserError(f"{checkpoint.path} is int8 already; give the model it was made from, or leave base_dtype out")
    if not (group_of(checkpoint.config.dim) or group_of(checkpoint.config.hidden_dim)):
        raise UserError(f"no width of {checkpoint.path} is a multiple of 32, as int4 needs; leave base_dtype out")


def has_int4_base(config: RunConfig) -> bool:
    """Whether the frozen feed-forwards of the run's base are int4: as set, or as the base has them."""
    if config.base_dtype == INT4 or config.expert_form == "full" or config.base == TINY:
        return config.base_dtype == INT4
    path = resolve_model_path(config.base)
    checkpoint = open_delta(path).base if is_delta(path) else open_checkpoint(path)
    settings = checkpoint.settings.get("quantization_config")
    return isinstance(settings, Mapping) and settings.get("quant_method") == METHOD


def require_tokenizer(tokenizer: Tokenizer | None, path: Path) -> Tokenizer:
    """The tokenizer; raises :class:`UserError` when the model at ``path`` has none."""
    if tokenizer is None:
        raise UserError(f"{path} has no tokenizer; expected tokenizer.json or tokenizer.model beside the weights")
    return tokenizer


def given_template(config: RunConfig) -> str | None:
    """The prompt template that the settings name; None for the base's own."""
    return None if config.template == "auto" else config.template


def mixture_config(config: RunConfig, base: ModelConfig) -> ModelConfig:
    """Sizes of the mixture that the run makes of ``base``."""
    if config.new_language:
        return grown_config(base, config.new_language)
    if config.policy:
        return base
    if base.is_moe:
        return continued_config(base, config.languages)
    return upcycled_config(
        base,
        config.languages,
        config.expert_form,
        config.num_experts_per_tok,
        config.expert_rank,
        config.shared_rank,
        moe_layers=parse_layers(config.moe_layers, base.n_layers),
        attention_experts=config.attention_experts,
    )


def disk_needed(config: RunConfig, plan: MemoryPlan) -> int:
    """Most bytes that a run writes: two states of each stage and one being written, best weights, models, and the room
    for small files that every write of a model asks for."""
    trained = 4 * plan.trainable  # also an upper bound of the adapter's
    stages = [trained, trained, *([trained] if config.baseline else []), 4 * plan.parameters * (config.base == TINY)]
    states = 3 * (KEPT * sum(stages) + max(stages))  # weights and Adam's two averages
    best = 3 * trained if config.validation_steps and config.keep_best else 0
    copies = 1 if config.moe_layers == ALL_LAYERS else len(config.languages)  # of dense layers, in a Mixtral directory
    full = 4 * plan.parameters * copies
    models = sum(stages[1:]) + (full if config.expert_form == "full" else 0)
    models += plan.weights if config.base_dtype == INT4 else 0
    merged = 4 * plan.parameters * (len(config.languages) if config.merge else 0)
    steps = config.pretrain_steps + 2 * sum(config.stage_steps.values())
    return states + best + models + merged + METRICS_BYTES * steps + 3 * SMALL_FILES_BYTES


def require_disk(config: RunConfig, plan: MemoryPlan, directory: Path, disk_free: DiskUsage = free_bytes) -> None:
    """Raises :class:`UserError` when the disk of ``directory`` has no room for the run."""
    require_free_space(directory, disk_needed(config, plan), disk_free)


def plan_run(config: RunConfig, base: ModelConfig, dtype: torch.dtype, gpu: bool) -> MemoryPlan:
    """Memory of the run's largest stage; raises :class:`UserError` for a mixture or a baseline that cannot be made."""
    if config.baseline and config.expert_form == "delta":
        upcycled_config(base, (), "delta", 1, 0, config.adapter_rank)
    return _plan_of(config, base, dtype, gpu)(0)


def _plan_of(config: RunConfig, base: ModelConfig, dtype: torch.dtype, gpu: bool) -> Callable[[int], MemoryPlan]:
    """The plan by tokens that one card takes; by 0 for those of the settings."""
    mixture, ranks = mixture_config(config, base), shards(config)
    int4 = has_int4_base(config) and not (gpu and dtype != torch.bfloat16)  # which a GPU decodes
    own = max(-(-config.tokens_per_batch // ranks), config.max_tokens if ranks > 1 else 0)
    return lambda tokens: plan_memory(
        mixture, tokens or own, dtype, config.activation_checkpointing, int4, gpu, ranks, config.expert_parallel,
        config.optimizer_bits,
    )  # fmt: skip


def shards(config: RunConfig) -> int:
    """Into how many parts the run's models are split, one for each process."""
    return distributed.world() if config.shard or config.expert_parallel else 1


def change_to_fit(config: RunConfig, base: ModelConfig, dtype: torch.dtype, available: int, gpu: bool) -> str:
    """The smallest change of settings with which the run fits into ``available`` bytes, as flags; "" if none does.

    Sharding among several processes comes first, then fewer tokens a batch (with more batches per step the result is
    about the same), then recomputation, then for full experts averages of 8 bits.
    """
    processes, full, wide = distributed.world(), config.expert_form == "full", config.optimizer_bits == 32
    ways = {}
    if processes > 1 and shards(config) == 1 and wide and not has_int4_base(config):
        ways["--shard"] = replace(config, shard=True)
    if full and wide and expert_ranks(len(config.languages), processes) > 1:
        ways["--expert-parallel"] = replace(config, expert_parallel=True)
    for flag, split in ways.items():
        if plan_run(split, base, dtype, gpu).total <= available:
            return flag
    for checkpointing in sorted({config.activation_checkpointing, True}):
        recomputing = replace(config, activation_checkpointing=checkpointing)
        fitting = most_tokens(_plan_of(recomputing, base, dtype, gpu), available)
        if fitting < config.max_tokens:
            continue
        flags = [] if checkpointing == config.activation_checkpointing else ["--activation-checkpointing"]
        fitting *= shards(config)
        if fitting < config.tokens_per_batch:
            steps = config.accumulate * -(-config.tokens_per_batch // fitting)
            flags += [f"--tokens-per-batch {fitting} --accumulate {steps}"]
        return " ".join(flags)
    if not full or not wide or shards(config) > 1:
        return ""
    narrow = replace(config, optimizer_bits=8)
    fits = plan_run(narrow, base, dtype, gpu).total <= available
    more = "" if fits else change_to_fit(narrow, base, dtype, available, gpu)
    return f"--optimizer-bits 8 {more}".rstrip() if fits or more else ""


def describe_fit(
    config: RunConfig, base: ModelConfig, plan: MemoryPlan, dtype: torch.dtype, available: int, thorough: bool,
    gpu: bool,
) -> list[str]:  # fmt: skip
    """What to change if the run does not fit into ``available`` bytes; if ``thorough``, how much room is left, too."""
    if plan.total > available:
        flags = change_to_fit(config, base, dtype, available, gpu)
        remedy = (
            f"it does with: {flags}" if flags else "no batch is small enough: take a smaller base or a larger device"
        )
        return [f"needs {plan.total / GIB:.2f} GiB and {available / GIB:.2f} are free, so it may not fit; {remedy}"]
    if not thorough:
        return []
    most = shards(config) * most_tokens(_plan_of(config, base, dtype, gpu), available)
    return [f"fits into the {available / GIB:.1f} GiB that are free; the largest --tokens-per-batch is about {most:,}"]


def describe_work(config: RunConfig, base: ModelConfig, tokens_per_second: float) -> list[str]:
    """Operations per token, tokens and hours of branch and mix at this speed (0: unknown).

    How long answers are, and how long tests run, is not known before: they have operations per token alone.
    """
    with torch.device("meta"):
        dense, mixture = Transformer(base), Transformer(mixture_config(config, base))
    learned = [name for name, _ in mixture.named_parameters() if is_expert(name) or is_router(name)]
    flops = training_flops(mixture, learned)
    once = training_flops(dense, [])
    same = once * count_parameters(mixture) / count_parameters(dense)
    lines = [
        f"operations per token of a training step: mixture {flops / 1e9:.3g} G, dense base {once / 1e9:.3g} G, "
        f"a dense model of the mixture's size (frozen) {same / 1e9:.3g} G",
    ]
    if config.policy:
        return lines
    steps = config.branch_steps + config.mix_steps
    tokens = steps * config.accumulate * config.tokens_per_batch
    lines.append(f"{steps:,} steps of branch and mix are at most {tokens:,} tokens")
    if tokens_per_second:
        hours = tokens / tokens_per_second / 3600
        twice = ", and about as much for the baseline" if config.baseline else ""
        lines[-1] += f": {hours:.2g} hours at {tokens_per_second:,.0f} tokens/s{twice}"
    return lines


def describe_needs(config: RunConfig, data: DataSets, plan: MemoryPlan, directory: Path) -> list[str]:
    """What a run in ``directory`` takes, line by line: data, steps, parameters, memory, disk."""
    lines = []
    for language, pairs in data.train.items():
        held_out = ", ".join(f"{len(split[language])} {name}" for name, split in data.held_out.items())
        lines.append(f"{language}: {len(pairs)} training pairs, {held_out}")
    lines.append("steps: " + ", ".join(f"{steps} {stage}" for stage, steps in config.stage_steps.items()))
    lines.append(plan.describe())
    disk = free_bytes(directory) / GIB
    lines.append(f"at most {disk_needed(config, plan) / GIB:.1f} GiB on disk; {disk:.0f} GiB free")
    return lines
