"""Token gates in place of routers that see context: what a mixture needs to become Mixtral.

A token's own state says less about its language than its document does, so the loss rises; how far is measured.
"""

# E experts, D model dim

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from checkpoints.formats.config_json import ROUTER_KEYS
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.formats.parameters import meta_model, set_parameter
from checkpoints.model_io import load_model
from checkpoints.storage.safetensors_file import memory_tensor
from checkpoints.transforms.fitted_routers import TOKENS_PER_BATCH, UNNAMED_SHARE
from checkpoints.transforms.rewrite import Source
from moe.config import ModelConfig
from moe.data.packing import MixedBatches, encode_pairs
from moe.data.sources import Pairs
from moe.errors import UserError
from moe.hardware import choose_device
from moe.model import Transformer
from moe.training.config import RunConfig
from moe.training.held_out_loss import HeldOutLoss, held_out_loss
from moe.training.router_start import fit_router
from moe.training.stages import Stage, is_router
from moe.training.trainer import Trainer

DOCUMENTS = 1000  # that gates are fitted on, if there are as many
LEARNING_RATE = 1e-2
LANGUAGE_LOSS_WEIGHT = 0.1  # with one expert per token the gates get no gradient from the text


@dataclass(frozen=True)
class Refit:
    """The model with token gates, on disk but for these, and held-out losses by language before and after."""

    source: Source
    gates: Mapping[str, Tensor]
    before: Mapping[str, HeldOutLoss]
    after: Mapping[str, HeldOutLoss]

    def losses(self) -> dict[str, tuple[float, float]]:
        """By language, and as ``mean``: loss with context and with token gates, in nats per response token."""
        found = {name: (loss.loss, self.after[name].loss) for name, loss in self.before.items()}
        old, new = (sum(values) / len(values) for values in zip(*found.values()))
        return {**found, "mean": (old, new)}


def refit_routers(
    source: Source,
    train: Pairs,
    held_out: Pairs,
    num_experts_per_tok: int | None = None,
    steps: int = 0,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Refit:
    """Fits a token gate in every sparse layer by logistic regression on the languages; loads the model in float32.

    Args:
        train, held_out: pairs by language, in the order of the experts.
        num_experts_per_tok: of the new model; None keeps the old one's.
        steps: optimizer steps of the gates after that, everything else frozen.

    Raises:
        UserError: the model's routers see no context, it has no tokenizer, or none of the pairs fit.
    """
    loaded = load_model(source.path, device=choose_device())
    if loaded.tokenizer is None:
        raise UserError(f"{source.path} has no tokenizer, so its routers cannot be fitted to text")
    longest = min(TOKENS_PER_BATCH, source.config.max_seq_len)
    data = encode_pairs(train, loaded.tokenizer, loaded.template, longest, UNNAMED_SHARE, seed)
    batches = MixedBatches(data.examples, TOKENS_PER_BATCH, seed)
    examples = encode_pairs(held_out, loaded.tokenizer, loaded.template, longest).examples
    before = held_out_loss(loaded.model, examples)
    model = _with_token_gates(loaded.model, token_config(source.config, num_experts_per_tok))
    config = RunConfig(
        languages=tuple(train),
        num_experts_per_tok=model.config.num_experts_per_tok,
        mix_trains_experts=False,
        language_loss_weight=LANGUAGE_LOSS_WEIGHT,
        router_documents=min(DOCUMENTS, sum(map(len, data.examples.values()))),
        seed=seed,
    )
    fit_router(model, batches, 0, config)
    if steps:
        stage = Stage("mix", steps, LEARNING_RATE, LEARNING_RATE)
        for report in Trainer(model, stage, batches, tuple(train), config).run():
            on_progress(report.step, steps)
    gates = {name: parameter.detach().cpu() for name, parameter in model.named_parameters() if is_router(name)}
    return Refit(with_gates(source, model.config, gates), gates, before, held_out_loss(model, examples))


def with_gates(source: Source, config: ModelConfig, gates: Mapping[str, Tensor] | None = None) -> Source:
    """The model on disk with other routers, as ``config`` says; None: zeros, for its sizes."""
    kept = {name: tensor for name, tensor in source.tensors.items() if not is_router(name)}
    if gates is None:
        names = (f"layers.{layer}.feed_forward.gate.weight" for layer in config.router_places)
        gates = {name: torch.zeros(config.num_experts, config.dim) for name in names}
    tensors = kept | {name: memory_tensor(name, gate) for name, gate in gates.items()}
    if isinstance(source, DeltaCheckpoint):  # two branches for mypy alone
        return replace(source, config=config, tensors=tensors)
    return replace(source, config=config, tensors=tensors)


def token_config(config: ModelConfig, num_experts_per_tok: int | None = None) -> ModelConfig:
    """The config of the same mixture with Mixtral's routers."""
    plain = {name: getattr(config.dense(), name) for name in ROUTER_KEYS}
    return replace(config, num_experts_per_tok=num_experts_per_tok or config.num_experts_per_tok, **plain)


def _with_token_gates(model: Transformer, config: ModelConfig) -> Transformer:
    """A model that shares all weights but the routers, which are zero."""
    result = meta_model(config)
    weights = dict(model.named_parameters())
    for name, parameter in list(result.named_parameters()):
        if is_router(name):
            value = model.tok_embeddings.weight.new_zeros(parameter.shape)
        else:
            value = weights[name].detach()
        set_parameter(result, name, value)
    return result
