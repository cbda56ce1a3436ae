"""Experts of mixtures taken away, put together, or one more; what the others compute does not change."""

# E experts, D model dim, r rank

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from checkpoints.formats import Checkpoint
from checkpoints.formats.delta import DeltaCheckpoint, read_reference
from checkpoints.formats.names import flat_name
from checkpoints.formats.parameters import meta_model, packed_weights, require_complete, set_packed, set_parameter
from checkpoints.formats.peft import Adapter, LowRankPair, changed_modules
from checkpoints.storage.safetensors_file import StoredTensor, whole
from checkpoints.storage.writer import renamed
from checkpoints.transforms.adapters import adapter_folders, adapter_tensors
from checkpoints.transforms.initialize import Initialization, new_tensors
from checkpoints.transforms.merge import expert_names
from checkpoints.transforms.rewrite import Source
from moe.config import ModelConfig
from moe.errors import UserError
from moe.languages import get_language
from moe.model import Transformer
from moe.training.stages import is_router


def without_experts(source: Source, languages: Sequence[str]) -> tuple[ModelConfig, list[StoredTensor]]:
    """The config and the own tensors of a mixture without the experts of some languages.

    Expert e of the rest keeps its weights and its row of each router, so forced to it the model computes the same, and
    the router weighs the experts that are left as it did.

    Returns:
        config, and the tensors: all of a Mixtral model under flat names, or those that deltas add to their base.

    Raises:
        UserError: a dense model, an unknown language, or no expert would be left.
    """
    config = source.config
    if not config.is_moe:
        raise UserError(f"{source.path} has no experts; give a mixture")
    names = expert_names(config)
    if unknown := [name for name in languages if name not in names]:
        raise UserError(f"{source.path} has no expert for {unknown[0]!r}; it has {', '.join(names)}")
    kept = [expert for expert, name in enumerate(names) if name not in languages]
    if not kept:
        raise UserError(f"these are all experts of {source.path}; leave one, or take one out with extract")
    smaller = replace(
        config,
        num_experts=len(kept),
        num_experts_per_tok=min(config.num_experts_per_tok, len(kept)),
        expert_languages=tuple(config.expert_languages[expert] for expert in kept if config.expert_languages),
    )
    places = {
        flat_name(layer, weight, expert): flat_name(layer, weight, place)
        for layer in config.sparse_layers
        for place, expert in enumerate(kept)
        for weight in ("w1", "w2", "w3")
    }
    tensors = []
    for name, tensor in source.tensors.items():
        if is_router(name) or ".expert_deltas." in name:
            tensors.append(_slices(renamed(tensor, name), kept))
        elif ".experts." not in name:
            tensors.append(renamed(tensor, name))
        elif name in places:
            tensors.append(renamed(tensor, places[name]))
    return smaller, tensors


def _slices(tensor: StoredTensor, kept: Sequence[int]) -> StoredTensor:
    """The slices of some experts of a stacked tensor [E, ...]."""

    def read() -> Tensor:
        return tensor.read()[list(kept)].clone()

    return StoredTensor(tensor.name, tensor.dtype, (len(kept), *tensor.shape[1:]), read)


def experts_as_adapters(sources: Sequence[Source]) -> tuple[Checkpoint, dict[str, Adapter]]:
    """The experts of several delta mixtures of one base, by language, each with its mixture's shared delta in it.

    Raises:
        UserError: full experts, different bases, or two experts for one language.
    """
    found: dict[str, Adapter] = {}
    owners: dict[str, DeltaCheckpoint] = {}
    first: Mapping[str, tuple[int, str]] | None = None
    for source in sources:
        if not isinstance(source, DeltaCheckpoint) or not source.config.is_moe:
            raise UserError(f"{source.path} has no delta experts; give runs or delta directories of one base")
        files = read_reference(source.settings, source.path / "config.json")[1]
        if first is not None and files != first:
            raise UserError(f"{source.path} changes another base than {sources[0].path}; give mixtures of one base")
        first = files
        for language, expert in adapter_folders(source.config):
            if language in owners:
                raise UserError(
                    f"{owners[language].path} and {source.path} both have an expert for {language}; take one away "
                    f"first: python -m checkpoints remove-language {source.path} OUT --language {language}"
                )
            owners[language] = source
            found[language] = _as_adapter(source, expert)
    assert isinstance(sources[0], DeltaCheckpoint)
    return sources[0].base, found


def _as_adapter(source: DeltaCheckpoint, expert: int | None) -> Adapter:
    tensors = adapter_tensors(source, expert)  # layer by layer, module by module, A before B
    pairs = {}
    for layer in source.config.sparse_layers:
        for matrix in changed_modules(source.config).values():
            pairs[layer, matrix] = LowRankPair(next(tensors), next(tensors), source.config.delta_scale)
    return Adapter(source.path, pairs, str(source.base.path))


def grown_config(config: ModelConfig, language: str) -> ModelConfig:
    """The config of a mixture with one more expert.

    Raises:
        UserError: a dense model, experts without languages, or a language that has one.
    """
    if not config.is_moe or not config.expert_languages:
        raise UserError("the base has no experts that are named by languages; give a finished run of train.py")
    if language in config.expert_languages:
        raise UserError(
            f"the base has an expert for {language} already; its experts: {' '.join(config.expert_languages)}"
        )
    languages = (*config.expert_languages, get_language(language).key)
    return replace(config, num_experts=len(languages), expert_languages=languages)


@torch.no_grad()
def grown_model(mixture: Transformer, language: str, seed: int, own: Mapping[str, StoredTensor]) -> Transformer:
    """A mixture with one more expert, the last; it shares the memory of all other weights of ``mixture``.

    Without a ``language`` it gains none.

    A delta starts with a random A and B = 0, at what the shared delta alone computes; a full expert as the mean of the
    others. The new row of the routers is zero until it is fitted.

    Args:
        own: deltas and routers as they are on disk, which ``mixture`` may hold in a narrower dtype.

    Raises:
        UserError: see :func:`grown_config`.
    """
    model = meta_model(grown_config(mixture.config, language) if language else mixture.config)
    start = Initialization(seed)
    layers = range(model.config.n_layers)
    new = {t.name: t for layer in layers for t in new_tensors(model.config, layer, start, torch.float32)}
    for name, parameter in mixture.named_parameters():
        value = own[name].read().to(parameter.device) if name in own else parameter.detach()
        if not language:
            pass
        elif is_router(name):
            value = torch.cat((value, torch.zeros_like(value[:1])))
        elif ".expert_deltas." in name:
            value = torch.cat((value, new[name].read()[-1:].to(value)))
        elif ".experts." in name:
            value = torch.cat((value, value.mean(0, keepdim=True)))
        set_parameter(model, name, value)
    for name, packed in packed_weights(mixture).items():
        set_packed(model, name, packed)
    require_complete(model)
    return model


def changed_experts(
    before: Transformer, after: Transformer, own: Mapping[str, StoredTensor], learning: Collection[str] = ()
) -> list[str]:
    """The parameters of a mixture that :func:`grown_model` and training should have kept, and did not, bit by bit.

    Those of the experts for the languages ``learning`` may change.
    """
    changed = []
    kept = [place for place, language in enumerate(before.config.expert_languages) if language not in learning]
    for name, parameter in before.named_parameters():
        value = own[name].read().to(parameter.device) if name in own else parameter.detach()
        found = whole(after.get_parameter(name)).to(value.device)
        if found.shape != value.shape:
            found = found[: len(value)]
        if learning and ".expert_deltas." in name:
            found, value = found[kept], value[kept]
        if not torch.equal(found, value):
            changed.append(name)
    return changed
