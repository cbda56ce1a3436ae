"""The models of a run: its dense base, what is made of it, and where they are written."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from checkpoints.formats import open_checkpoint
from checkpoints.formats.config_json import ROUTER_KEYS
from checkpoints.formats.extras import checkpoint_tokenizer, find_template
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.model_io import LoadedModel, load_model, save_model
from checkpoints.runs.preflight import given_template, require_tokenizer
from checkpoints.runs.staged_run import StagedRun
from checkpoints.transforms.rewrite import merge_directory
from checkpoints.transforms.upcycle import continued_model, upcycle_model
from moe.config import parse_layers
from moe.data.packing import MixedBatches, encode_pairs
from moe.data.pairs import Pair
from moe.errors import UserError
from moe.experts import widen_trainable
from moe.model import Transformer
from moe.training import distributed
from moe.training.config import TINY, RunConfig
from moe.training.tiny_base import encode_files, tiny_config, train_tiny_tokenizer

Pairs = Mapping[str, Sequence[Pair]]


def load_base(
    run: StagedRun, train_pairs: Pairs, dtype: torch.dtype, device: torch.device, check: bool = True
) -> LoadedModel:
    """Loads the dense model, frozen; it has a tokenizer.

    The tiny base is trained first, unless the run's directory has it already. ``check`` is that of :func:`load_model`.
    """
    path: str | Path = run.config.base
    if path == TINY:
        path = run.directory.path / "base"
        if not path.exists():
            _train_tiny_base(run, train_pairs, path, device)
    base = load_model(path, dtype, device, template=given_template(run.config), check=check)
    require_tokenizer(base.tokenizer, base.path)
    base.model.requires_grad_(False)
    return base


def _train_tiny_base(run: StagedRun, train_pairs: Pairs, path: Path, device: torch.device) -> None:
    config = run.config
    with tempfile.TemporaryDirectory() as other:  # each rank trains the same one
        folder = run.directory.path / "tokenizer" if distributed.is_main() else Path(other)
        tokenizer = train_tiny_tokenizer(train_pairs, folder, config.seed)
    encode_pairs(train_pairs, tokenizer, "plain", config.max_tokens)  # refuses pairs that do not fit, before training
    model = Transformer(tiny_config(tokenizer.vocab_size)).reset(config.seed).to(device)
    examples = encode_files(train_pairs, tokenizer, config.max_tokens)
    run.train(model, "pretrain", MixedBatches(examples, config.tokens_per_batch, config.seed + 1))
    if distributed.is_main():
        save_model(model, tokenizer, path, template="plain")
    distributed.wait_for_all()


def steps_of_epochs(config: RunConfig, train_pairs: Pairs, epochs: float) -> int:
    """Steps of the mix stage with which branch and mix together pass ``epochs`` times over the training data.

    Encodes the data to count its tokens; reads the base's tokenizer, not its weights.

    Raises:
        UserError: the branch stage alone takes as many steps.
    """
    template = given_template(config)
    if config.base == TINY:
        template = template or "plain"
        with tempfile.TemporaryDirectory() as directory:
            tokenizer = train_tiny_tokenizer(train_pairs, Path(directory), config.seed)
    else:
        checkpoint = open_checkpoint(resolve_model_path(config.base))
        tokenizer = require_tokenizer(checkpoint_tokenizer(checkpoint), checkpoint.path)
        places = [(checkpoint.directory, checkpoint.settings)]
        template = template or find_template(checkpoint.path, places, tokenizer)
    encoded = encode_pairs(train_pairs, tokenizer, template, config.max_tokens, config.unnamed_share, config.seed)
    one_epoch = MixedBatches(encoded.examples, config.tokens_per_batch, config.seed).epoch_batches / config.accumulate
    steps = round(epochs * one_epoch) - config.branch_steps
    if steps < 1:
        raise UserError(
            f"{epochs:g} epochs are {epochs * one_epoch:.0f} steps, and the branch stage takes {config.branch_steps} "
            f"(one epoch is {one_epoch:.0f} steps); give more --epochs or fewer --branch-steps"
        )
    return steps


def make_mixture(dense: Transformer, config: RunConfig) -> Transformer:
    """One expert per language; computes what ``dense`` does, with which it shares the memory of frozen weights.

    A base that is a mixture already keeps its experts and routers.
    """
    if dense.config.is_moe:
        weights = {name: getattr(config, name) for name in ("balance_loss_weight", "z_loss_weight")}
        return continued_model(dense, config.languages, **weights)
    return _upcycle(
        dense, config, config.languages, config.expert_form, config.num_experts_per_tok, config.expert_rank,
        config.shared_rank,
    )  # fmt: skip


def make_adapter(dense: Transformer, config: RunConfig) -> Transformer:
    """The baseline: one low-rank adapter with as many active parameters as the mixture's deltas.

    Beside full experts it is a copy of the dense model, whose feed-forwards are trained whole.
    """
    if config.expert_form == "full":
        return copy.deepcopy(dense)
    return _upcycle(dense, config, (), "delta", 1, 0, config.adapter_rank)


def _upcycle(
    dense: Transformer, config: RunConfig, languages: Sequence[str], form: str, top_k: int, rank: int, shared_rank: int
) -> Transformer:
    router = {name: getattr(config, name) for name in ROUTER_KEYS if languages}
    model = upcycle_model(
        dense,
        languages,
        form,
        top_k,
        rank,
        shared_rank,
        seed=config.seed,
        moe_layers=parse_layers(config.moe_layers, dense.config.n_layers),
        delta_scale=config.delta_scale,
        balance_loss_weight=config.balance_loss_weight,
        z_loss_weight=config.z_loss_weight,
        **router,
    )
    widen_trainable(model)
    return model


def write_model(loaded: LoadedModel, base: LoadedModel, config: RunConfig) -> None:
    """Writes a trained model to its path, unless it is there; deltas refer to their base on disk.

    With ``config.merge``, a mixture of deltas is also written as full experts, to ``mixtral/`` beside it.
    """
    if not distributed.is_main():
        return
    base_id = None if config.base_id == "auto" else config.base_id
    if not loaded.path.exists():
        reference = base.path if loaded.config.is_delta else None
        save_model(
            loaded.model, loaded.tokenizer, loaded.path, template=loaded.template, base=reference, base_id=base_id
        )
    merged = loaded.path.with_name("mixtral")
    if config.merge and loaded.config.is_moe and loaded.config.is_delta and not merged.exists():
        merge_directory(loaded.path, merged, base_id)
