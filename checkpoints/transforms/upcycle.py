"""Turns a dense model into a mixture of experts that computes the same function (Komatsuzaki et al., 2023).

In memory (:func:`upcycle_model`) for training, and from disk to disk (:func:`upcycle_directory`) in bounded memory for
models that fit nowhere. Both give the same bits. Full experts are copies of the dense feed-forward; delta experts share
it and add low-rank changes that start at zero.
"""

# E experts, D model dim, F hidden dim

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.formats import Checkpoint
from checkpoints.formats.delta import base_reference
from checkpoints.formats.dense_layers import huggingface_tensors
from checkpoints.formats.names import expected_tensors
from checkpoints.formats.parameters import base_rename, main_dtype, meta_model, require_complete, set_parameter
from checkpoints.model_io import copy_base, write_delta_files
from checkpoints.storage.files import DiskUsage, free_bytes, new_directory
from checkpoints.storage.safetensors_file import StoredTensor, memory_tensor, tensor_bytes
from checkpoints.storage.writer import (
    MAX_SHARD_BYTES,
    SMALL_FILES_BYTES,
    Progress,
    in_dtype,
    renamed,
)
from checkpoints.transforms.initialize import delta_tensors, router_tensor
from checkpoints.transforms.rewrite import card, small_parts, source_files, write_rewritten
from moe.config import ModelConfig
from moe.errors import UserError
from moe.languages import get_language
from moe.model import Transformer

ROUTER_STD = 0.02


def upcycled_config(
    config: ModelConfig,
    languages: Sequence[str],
    form: str = "delta",
    experts_per_token: int = 2,
    expert_rank: int = 16,
    shared_rank: int = 0,
    **settings: Any,
) -> ModelConfig:
    """The config of the mixture made from a dense one; one expert per language, in this order.

    Args:
        expert_rank, shared_rank: of the delta form; ignored for full experts.
        settings: further fields of :class:`ModelConfig`, such as ``moe_layers`` or ``delta_scale``.

    Raises:
        UserError: the model is no dense one, a language is unknown or named twice, or sizes do not fit.
    """
    if config.is_moe or config.is_delta:
        raise UserError("the base is a mixture already; give a dense model to upcycle")
    for language in languages:
        get_language(language)
    if len(set(languages)) != len(languages):
        raise UserError(f"languages {' '.join(languages)} name one twice; give each language once")
    if form == "full" and not languages:
        raise UserError("full experts need at least one language; give --languages python java ...")
    if languages and experts_per_token > len(languages):
        raise UserError(
            f"{experts_per_token} experts per token, of {len(languages)}; name more languages, or add "
            f"--experts-per-token {len(languages)}"
        )
    if form == "delta" and max(expert_rank, shared_rank) > config.dim:
        raise UserError(
            f"rank {max(expert_rank, shared_rank)} is more than the model's width of {config.dim}; a low-rank "
            "delta has a small one, for example 16"
        )
    ranks = {"expert_rank": expert_rank if languages else 0, "shared_rank": shared_rank} if form == "delta" else {}
    return replace(
        config,
        num_experts=len(languages),
        num_experts_per_tok=experts_per_token,
        expert_form=form,
        expert_languages=tuple(languages),
        **ranks,
        **settings,
    )


def new_tensors(
    config: ModelConfig,
    layer: int,
    seed: int,
    std: float,
    dtype: torch.dtype,
    routers: Mapping[int, Tensor] | None = None,
) -> Iterator[StoredTensor]:
    """What one layer of the mixture has beside the dense weights: its router, and deltas in that form.

    ``routers``, by layer [E, D], take the place of random ones. A layer that stays dense has nothing.
    """
    if layer not in config.sparse_layers:
        return
    if routers is not None:
        yield memory_tensor(f"layers.{layer}.feed_forward.gate.weight", routers[layer].to(dtype))
    elif config.num_experts:
        yield router_tensor(config, layer, seed, std, dtype)
    if config.is_delta:
        yield from delta_tensors(config, layer, seed, dtype)


def upcycle_model(
    dense: Transformer,
    languages: Sequence[str],
    form: str = "delta",
    experts_per_token: int = 2,
    expert_rank: int = 16,
    shared_rank: int = 0,
    router_std: float = ROUTER_STD,
    seed: int = 0,
    **settings: Any,
) -> Transformer:
    """Makes a mixture in memory that computes what ``dense`` computes.

    ``settings`` are those of :func:`upcycled_config`. The weights outside of full experts share the memory of
    ``dense`` (as parameters of their own): train one of the two models only. Without languages the delta form gives a
    dense model with one low-rank adapter.

    Raises:
        UserError: see :func:`upcycled_config`.
    """
    config = upcycled_config(dense.config, languages, form, experts_per_token, expert_rank, shared_rank, **settings)
    model = meta_model(config)
    rename = base_rename(config)
    for name, parameter in dense.named_parameters():
        value = parameter.detach()
        dense_layer = ".feed_forward." not in name or int(name.split(".")[1]) not in config.sparse_layers
        if config.is_delta or dense_layer:
            set_parameter(model, rename.get(name, name) if config.is_delta else name, value)
            continue
        owner, weight, _ = name.rsplit(".", 2)
        stack = value.expand(config.num_experts, *value.shape).clone()  # [E, F, D] or [E, D, F]
        set_parameter(model, f"{owner}.experts.{weight}", stack)
    for layer in range(config.n_layers):
        for tensor in new_tensors(config, layer, seed, router_std, dense.dtype):
            set_parameter(model, tensor.name, tensor.read().to(dense.device))
    require_complete(model)
    return model


def upcycled_tensors(
    base: Checkpoint,
    config: ModelConfig,
    seed: int,
    router_std: float,
    dtype: torch.dtype | None,
    routers: Mapping[int, Tensor] | None = None,
) -> Iterator[StoredTensor]:
    """Yields the tensors of a Mixtral directory, layer by layer; experts point at the bytes of the dense weights."""
    return huggingface_tensors(config, _flat_upcycled(base, config, seed, router_std, dtype, routers))


def _flat_upcycled(
    base: Checkpoint,
    config: ModelConfig,
    seed: int,
    router_std: float,
    dtype: torch.dtype | None,
    routers: Mapping[int, Tensor] | None,
) -> Iterator[StoredTensor]:
    """The tensors of :func:`upcycled_tensors` under flat names."""
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
        for tensor in new_tensors(config, layer, seed, router_std, main, routers):
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
    *,
    template: str | None = None,
    seed: int = 0,
    router_std: float = ROUTER_STD,
    routers: Mapping[int, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    with_base: bool = False,
    force: bool = False,
    files: Mapping[str, bytes | Path] | None = None,
    extra_config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress = lambda count: None,
    disk_free: DiskUsage = free_bytes,
) -> None:
    """Upcycles a dense model from disk to disk, one tensor in memory at a time.

    Args:
        config: from :func:`upcycled_config`.
        routers: [E, D] by layer, in the place of random ones.
        dtype: of the tensors written; None copies them as they are.
        with_base: for the delta form, copy the base's files into the new directory.

    Raises:
        UserError: the target exists, the disk is too small, or the base is damaged.
    """
    main = dtype or main_dtype(base.tensors)
    drawn = f"normal, standard deviation {router_std:g}" if routers is None else "ridge regression on labelled prompts"
    recipe = {"router": drawn, "seed": str(seed), "training": "none yet"}
    if not config.is_delta:
        write_rewritten(
            base,
            target,
            config,
            upcycled_tensors(base, config, seed, router_std, dtype, routers),
            action=f"Upcycled: each of {config.num_experts} experts is a copy of the dense feed-forward",
            recipe=recipe,
            job=["upcycle", seed, router_std, fingerprint(routers)],
            dtype=dtype,
            template=template,
            force=force,
            max_shard_bytes=max_shard_bytes,
            files=files,
            extra_config=extra_config,
            progress=progress,
            disk_free=disk_free,
        )
        return
    documents, contents, ids = small_parts(base, template)
    recipe |= {"rank of each expert, shared": f"{config.expert_rank}, {config.shared_rank}"}
    action = "Upcycled: the experts are low-rank changes, which are zero at first"
    contents["README.md"] = card(base, config, action, recipe)
    contents |= dict(files or {})
    added = [t for layer in range(config.n_layers) for t in new_tensors(config, layer, seed, router_std, main, routers)]
    needed = sum(tensor.nbytes for tensor in added) + SMALL_FILES_BYTES
    if with_base:
        needed += sum(path.stat().st_size for path in base.weight_files)
    with new_directory(target, force, needed, disk_free, source_files(base)) as temporary:
        if with_base:
            copied = copy_base(base, temporary / "base")
            place = {**copied.to_json(temporary), "path": str((target / "base").absolute())}
        else:
            place = base_reference(base).to_json(target)
        write_delta_files(temporary, added, config, place, documents, contents, ids)


def fingerprint(tensors: Mapping[int, Tensor] | None) -> str | None:
    """SHA-256 of tensors in memory by layer, or None."""
    if tensors is None:
        return None
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def parameter_counts(config: ModelConfig) -> tuple[int, int]:
    """Numbers of parameters, all and those that one token uses. Computed from shapes alone: no tensor is made."""
    shapes = dict(expected_tensors(config.dense() if config.is_delta else config))
    if config.is_delta:
        for layer in range(config.n_layers):
            shapes |= {t.name: t.shape for t in new_tensors(config, layer, 0, ROUTER_STD, torch.float32)}
    total = active = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        total += count
        per_expert = ".experts." in name or ".expert_deltas." in name
        active += count * config.num_experts_per_tok // config.num_experts if per_expert else count
    return total, active
