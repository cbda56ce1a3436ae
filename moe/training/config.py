"""All settings of a run, their presets (TOML) and how they are overridden.

A setting has its help, unit and default in one place, from which command lines and TOML files are made.
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moe.config import ALL_LAYERS, checked_projections
from moe.data.sources import AUTO, SYNTHETIC
from moe.errors import UserError, did_you_mean
from moe.languages import DEFAULT_LANGUAGES
from moe.training import distributed
from moe.training.checks import INT4 as INT4
from moe.training.checks import require_sound
from moe.training.values import REMOVED, RENAMED, WITHOUT, coerce

TINY, SMOLLM2 = "tiny", "smollm2"  # names of a base that are no paths
PRESETS = Path(__file__).resolve().parent / "presets"
# Settings that a run may go on with changed: those to change when it diverges, and those that change no result.
RATES = ("pretrain_lr", "branch_lr", "mix_lr", "policy_lr")
ADJUSTABLE = (*RATES, "spike_factor", "max_skipped_steps", "save_minutes", "shard", "expert_parallel")
POLICY = ("policy_steps", "policy_lr", "kl_weight", "tasks_per_step")  # of learning from answers
PAIRED = (  # of learning from pairs alone
    *("branch_steps", "branch_lr", "mix_steps", "mix_lr", "mix_trains_experts", "weight_decay", "accumulate"),
    *("balance_loss_weight", "z_loss_weight", "language_loss_weight", "router_documents", "unnamed_share"),
    *("validation_steps", "validation_pairs", "patience", "keep_best"),
)
SAMPLED = ("group_size", "updates_per_group", "clip_range", "temperature", "test_share_weight")  # of GRPO alone


def setting(default: Any, help: str, **options: Any) -> Any:
    """A dataclass field with its help text; ``group`` opens a group of settings, ``flag=False`` has none of its own."""
    return field(default=default, metadata={"help": help, **options})


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides what a training run does."""

    base: str = setting(
        "tiny",
        "the dense (or Mixtral) model: 'tiny' (trained here), 'smollm2', a directory, a GGUF file or ORG/NAME on a hub",
        group="base",
    )
    base_id: str = setting(
        "auto", "the base's name on a model hub, ORG/NAME, for model cards; auto: from its config.json or path"
    )
    template: str = setting(
        "auto", "prompt template: auto, own (the base's chat template), plain, chatml or mistral-instruct"
    )
    chat_base: bool = setting(
        False, "the base is a chat model: score it with its own chat prompt, asking for code only"
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = setting("auto", "of frozen weights: auto (bfloat16 where it is native), float32 or bfloat16")
    base_dtype: str = setting(
        "auto", "feed-forwards of the frozen base: int4, in groups of 128, or auto (int4 where the base has it)"
    )
    seed: int = setting(0, "seed of weights, data order and sampling")

    data: str = setting(
        "synthetic",
        "'synthetic' or a folder with train/, validation/ and test/ of LANGUAGE.jsonl[.gz] or the like",
        group="data",
    )
    fields: tuple[str, ...] = setting(
        (), "what is what in foreign data, else recognized: text=FIELD code=FIELD language=FIELD id=FIELD"
    )
    allow_leaks: bool = setting(False, "go on when test pairs are in train, word for word")
    languages: tuple[str, ...] = setting(DEFAULT_LANGUAGES, "one expert for each of these languages")
    new_language: str = setting("", "the one of them that the base, a finished mixture, gains", flag=False)
    train_pairs: int = setting(0, "training pairs per language, 0 for all there are")
    max_tokens: int = setting(1024, "longest example, in tokens; longer ones are left out and counted")
    tokens_per_batch: int = setting(4096, "tokens of one packed batch")

    expert_form: str = setting(
        "delta", "experts as low-rank deltas on a shared base (delta) or as full copies (full)", group="experts"
    )
    moe_layers: str = setting(
        ALL_LAYERS,
        "layers that get experts (in the baseline the adapter), such as 16-31 or 0-3,8,12-; the others stay dense",
    )
    num_experts_per_tok: int = setting(2, "experts that each token visits in the mix stage and afterwards")
    shared_rank: int = setting(48, "rank of the delta that all languages share")
    expert_rank: int = setting(16, "rank of each language's own delta")
    delta_scale: float = setting(2.0, "factor on all low-rank deltas")
    attention_experts: tuple[str, ...] = setting(
        (), "projections of the attention, of q k v o, that get deltas, too; routers then read its input"
    )

    pretrain_steps: int = setting(0, "steps that train the tiny base from scratch", group="stages")
    branch_steps: int = setting(50, "steps of the branch stage: each language on its own expert")
    mix_steps: int = setting(1050, "steps of the mix stage: learned routing, what the model is used with")
    mix_trains_experts: bool = setting(
        True, "train the experts in the mix stage too (at branch_lr), not the router alone"
    )
    baseline: bool = setting(
        True,
        "also train and score a dense adapter with equal active parameters and steps; beside full experts the "
        "dense feed-forwards, trained whole",
    )

    preferences: str = setting(
        "", "DPO of a finished run on this JSON Lines file of prompt, chosen, rejected and language", group="answers"
    )
    learn_from_tests: bool = setting(False, "GRPO of a finished run: its own answers, judged by the tests of its data")
    policy_steps: int = setting(40, "steps of either, in which the experts learn")
    policy_lr: float = setting(2e-5, "peak learning rate of either")
    kl_weight: float = setting(0.1, "how strongly the model is held at its start: beta of DPO, KL weight of GRPO")
    tasks_per_step: int = setting(8, "preferences, or tasks to answer, per language and step")
    group_size: int = setting(8, "answers sampled for each task")
    updates_per_group: int = setting(2, "steps that learn from the same answers")
    clip_range: float = setting(0.2, "no gain from a token's probability beyond 1 ± this times that when sampled")
    temperature: float = setting(1.0, "temperature of the sampled answers")
    test_share_weight: float = setting(
        0.5, "part of the reward that is the share of tests passed; the rest is for passing all"
    )

    pretrain_lr: float = setting(3e-3, "peak learning rate of the tiny base", group="optimization")
    branch_lr: float = setting(1e-4, "peak learning rate of deltas (and of full experts)")
    mix_lr: float = setting(1e-3, "peak learning rate of the router")
    warmup_ratio: float = setting(0.03, "share of a stage's steps in which the learning rate rises")
    min_lr_ratio: float = setting(0.1, "learning rate at a stage's end, as a share of its peak")
    weight_decay: float = setting(0.1, "AdamW weight decay of matrices; the router has none")
    optimizer_bits: int = setting(32, "of AdamW's averages: 32, or 8 for those of matrices (bitsandbytes)")
    max_grad_norm: float = setting(1.0, "largest norm of a step's gradient, 0 for no clipping")
    spike_factor: float = setting(
        3.0, "skip a step whose loss is over this factor times the mean of the last ten (and 1 nat above it); 0: never"
    )
    max_skipped_steps: int = setting(10, "steps in a row that may be skipped before the run stops")
    accumulate: int = setting(1, "batches per optimizer step")
    activation_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: a third slower, far less memory"
    )

    validation_steps: int = setting(
        0, "steps of mix and adapter between measurements of the loss on validation/, 0 for none", group="validation"
    )
    validation_pairs: int = setting(50, "pairs per language for it")
    patience: int = setting(0, "stop a stage after so many measurements without a lower loss, 0 for never")
    keep_best: bool = setting(True, "use the weights of the step with the lowest loss on validation/")
    sample_steps: int = setting(
        0, "steps between sample answers to one held-out prompt per language (samples.jsonl), 0 for none"
    )

    balance_loss_weight: float = setting(0.01, "weight of the load-balancing loss", group="router")
    z_loss_weight: float = setting(0.001, "weight of the router z-loss")
    language_loss_weight: float = setting(0.0, "weight of the cross-entropy between router logits and the language")
    router_context: str = setting(
        "none",
        "what a token's routing sees: itself (none), the mean of its document so far (mean), a fading mean (ema), "
        "or a Bayes filter over it (filter)",
    )
    router_half_life: float = setting(64.0, "tokens in which ema and filter forget half")
    router_layers: str = setting("each", "which layers decide: each sparse layer, or the first for all")
    router_documents: int = setting(1000, "documents that the router's start is fitted on")
    unnamed_share: float = setting(0.0, "share of training prompts that do not name the language")

    test_sets: tuple[str, ...] = setting(
        (AUTO,), "splits that are scored at the end; auto: test and every other test* split there is", group="scoring"
    )
    eval_pairs: int = setting(100, "held-out pairs per language and split that answers are generated for")
    test_pairs: int = setting(0, "answers per language and split whose tests are run, 0 for all that have tests")
    loss_pairs: int = setting(0, "held-out pairs per language and split for the loss, 0 for all")
    max_new_tokens: int = setting(256, "longest answer, in tokens")
    eval_batch_size: int = setting(32, "answers generated at once")

    merge: bool = setting(
        False, "also write the result as full experts (mixtral/), which transformers loads", group="output"
    )
    shard: bool = setting(
        False,
        "with several processes (torchrun), split the frozen weights and full experts among their cards (FSDP2)",
    )
    expert_parallel: bool = setting(
        False, "shard, and keep each full expert on a card of its own, to which its tokens travel (all-to-all)"
    )
    save_minutes: float = setting(5.0, "minutes between saved states, from which an interrupted run resumes")

    def __post_init__(self) -> None:
        for name in ("languages", "test_sets", "fields"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        projections = ",".join(self.attention_experts).replace(",", " ").split()  # also of a flag's "q,k"
        object.__setattr__(self, "attention_experts", checked_projections(projections))
        require_sound(self)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON-able values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def with_absolute_paths(self) -> RunConfig:
        """The same settings with files named so that a run can be resumed from any working directory."""
        found: dict[str, Any] = {
            name: str(Path(getattr(self, name)).absolute())
            for name in ("base", "data", "preferences")
            if self._is_path(name)
        }
        return replace(self, **found)

    def _is_path(self, name: str) -> bool:
        value = getattr(self, name)
        return bool(value) and value not in (TINY, SMOLLM2, SYNTHETIC) and Path(value).exists()

    @classmethod
    def from_dict(cls, values: Any, source: str, trained: bool = False) -> RunConfig:
        """Inverse of :meth:`to_dict`; raises :class:`UserError` naming ``source`` for anything else.

        Settings that are gone are dropped where they changed nothing, or where the mixture is ``trained`` already.
        """
        if not isinstance(values, dict):
            raise UserError(f"{source} has no settings under 'config'; start the run anew")
        old = [f"{name!r} to {RENAMED[name]!r}" for name in values if name in RENAMED]
        if old:
            raise UserError(f"{source} is of an older version; to resume the run rename in that file {', '.join(old)}")
        gone = [name for name in values if name in REMOVED]
        if used := [f"{name} = {values[name]!r}" for name in gone if not trained and values[name] != WITHOUT.get(name)]:
            raise UserError(
                f"{source} is of an older version with another recipe ({used[0]}, a setting that is gone); "
                "start a new run"
            )
        return cls(**check_settings({name: x for name, x in values.items() if name not in gone}, source))

    def without_effect(self, given: Collection[str]) -> list[str]:
        """One line for each setting of ``given`` that changes nothing beside the others."""
        full, tiny = self.expert_form == "full", self.base == TINY
        no_validation = not self.validation_steps and "without validation_steps nothing is measured on validation/"
        alone = distributed.world() == 1 and "this is one process; torchrun starts several"
        reasons = {
            "shard": alone,
            "expert_parallel": alone,
            "merge": full and "full experts are written as a Mixtral directory anyway",
            "expert_rank": full and "full experts have no rank",
            "shared_rank": full and "full experts have no deltas",
            "delta_scale": full and "full experts have no deltas",
            "router_half_life": self.router_context not in ("ema", "filter")
            and "only router_context ema and filter forget",
            "patience": no_validation,
            "keep_best": no_validation,
            "validation_pairs": no_validation,
            "pretrain_steps": not tiny and "only the tiny base is trained from scratch",
            "pretrain_lr": not tiny and "only the tiny base is trained from scratch",
        }
        if self.policy:
            reasons |= dict.fromkeys(PAIRED, "the run learns from answers: policy_steps, policy_lr, tasks_per_step")
        reasons |= dict.fromkeys(POLICY, not self.policy and "only preferences and learn_from_tests train on answers")
        reasons |= dict.fromkeys(SAMPLED, not self.learn_from_tests and "only learn_from_tests samples answers")
        return [f"{name} has no effect: {reasons[name]}" for name in given if reasons.get(name)]

    @property
    def policy(self) -> str:
        """The stage that trains a finished mixture on answers, ``preferences`` or ``tests``; "" for none."""
        return "preferences" if self.preferences else "tests" if self.learn_from_tests else ""

    @property
    def stage_steps(self) -> dict[str, int]:
        """The stages that make the mixture, with their steps."""
        return {self.policy: self.policy_steps} if self.policy else {"branch": self.branch_steps, "mix": self.mix_steps}

    @property
    def router_has_no_gradient(self) -> bool:
        """With one expert a token its gate is always 1, so that only the auxiliary losses reach the router."""
        return self.num_experts_per_tok == 1 and self.mix_steps > 0 and not self.mix_trains_experts

    @property
    def adapter_rank(self) -> int:
        """Rank of the dense baseline's adapter: as many active parameters as a token meets in the mixture's deltas."""
        return self.shared_rank + self.num_experts_per_tok * self.expert_rank


def unknown_setting(name: str) -> str:
    """What is wrong with a name that is no setting: what it is called now, or which setting is like it."""
    if name in RENAMED:
        return f"the setting {name!r} is now called {RENAMED[name]!r}"
    if name in REMOVED:
        return f"the setting {name!r} is gone: {REMOVED[name]}"
    return f"unknown setting {name!r}{did_you_mean(name, setting_types())}"


def preset_names() -> list[str]:
    """Names of the presets that come with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def setting_types() -> dict[str, Any]:
    """Type of each setting by name."""
    return typing.get_type_hints(RunConfig)


def parse_setting(name: str, text: str) -> Any:
    """Turns the text of ``name=text`` into the setting's type; raises :class:`UserError` when it does not fit."""
    kinds = setting_types()
    if name not in kinds:
        raise UserError(unknown_setting(name))
    return coerce(name, kinds[name], text)


def load_preset(name: str) -> dict[str, Any]:
    """Settings of a preset that comes with the project; raises :class:`UserError` for an unknown name."""
    if name not in preset_names():
        names = preset_names()
        raise UserError(f"unknown preset {name!r}{did_you_mean(name, names)}; presets: {', '.join(names)}")
    return load_settings(PRESETS / f"{name}.toml")


def load_settings(path: str | Path) -> dict[str, Any]:
    """Settings of a TOML file; raises :class:`UserError` naming what is wrong in it."""
    path = Path(path)
    if not path.is_file():
        state = "is not a file" if path.exists() else "no such file"
        raise UserError(f"{path}: {state}; expected a TOML file of settings")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from None
    return check_settings(values, str(path))


def check_settings(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The settings in their types; raises :class:`UserError` naming ``source`` for an unknown or wrong one."""
    kinds = setting_types()
    for name in values:
        if name not in kinds:
            raise UserError(f"{source}: {unknown_setting(name)}")
    return {name: coerce(name, kinds[name], value) for name, value in values.items()}


def make_config(preset: Mapping[str, Any], *overrides: Mapping[str, Any]) -> RunConfig:
    """A preset's settings, changed by each of ``overrides`` in turn."""
    values = dict(preset)
    for changes in overrides:
        values.update(changes)
    return RunConfig(**values)
