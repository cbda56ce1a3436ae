"""Turns a dense code model into a mixture of language experts.

The whole recipe, in order: plan, load, score the base, upcycle, branch, route, mix, score, write, baseline, run tests,
report.
Each finished step is noted in the run's directory, so `--resume` continues where a run stopped.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until the imports are done Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from checkpoints.cli import ArgumentParser, run, script_command
from checkpoints.config_flags import add_setting_flags, flag_of, given_settings
from checkpoints.model_io import LoadedModel
from checkpoints.progress import lasting_output, make_console, say
from checkpoints.proof import prove
from checkpoints.runs.directory import RunDirectory, resume_command
from checkpoints.runs.fingerprints import check_inputs, run_fingerprints
from checkpoints.runs.models import (
    is_sharded,
    load_base,
    make_adapter,
    make_mixture,
    placed,
    steps_of_epochs,
    stored_deltas,
    trained_examples,
    write_model,
)
from checkpoints.runs.opening import open_run, run_path
from checkpoints.runs.preflight import (
    base_config,
    check_data,
    describe_fit,
    describe_needs,
    describe_work,
    has_int4_base,
    mixture_config,
    plan_run,
    require_disk,
    run_data,
    run_dtype,
    validation_pairs,
)
from checkpoints.runs.staged_run import StagedRun
from checkpoints.transforms.experts import changed_experts
from eval.evaluate import Evaluation
from eval.policy import policy
from eval.reporting.display import TrainingMonitor
from eval.reporting.metrics import TRACKERS, check_tracker
from eval.reporting.record import MODELS
from eval.reporting.summary import report, worse_than_base
from eval.training_step import measured_speed
from moe.config import describe_layers
from moe.data.examples import Examples
from moe.data.packing import MixedBatches, encode_pairs
from moe.data.sources import DataSets
from moe.errors import UserError
from moe.hardware import available_memory, choose_device, describe_hardware, dtype_name, keep_freed_memory, matmul_rate
from moe.model import count_parameters
from moe.training import distributed, sharding
from moe.training.config import RunConfig
from moe.training.interrupt import Interrupted, raised_signals
from moe.training.policy import Policy
from moe.training.router_start import fit_router
from moe.training.samples import Samples
from moe.training.trainer import Diverged


def main(arguments: argparse.Namespace) -> int:
    with lasting_output(), raised_signals(), one_report():
        try:
            with distributed.process_group(), silence_of_other_ranks():
                return plan_and_run(arguments)
        except Interrupted:
            if arguments.exit_zero_on_signal:
                return 0
            raise


@contextmanager
def one_report() -> Iterator[None]:
    """Of several processes that end with an error, or after a signal, lets the first one say so."""
    try:
        yield
    except (UserError, OSError, KeyboardInterrupt) as error:
        if distributed.speaks_first():
            raise
        raise SystemExit(128 + error.number if isinstance(error, Interrupted) else 2) from None


@contextmanager
def silence_of_other_ranks() -> Iterator[None]:
    """Only rank 0 prints; an error that leaves the block is printed outside of it."""
    if distributed.is_main():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def plan_and_run(arguments: argparse.Namespace) -> int:
    # 1. Plan: settings, device, data, what exists already.
    console = make_console()
    check_tracker(arguments.log_to)
    resumed, config, warnings = open_run(arguments)
    config = replace(config, **(given_settings(arguments) if resumed else {}))
    device = choose_device(config.device)
    if distributed.world() > 1 and device.type == "cuda":
        device = torch.device("cuda", distributed.local_rank())
    keep_freed_memory(device)
    dtype = run_dtype(config, device)
    torch.manual_seed(config.seed)
    data = run_data(config)
    config = replace(config, test_sets=tuple(data.held_out))
    say(console, f"data {config.data}, scored on {', '.join(config.test_sets)}")
    for line in data.readings:
        say(console, line)
    warnings += check_data(config, data)
    sizes = base_config(config)
    rounded = ", feed-forwards of the base in int4" if has_int4_base(config) else ""
    say(console, f"{describe_hardware(device)}, weights in {dtype_name(dtype)}{rounded}")
    gpu = device.type == "cuda"
    plan = plan_run(config, sizes, dtype, gpu)
    if arguments.epochs is not None:
        config = replace(config, mix_steps=steps_of_epochs(config, data.train, arguments.epochs))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for line in describe_fit(config, sizes, plan, dtype, available_memory(device), arguments.dry_run, gpu):
        say(console, line)
    path = Path(distributed.same_text(str(run_path(arguments))))
    if arguments.dry_run:
        RunDirectory.check_new(path)
        speed = arguments.tokens_per_second or measured_speed(config, mixture_config(config, sizes), device, dtype)
        for line in describe_needs(config, data, plan, path) + describe_work(config, sizes, speed):
            say(console, line)
        return 0

    if resumed is None:
        require_disk(config, plan, path)
    directory = resumed or RunDirectory.create(path, config, sys.argv[1:])
    with directory.held():
        if given_settings(arguments) and resumed:
            directory.adjust(given_settings(arguments))
        try:
            with distributed.lost_ranks():
                return make_experts(config, directory, data, device, dtype, console, arguments)
        except distributed.LostRank as error:
            raise distributed.LostRank(f"{error}; continue with: {resume_command(directory.path)}") from None
        except (KeyboardInterrupt, OSError, UserError) as error:
            if directory.holds_work or isinstance(error, KeyboardInterrupt | Diverged):
                say(console, f"stopped; continue with: {command_to_go_on(directory, error)}")
            raise


def command_to_go_on(directory: RunDirectory, error: BaseException) -> str:
    """The command that continues the run; after a divergence with a third of the learning rates."""
    command = resume_command(directory.path)
    rates = error.rates if isinstance(error, Diverged) else ()
    return " ".join([command, *(f"{flag_of(name)} {getattr(directory.config, name) / 3:.1e}" for name in rates)])


def make_experts(
    config: RunConfig,
    directory: RunDirectory,
    data: DataSets,
    device: torch.device,
    dtype: torch.dtype,
    console: Console,
    arguments: argparse.Namespace,
) -> int:
    """The recipe after the plan; the exit code: 1 if the mixture is worse than its base."""
    monitor = None
    if distributed.is_main():
        rate = matmul_rate(device, dtype)
        monitor = TrainingMonitor(console, directory.path, config.languages, rate, arguments.log_to)
    stages = StagedRun(directory, config, monitor or (lambda *_: nullcontext(id)), say_that_the_step_is_saved)
    evaluation = Evaluation(directory, config, data.held_out, console)

    # 2. Load the base (the tiny one is trained first) and encode the data.
    base = load_base(stages, data.train, dtype, device, check=not arguments.no_check)
    assert base.tokenizer is not None, "load_base requires one"
    size = count_parameters(base.model) / 1e6
    say(console, f"base {base.path}: {size:,.1f} M parameters, prompts as {base.template}")
    fingerprints = run_fingerprints(config, base)
    changed = check_inputs(directory, fingerprints, arguments.accept_new_data)
    if changed:
        say(console, f"warning: goes on with another {', '.join(changed)}; all models are scored anew")
    if config.new_language:
        say(console, f"it gains an expert for {config.new_language}; nothing else of it changes")
    elif config.policy:
        say(console, f"its experts learn from {config.policy} in their languages; nothing else of it changes")
    elif base.config.is_moe:
        say(console, "it is a mixture: its experts and routers are trained further, and there is no dense baseline")
    batches: MixedBatches | Policy
    if config.policy:
        batches = policy(config, data.train, base, console)
    else:
        examples = encode(config, data, base, (directory.path / "tokens", fingerprints), console)
        batches = MixedBatches(examples, config.tokens_per_batch, config.seed)
    held_out = validation_pairs(config)
    if config.validation_steps and not held_out:
        say(console, f"{config.data} has no validation/ split: no early stopping")
    validation = (
        encode_pairs(held_out, base.tokenizer, base.template, base.config.max_seq_len).examples if held_out else None
    )
    if config.sample_steps and distributed.is_main():
        first = next(iter(data.held_out.values()))
        stages.samples = Samples(first, base.tokenizer, base.template, config.max_new_tokens, base.config.max_seq_len)

    # 3. Score the base.
    original = placed(base.model, config, device)
    evaluation.score(replace(base, model=original), "base", chat=config.chat_base)

    # 4. Upcycle: every feed-forward becomes one expert per language; nothing changes yet, and that is proved.
    model = placed(make_mixture(base.model, config), config, device)
    if "proof" not in directory.results and not (config.new_language or config.policy):
        proof = sharding.on_main(partial(prove, original, model, base.tokenizer))
        if proof is not None:
            size = count_parameters(model) / 1e6
            where = describe_layers(model.config)
            say(console, f"upcycled to {size:,.1f} M parameters{where}: {proof.describe()}")
            if not proof.holds:
                say(console, "warning: the mixture is not the dense model at the start, as it should be up to rounding")
            directory.note("proof", proof.to_json())
    del original
    if is_sharded(config):
        gc.collect()  # FSDP's modules and states refer to each other

    # 5. Route: the router's start, from documents that no stage trains on. One more expert is one more row.
    if config.new_language or not (directory.has_state("mix") or base.config.is_moe):
        assert isinstance(batches, MixedBatches), "what learns from answers is a mixture"
        accuracy = fit_router(model, batches, trained_batches(config), config)
        shares = " ".join(f"{share:.1%}" for share in accuracy)
        say(console, f"router fitted: held-out tokens sent to their language: {shares}")
        directory.note("router_accuracy", accuracy)

    # 6. Branch: a short start with each token on the expert of its language.
    # 7. Mix: learned top-k routing with balance loss and z-loss. A finished mixture may learn from answers instead.
    if config.new_language:
        batches = MixedBatches(trained_examples(config, examples), config.tokens_per_batch, config.seed)
    for stage in config.stage_steps:
        say(console, stages.train(model, stage, batches, validation if stage == "mix" else None))
    if config.new_language or config.policy:
        learned = batches.languages if isinstance(batches, Policy) else ()
        lost = sharding.on_main(partial(changed_experts, base.model, model, stored_deltas(config), learned))
        assert not lost, f"training changed {', '.join(lost)}"

    # 8. Score the mixture and write it.
    mixture = replace(base, model=model, config=model.config, path=directory.path / "model")
    evaluation.score(mixture, "mixture")
    write_model(mixture, base, config)
    del model, mixture

    # 9. The baseline: one dense adapter with as many active parameters, trained on the same data for as many steps.
    if config.baseline and not base.config.is_moe:
        adapted = placed(make_adapter(base.model, config), config, device)
        say(console, stages.train(adapted, "adapter", batches, validation))
        dense = replace(base, model=adapted, config=adapted.config, path=directory.path / "adapter")
        evaluation.score(dense, "dense adapter")
        write_model(dense, base, config)

    # 10. Run the tests of the answers, where the held-out pairs have tests.
    for name in MODELS:
        if f"scores of {name}" in directory.results:
            evaluation.test(name)

    # 11. Report.
    directory.once("hardware", lambda: describe_hardware(device))
    if monitor is not None:
        monitor.close()
        report(directory, console)
    worse = "" if config.policy else worse_than_base(directory.results)  # answers are not learned for a lower loss
    if worse:
        print(f"warning: {worse}", file=sys.stderr)
    return 1 if worse else 0


def encode(
    config: RunConfig, data: DataSets, base: LoadedModel, cache: tuple[Path, dict[str, Any]], console: Console
) -> dict[str, Examples]:
    """The encoded training pairs by language; says what was left out, and how often the run sees the others.

    Args:
        cache: where token ids are kept, and the run's fingerprints.
    """
    assert base.tokenizer is not None, "load_base requires one"
    known = [cache[1]["training data"], cache[1]["tokenizer"]]
    with distributed.main_first():
        encoded = encode_pairs(
            data.train, base.tokenizer, base.template, config.max_tokens, config.unnamed_share, config.seed,
            (cache[0], known),
        )  # fmt: skip
    for language, count in encoded.too_long.items():
        if count:
            say(console, f"left out {count} {language} pairs of more than {config.max_tokens} tokens")
    batches = MixedBatches(trained_examples(config, encoded.examples), config.tokens_per_batch, config.seed)
    passes = trained_batches(config) / batches.epoch_batches
    one_pass = f"{batches.epoch_batches:,.0f} batches, {batches.filled():.1%} filled"
    say(console, f"one pass over the data is {one_pass}; this run makes {passes:.2f} passes")
    return encoded.examples


def trained_batches(config: RunConfig) -> int:
    """How many batches branch and mix take."""
    return config.accumulate * sum(config.stage_steps.values())


def say_that_the_step_is_saved() -> None:
    """What a signal is answered with."""
    print("finishing and saving this step; Ctrl-C again stops at once", file=sys.stderr, flush=True)


def make_parser() -> ArgumentParser:
    """The command line: one flag for each setting, besides where the run comes from and goes."""
    several = "Several cards: torchrun --nproc-per-node N train.py … (docs/training.md)."
    description = f"{(__doc__ or '').split(chr(10) * 2)[0]} {several}"
    parser = ArgumentParser(prog=script_command("train"), description=description)
    parser.add_argument("--name", help="name of the run's directory (default: the preset and the time)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept")
    parser.add_argument(
        "--add-language", metavar="LANGUAGE", default="", help="train one more expert, on a finished run: --to RUN"
    )
    to = "the run whose mixture gains it, or learns from answers; its settings are kept"
    parser.add_argument("--to", metavar="RUN", default="", help=to)
    parser.add_argument("--resume", metavar="DIR", help="continue an interrupted run")
    parser.add_argument(
        "--accept-new-data", action="store_true", help="resume though data or base changed, and score all models anew"
    )
    parser.add_argument(
        "--exit-zero-on-signal", action="store_true", help="exit with 0, not 128 + its number, after SIGTERM and so on"
    )
    parser.add_argument(
        "--log-to", choices=TRACKERS, default="", help="also send metrics to this tracker, if installed"
    )
    parser.add_argument("--no-check", action="store_true", help="load the base without comparing it with its manifest")
    parser.add_argument("--dry-run", action="store_true", help="check settings and data, and print what a run needs")
    parser.add_argument(
        "--tokens-per-second", type=float, default=0.0, metavar="N", help="for --dry-run: speed (default: of two steps)"
    )
    add_setting_flags(parser)
    parser.set_defaults(parser=parser)
    return parser


if __name__ == "__main__":
    sys.exit(run(make_parser(), main))
