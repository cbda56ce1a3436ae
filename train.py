"""Turns a dense code model into a mixture of language experts: `python train.py --help`.

The whole recipe, in order: plan, load, score the base, upcycle, branch, route, mix, score, write, baseline, report.
Every step that is finished is noted in the run's directory, so `--resume` goes on where a run ended.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from checkpoints.cli import ArgumentParser, run
from checkpoints.config_flags import add_setting_flags, given_settings
from checkpoints.model_io import LoadedModel, load_model, save_model
from checkpoints.progress import CountDisplay, make_console
from checkpoints.proof import prove
from checkpoints.runs.directory import RESULTS_FILE, RUN_FILE, RunDirectory, resume_command
from checkpoints.runs.preflight import base_config, disk_needed, plan_run, require_disk
from checkpoints.storage.files import free_bytes
from checkpoints.transforms.rewrite import merge_directory
from checkpoints.transforms.upcycle import upcycle_model
from eval.evaluate import evaluate
from eval.reporting.display import MetricsWriter, StageDisplay
from eval.reporting.tables import loss_table, markdown_report, routing_table, score_table
from moe.data.packing import MixedBatches, encode_pairs
from moe.data.prompt import choose_template
from moe.data.sources import DataSets, load_data
from moe.errors import UserError
from moe.experts import widen_trainable
from moe.hardware import available_memory, choose_device, choose_dtype, describe_hardware, dtype_name, keep_freed_memory
from moe.layer_ranges import describe_layers, parse_layers
from moe.model import Transformer, count_parameters
from moe.tokenizer import load_tokenizer
from moe.training.config import TINY, RunConfig, load_preset, load_settings, make_config, parse_setting, preset_names
from moe.training.interrupt import Interrupt
from moe.training.memory_plan import GIB, MemoryPlan
from moe.training.ridge import ridge_routers
from moe.training.stages import make_stage
from moe.training.tiny_base import encode_files, tiny_config, train_tiny_tokenizer
from moe.training.trainer import StepReport, Trainer

MODELS = ("base", "dense adapter", "mixture")


def main(arguments: argparse.Namespace) -> int:
    # 1. Plan: settings, device, what exists already.
    console = make_console()
    resumed, config, warnings = read_settings(arguments)
    device = choose_device(config.device)
    keep_freed_memory(device)
    dtype = choose_dtype(device, config.dtype)
    if config.form == "full" and dtype.itemsize < 4:
        raise UserError(f"full experts cannot learn in {dtype}, small steps are rounded away; add --dtype float32")
    say(console, f"{describe_hardware(device)}, weights in {dtype_name(dtype)}")
    torch.manual_seed(config.seed)
    data = load_data(config)
    plan = plan_run(config, base_config(config), dtype)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if plan.total > available_memory(device):
        console.print("[bold]this may not fit into memory[/bold]: lower tokens_per_batch or ranks, or set recompute")
    if arguments.dry_run:
        return dry_run(config, data, plan, device, run_path(arguments), console)
    directory = resumed or create_run(arguments, config, plan)
    with directory.held():
        try:
            return make_experts(config, directory, data, device, dtype, console)
        except UserError:
            # A mistake that only showed on loading leaves no directory behind; work that was done is kept.
            if resumed is None and not any((directory.path / name).exists() for name in ("state", RESULTS_FILE)):
                shutil.rmtree(directory.path, ignore_errors=True)
            raise
        except KeyboardInterrupt:
            say(console, f"stopped; go on with: {resume_command(directory.path)}")
            raise


def make_experts(
    config: RunConfig,
    directory: RunDirectory,
    data: DataSets,
    device: torch.device,
    dtype: torch.dtype,
    console: Console,
) -> int:
    """The recipe after the plan."""
    # 2. Load the base and encode the data; the tiny base is trained first.
    session = Session(config, directory, data, console)
    base = session.load_base(dtype, device)
    encoded = encode_pairs(data.train, base.tokenizer, base.template, config.max_tokens)
    for language, count in encoded.too_long.items():
        if count:
            say(console, f"left out {count} {language} pairs of more than {config.max_tokens} tokens")
    batches = MixedBatches(encoded.examples, config.tokens_per_batch, config.seed)
    trained = config.accumulate * (config.branch_steps + config.mix_steps)
    passes = trained / batches.epoch_batches
    say(console, f"one pass over the data is {batches.epoch_batches:,.0f} batches; this run makes {passes:.2f} passes")

    # 3. Score the base.
    session.score(base, "base", chat=config.chat_base)

    # 4. Upcycle: every feed-forward becomes one expert per language; nothing changes yet, and that is proved.
    model = session.upcycle(base.model, config.languages, config.expert_rank, config.shared_rank)
    if "proof" not in directory.results:
        proof = prove(base.model, model, base.tokenizer)
        size = f"{count_parameters(model) / 1e6:,.1f} M parameters{describe_layers(model.config)}"
        say(console, f"upcycled to {size}: {proof.describe()}")
        if not proof.holds:
            say(console, "warning: the mixture is not the dense model at the start, as it should be up to rounding")
        directory.note("proof", proof.to_json())

    # 5. Branch: all languages in one run, each token on the expert of its language.
    session.train(model, "branch", batches)

    # 6. Route: the router's start, in closed form from labelled hidden states.
    if not directory.has_state("mix"):
        # Batches that no stage trains on.
        labelled = [batches[trained + i].to(device) for i in range(config.ridge_batches + 1)]
        accuracy = ridge_routers(model, labelled, config.ridge)
        shares = " ".join(f"{share:.0%}" for share in accuracy)
        say(console, f"router from ridge regression: tokens sent to their language, layer by layer: {shares}")
        directory.note("ridge_accuracy", accuracy)

    # 7. Mix: learned top-k routing with balance loss and z-loss.
    session.train(model, "mix", batches)

    # 8. Score the mixture and write it.
    mixture = LoadedModel(model, model.config, base.tokenizer, base.template, directory.path / "model")
    session.score(mixture, "mixture")
    session.write(mixture, base)
    del model, mixture

    # 9. The baseline: one dense adapter with as many active parameters, trained on the same data for as many steps.
    if config.baseline:
        adapted = session.upcycle(base.model, (), 0, config.adapter_rank)
        session.train(adapted, "adapter", batches)
        dense = LoadedModel(adapted, adapted.config, base.tokenizer, base.template, directory.path / "adapter")
        session.score(dense, "dense adapter")
        session.write(dense, base)

    # 10. Report.
    session.metrics.close()
    report(directory, config, console, device)
    return 0


class Session:
    """What the steps share: settings, data, the run's directory, and where to print."""

    def __init__(self, config: RunConfig, directory: RunDirectory, data: DataSets, console: Console):
        self.config, self.directory, self.data, self.console = config, directory, data, console
        self.metrics = MetricsWriter(directory.path, config.languages)

    def load_base(self, dtype: torch.dtype, device: torch.device) -> LoadedModel:
        """Loads the dense model; the tiny one is trained first."""
        path = self.config.base
        if path == TINY:
            path = self.directory.path / "base"
            if not path.exists():
                self._train_tiny_base(path, device)
        base = load_model(path, dtype, device)
        if base.tokenizer is None:
            base = LoadedModel(base.model, base.config, load_tokenizer(path), base.template, base.path)
        template = self.config.template if self.config.template != "auto" else choose_template(base.tokenizer)
        base.model.requires_grad_(False)
        size = count_parameters(base.model) / 1e6
        say(self.console, f"base {base.path}: {size:,.1f} M parameters, prompts as {template}")
        return LoadedModel(base.model, base.config, base.tokenizer, template, base.path)

    def _train_tiny_base(self, path: Path, device: torch.device) -> None:
        tokenizer = train_tiny_tokenizer(self.data.train, self.directory.path / "tokenizer", self.config.seed)
        # Whether any pair fits is asked before minutes go into the base; encoding a few mostly answers it.
        few = {language: pairs[:20] for language, pairs in self.data.train.items()}
        try:
            encode_pairs(few, tokenizer, "plain", self.config.max_tokens)
        except UserError:
            encode_pairs(self.data.train, tokenizer, "plain", self.config.max_tokens)
        model = Transformer(tiny_config(tokenizer.vocab_size)).reset(self.config.seed).to(device)
        examples = encode_files(self.data.train, tokenizer, self.config.max_tokens)
        self.train(model, "pretrain", MixedBatches(examples, self.config.tokens_per_batch, self.config.seed + 1))
        save_model(model, tokenizer, path, template="plain")

    def upcycle(
        self, dense: Transformer, languages: tuple[str, ...], expert_rank: int, shared_rank: int
    ) -> Transformer:
        """A mixture (or, without languages, a dense adapter) that still computes what ``dense`` does."""
        model = upcycle_model(
            dense,
            languages,
            self.config.form if languages else "delta",
            min(self.config.experts_per_token, max(1, len(languages))),
            expert_rank,
            shared_rank,
            seed=self.config.seed,
            moe_layers=parse_layers(self.config.layers, dense.config.n_layers),
            delta_scale=self.config.delta_scale,
            balance_loss_weight=self.config.balance_loss_weight,
            z_loss_weight=self.config.z_loss_weight,
        )
        widen_trainable(model)
        return model

    def train(self, model: Transformer, name: str, batches: MixedBatches) -> None:
        """Runs a stage, from its saved state if there is one; keeps its last state."""
        stage = make_stage(name, self.config)
        trainer = Trainer(model, stage, batches, self.config.languages, self.config)
        state = self.directory.load_state(name)
        if state is not None:
            trainer.restore(state)
        self.metrics.resume(name, trainer.step)
        saved = time.monotonic()

        def on_step(step: StepReport) -> None:
            nonlocal saved
            display.update(step)
            self.metrics.write(step)
            late = time.monotonic() - saved > 60 * self.config.save_minutes
            if late or step.step == step.steps or interrupt.came:
                self.directory.save_state(trainer.state())
                saved = time.monotonic()
            if interrupt.came:
                raise KeyboardInterrupt

        with (
            StageDisplay(self.console, self.config.languages, name, stage.steps, trainer.step) as display,
            Interrupt("finishing and saving this step; Ctrl-C again stops at once") as interrupt,
        ):
            trainer.run(on_step)
        model.requires_grad_(False)

    def score(self, loaded: LoadedModel, name: str, chat: bool = False) -> None:
        """Measures a model on the held-out pairs, once."""
        self.directory.once(
            f"scores of {name}",
            lambda: evaluate(
                loaded.model,
                loaded.tokenizer,
                loaded.template,
                self.data.held_out,
                self.config,
                self.directory.path,
                name,
                lambda title: CountDisplay(self.console, title),
                chat,
            ),
        )
        for split, scores in self.directory.results[f"scores of {name}"]["scores"].items():
            left_out = [
                f"{score['left_out']} {language}" for language, score in scores.items() if score.get("left_out")
            ]
            if left_out:
                say(self.console, f"{split}: {', '.join(left_out)} pairs do not fit into the context and have no loss")

    def write(self, loaded: LoadedModel, base: LoadedModel) -> None:
        """Writes a trained model; deltas refer to their base on disk."""
        reference = base.path if loaded.config.is_delta else None
        if not loaded.path.exists():
            save_model(loaded.model, loaded.tokenizer, loaded.path, template=loaded.template, base=reference)
        merged = self.directory.path / "mixtral"
        if self.config.merge and loaded.config.is_moe and loaded.config.is_delta and not merged.exists():
            merge_directory(loaded.path, merged)


def read_settings(arguments: argparse.Namespace) -> tuple[RunDirectory | None, RunConfig, list[str]]:
    """The run to resume, if there is one; the settings, that run's or a preset's with the changes given; warnings."""
    given = given_settings(arguments)
    for text in arguments.set:
        name, separator, value = text.partition("=")
        if not separator:
            arguments.parser.error(f"--set {text}: expected NAME=VALUE")
        given[name] = parse_setting(name, value)
    for flag in ("config", "name", "runs", "resume"):
        if getattr(arguments, flag) == "":
            arguments.parser.error(f"--{flag} is empty")
    if arguments.resume:
        if given or arguments.config or arguments.preset or arguments.name:
            arguments.parser.error("--resume goes on with the run's own settings and name; leave the others out")
        directory = RunDirectory.resume(Path(arguments.resume))
        return directory, RunConfig.from_dict(directory.settings.get("config"), str(directory.path / RUN_FILE)), []
    changes = load_settings(arguments.config) if arguments.config else {}
    config = make_config(load_preset(arguments.preset or TINY), changes, given).with_absolute_paths()
    warnings = config.without_effect([*changes, *given])
    if config.router_has_no_gradient:
        warnings.append(
            "with one expert per token and frozen experts the mix stage's router learns to balance alone; "
            "set --experts-per-token 2 or --mix-trains-experts"
        )
    return None, config, warnings


def run_path(arguments: argparse.Namespace) -> Path:
    """Where a new run goes."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = arguments.name or f"{Path(arguments.config or arguments.preset or TINY).stem}-{stamp}"
    return Path(arguments.runs) / name


def create_run(arguments: argparse.Namespace, config: RunConfig, plan: MemoryPlan) -> RunDirectory:
    """Starts a run's directory, if the disk has room for it."""
    path = run_path(arguments)
    require_disk(config, plan, path)
    settings = {
        "config": config.to_dict(),
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }
    return RunDirectory.create(path, settings)


def dry_run(
    config: RunConfig, data: DataSets, plan: MemoryPlan, device: torch.device, path: Path, console: Console
) -> int:
    """Prints what a run at ``path`` would take: data, parameters, memory, disk."""
    RunDirectory.check_new(path)
    for language, pairs in data.train.items():
        held_out = ", ".join(f"{len(split[language])} {name}" for name, split in data.held_out.items())
        say(console, f"{language}: {len(pairs)} training pairs, {held_out}")
    say(console, f"{plan.describe()}; {available_memory(device) / GIB:.1f} GiB free")
    disk = free_bytes(path)
    say(console, f"at most {disk_needed(config, plan) / GIB:.1f} GiB on disk; {disk / GIB:.0f} GiB free")
    return 0


def say(console: Console, text: str) -> None:
    """Prints a line as it is: no markup, no colours, no breaks."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def report(directory: RunDirectory, config: RunConfig, console: Console, device: torch.device) -> None:
    """Prints the tables and writes ``report.md``."""
    scored = {name: directory.results.get(f"scores of {name}") for name in MODELS}
    results: dict[str, dict[str, Any]] = {
        split: {name: found["scores"][split] for name, found in scored.items() if found} for split in config.test_sets
    }
    found = scored["mixture"]["specialization"]
    for split in config.test_sets:
        console.print(loss_table(results, split, config.languages))
    title = "Routing of held-out response tokens: gate weight of each expert"
    console.print(routing_table(found["table"], config.languages, title))
    bits = " ".join(f"{x:.2f}" for x in found["information"])
    chance = max(found["shuffled"])
    say(console, f"I(language; first-choice expert) per layer, bits: {bits} (shuffled labels: at most {chance:.3f})")
    for split in config.test_sets:
        console.print(score_table(results, split, config.languages))
    summary = {
        "name": directory.path.name,
        "command": directory.settings["command"],
        "date": directory.settings["date"],
        "hardware": describe_hardware(device),
        "languages": list(config.languages),
        "results": results,
        "specialization": found,
    }
    (directory.path / "report.md").write_text(markdown_report(summary), encoding="utf-8")
    say(console, f"report: {directory.path / 'report.md'}")
    example = "Return the sum of all even numbers in a list."
    model = shlex.quote(str(directory.path / "model"))
    command = f'python generate.py "{example}" --language {config.languages[0]} --model {model}'
    say(console, f"write code with it: {command}")


def make_parser() -> ArgumentParser:
    """The command line: one flag for each setting, besides where the run comes from and goes."""
    parser = ArgumentParser(prog="train.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", choices=preset_names(), help=f"settings to start from (default: {TINY})")
    parser.add_argument("--config", metavar="FILE", help="a TOML file of settings that change the preset's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting; repeatable")
    parser.add_argument("--name", help="name of the run's directory (default: the preset and the time)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs are kept")
    parser.add_argument("--resume", metavar="DIR", help="go on with a run that was interrupted")
    parser.add_argument("--dry-run", action="store_true", help="check settings and data, print what a run would take")
    add_setting_flags(parser)
    parser.set_defaults(parser=parser)
    return parser


if __name__ == "__main__":
    sys.exit(run(make_parser(), main))
