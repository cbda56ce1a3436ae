"""Turns a dense model into a mixture of experts that computes the same function (Komatsuzaki et al., 2023).

In memory (:func:`upcycle_model`) for training, and from disk to disk (:func:`upcycle_directory`) in bounded memory for
models too large for it. Both give the same bits. Full experts are copies of the dense feed-forward; delta experts share
it and add low-rank changes that start at zero.
"""

# E experts, D model dim, F hidden dim

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.formats import Checkpoint
from checkpoints.formats.config_json import written_type
from checkpoints.formats.delta import base_reference
from checkpoints.formats.dense_layers import huggingface_tensors
from checkpoints.formats.names import expected_tensors
from checkpoints.formats.parameters import (
    base_rename,
    main_dtype,
    meta_model,
    packed_weights,
    require_complete,
    set_packed,
    set_parameter,
)
from checkpoints.model_card import NOT_TRAINED, training_of
from checkpoints.model_io import copy_base, write_delta_files
from checkpoints.storage.files import new_directory
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.storage.writer import SMALL_FILES_BYTES, in_dtype, renamed
from checkpoints.transforms.initialize import DEFAULT_START, Initialization, new_tensors
from checkpoints.transforms.rewrite import DEFAULT_OUTPUT, OutputOptions, Rewrite, source_files, write_rewritten
from moe.config import ModelConfig
from moe.errors import UserError
from moe.languages import get_language
from moe.model import Transformer


def upcycled_config(
    config: ModelConfig,
    languages: Sequence[str],
    expert_form: str = "delta",
    num_experts_per_tok: int = 2,
    expert_rank: int = 16,
    shared_rank: int = 0,
    **settings: Any,
) -> ModelConfig:
    """The config of the mixture made from a dense model: one expert per language, in this order.

    Args:
        expert_rank, shared_rank: of the delta form; ignored for full experts.
        settings: further fields of :class:`ModelConfig`, such as ``moe_layers`` or ``delta_scale``.

    Raises:
        UserError: the model is not dense, a language is unknown or named twice, or sizes do not fit.
    """
    if config.is_moe or config.is_delta:
        raise UserError("the base is a mixture already; give a dense model to upcycle")
    for language in languages:
        get_language(language)
    if len(set(languages)) != len(languages):
        raise UserError(f"languages {' '.join(languages)} name one twice; give each language once")
    if expert_form == "full" and not languages:
        raise UserError("full experts need at least one language; give --languages python java ...")
    if languages and num_experts_per_tok > len(languages):
        raise UserError(
            f"{num_experts_per_tok} experts per token, of {len(languages)}; name more languages, or add "
            f"--num-experts-per-tok {len(languages)}"
        )
    if expert_form == "delta" and max(expert_rank, shared_rank) > config.dim:
        raise UserError(
            f"rank {max(expert_rank, shared_rank)} is more than the model's width of {config.dim}; a low-rank "
            "delta has a small one, for example 16"
        )
    if expert_form == "delta":
        settings |= {"expert_rank": expert_rank if languages else 0, "shared_rank": shared_rank}
    mixture = replace(
        config,
        num_experts=len(languages),
        num_experts_per_tok=num_experts_per_tok,
        expert_form=expert_form,
        expert_languages=tuple(languages),
        **settings,
    )
    if not mixture.is_delta:
        written_type(mixture)  # refuses now what could not be written after the training
    return mixture


def upcycle_model(
    dense: Transformer,
    languages: Sequence[str],
    expert_form: str = "delta",
    num_experts_per_tok: int = 2,
    expert_rank: int = 16,
    shared_rank: int = 0,
    seed: int = 0,
    own_experts: bool = True,
    **settings: Any,
) -> Transformer:
    """Makes a mixture in memory that computes what ``dense`` computes.

    ``settings`` are those of :func:`upcycled_config`. Weights outside of full experts share the memory of ``dense``
    (as parameters of their own), so train only one of the two models; with ``own_experts`` false full experts are views
    of the dense weights, for the caller to copy. Without languages the delta form gives a dense model with one low-rank
    adapter.

    Raises:
        UserError: see :func:`upcycled_config`.
    """
    config = upcycled_config(
        dense.config, languages, expert_form, num_experts_per_tok, expert_rank, shared_rank, **settings
    )
    model = meta_model(config)
    rename = base_rename(config)
    for name, parameter in dense.named_parameters():
        value = parameter.detach()
        dense_layer = ".feed_forward." not in name or int(name.split(".")[1]) not in config.sparse_layers
        if config.is_delta or dense_layer:
            set_parameter(model, rename.get(name, name) if config.is_delta else name, value)
            continue
        owner, weight, _ = name.rsplit(".", 2)
        stack = value.expand(config.num_experts, *value.shape)  # [E, F, D] or [E, D, F]
        set_parameter(model, f"{owner}.experts.{weight}", stack.clone() if own_experts else stack)
    for name, packed in packed_weights(dense).items():
        if not config.is_delta:
            raise UserError("full experts are trained whole, which int4 weights cannot be; take delta experts")
        set_packed(model, rename.get(name, name), packed)
    for layer in range(config.n_layers):
        for tensor in new_tensors(config, layer, Initialization(seed), dense.dtype):
            set_parameter(model, tensor.name, tensor.read().to(dense.device))
    require_complete(model)
    return model


def continued_config(config: ModelConfig, languages: Sequence[str], **settings: Any) -> ModelConfig:
    """The config of a mixture with full experts that is trained further: one language for each of its experts.

    Args:
        settings: further fields of :class:`ModelConfig` that training may change, such as ``balance_loss_weight``.

    Raises:
        UserError: experts of another number or of other languages.
    """
    if len(languages) != config.num_experts:
        raise UserError(
            f"the base is a mixture of {config.num_experts} experts, and {len(languages)} languages are named; name "
            "one for each expert, or make one dense model of it: python -m checkpoints collapse BASE OUT"
        )
    if config.expert_languages not in ((), tuple(languages)):
        raise UserError(
            f"the base has experts for {' '.join(config.expert_languages)}; name these languages, in this order"
        )
    return replace(config, expert_languages=tuple(languages), **settings)


def continued_model(mixture: Transformer, languages: Sequence[str], **settings: Any) -> Transformer:
    """A copy of a mixture with full experts, to be trained further.

    Its experts and routers have memory of their own, all else shares the memory of ``mixture``. Raises as
    :func:`continued_config` does.
    """
    model = meta_model(continued_config(mixture.config, languages, **settings))
    for name, parameter in mixture.named_parameters():
        learns = ".experts." in name or ".gate." in name
        set_parameter(model, name, parameter.detach().clone() if learns else parameter.detach())
    require_complete(model)
    return model


def upcycled_tensors(
    base: Checkpoint, config: ModelConfig, start: Initialization, dtype: torch.dtype | None
) -> Iterator[StoredTensor]:
    """Yields the tensors to write, layer by layer: all of a Mixtral model, or those that deltas add to the base.

    Full experts point at the bytes of the dense weights, which are copied for each of them.
    """
    if not config.is_delta:
        return huggingface_tensors(config, _flat_upcycled(base, config, start, dtype))
    main = dtype or main_dtype(base.tensors)
    added = (tensor for layer in range(config.n_layers) for tensor in new_tensors(config, layer, start, main))
    return (in_dtype(tensor, dtype) for tensor in added)


def _flat_upcycled(
    base: Checkpoint, config: ModelConfig, start: Initialization, dtype: torch.dtype | None
) -> Iterator[StoredTensor]:
    """The tensors of a Mixtral model under flat names."""
    main = dtype or main_dtype(base.tensors)
    layer_names: dict[int, list[str]] = {layer: [] for layer in range(config.n_layers)}
    for name in base.tensors:
        if name.startswith("layers."):
            layer_names[int(name.split(".")[1])].append(name)

    def put(name: str, tensor: StoredTensor) -> StoredTensor:
        return renamed(in_dtype(tensor, dtype), name)

    yield put("tok_embeddings.weight", base.tensors["tok_embeddings.weight"])
    for layer, names in layer_names.items():
        for name in sorted(names):
            if ".feed_forward." not in name or layer not in config.sparse_layers:
                yield put(name, base.tensors[name])
        for tensor in new_tensors(config, layer, start, main):
            yield put(tensor.name, tensor)
        for expert in range(config.num_experts if layer in config.sparse_layers else 0):
            for weight in ("w1", "w2", "w3"):
                dense = base.tensors[f"layers.{layer}.feed_forward.{weight}.weight"]
                yield put(f"layers.{layer}.feed_forward.experts.{expert}.{weight}.weight", dense)
    yield put("norm.weight", base.tensors["norm.weight"])
    if "output.weight" in base.tensors:
        yield put("output.weight", base.tensors["output.weight"])


def upcycle_directory(
    base: Checkpoint,
    target: Path,
    config: ModelConfig,
    start: Initialization = DEFAULT_START,
    *,
    dtype: torch.dtype | None = None,
    template: str | None = None,
    base_id: str | None = None,
    with_base: bool = False,
    trained: str = "",
    options: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Upcycles a dense model from disk to disk, one tensor in memory at a time.

    Args:
        config: from :func:`upcycled_config`.
        start: first values of routers and deltas.
        dtype: of the tensors written; None copies them as they are.
        template, base_id: see :class:`Rewrite`.
        with_base: for the delta form, copy the base's files into the new directory.
        trained: what trained the deltas of ``start``, for the card.

    Raises:
        UserError: the target exists, the disk is too small, or the base is damaged.
    """
    action = f"Upcycled: each of {config.num_experts} experts is a copy of the dense feed-forward"
    before = training_of(base.path)
    recipe = {"router": start.describe(), "seed": str(start.seed), "training": before or NOT_TRAINED}
    if start.deltas is not None:
        action = "Put together from experts that were trained apart, as LoRA adapters or in other mixtures"
        earlier = f"{before}; then " if before not in ("", NOT_TRAINED) else ""
        recipe["training"] = trained or f"{earlier}the adapters' own"
    elif config.is_delta:
        action = "Upcycled: the experts are low-rank changes, which are zero at first"
    if config.is_delta:
        recipe |= {"rank of each expert, shared": f"{config.expert_rank}, {config.shared_rank}"}
    rewrite = Rewrite(
        base,
        config,
        list(upcycled_tensors(base, config, start, dtype)),
        action=action,
        job=["upcycle", *start.identity()],
        recipe=recipe,
        dtype=dtype,
        template=template,
        base_id=base_id,
    )
    if config.is_delta:
        write_delta(rewrite, base, target, with_base, options)
    else:
        write_rewritten(rewrite, target, options)


def write_delta(rewrite: Rewrite, base: Checkpoint, target: Path, with_base: bool, options: OutputOptions) -> None:
    """Writes a delta directory, which refers to its base or contains a copy of it.

    Raises:
        UserError: the target exists, or the disk is too small.
    """
    documents, files, ids = rewrite.small_parts()
    copied = sum(path.stat().st_size for path in base.weight_files) if with_base else 0
    needed = rewrite.nbytes + copied + SMALL_FILES_BYTES
    with new_directory(target, options.force, needed, options.disk_free, source_files(rewrite.source)) as temporary:
        if with_base:
            reference = copy_base(base, temporary / "base").to_json(temporary)
            reference["path"] = str((target / "base").absolute())
        else:
            reference = base_reference(base).to_json(target)
        write_delta_files(temporary, list(rewrite.tensors), rewrite.config, reference, documents, files, ids)


def parameter_counts(config: ModelConfig) -> tuple[int, int]:
    """Number of parameters, and of those that one token uses; computed from shapes alone."""
    shapes = dict(expected_tensors(config.dense() if config.is_delta else config))
    if config.is_delta:
        for layer in range(config.n_layers):
            shapes |= {t.name: t.shape for t in new_tensors(config, layer, DEFAULT_START, torch.float32)}
    total = active = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        total += count
        per_expert = ".experts." in name or ".expert_deltas." in name
        active += count * config.num_experts_per_tok // config.num_experts if per_expert else count
    return total, active
