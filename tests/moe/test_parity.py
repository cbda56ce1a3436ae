"""The model gives the logits, losses and gradients of transformers' Mistral, Llama and Mixtral."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

transformers = pytest.importorskip("transformers")

# Each case: (family, changes of the config). Windows are shorter than the 24 tokens of the test.
CASES = [
    ("Llama", {}),
    ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True, "rope_theta": 100000.0}),
    ("Llama", {"head_dim": 12, "num_key_value_heads": 4}),
    ("Mistral", {"sliding_window": None, "rope_theta": 1000000.0}),
    ("Mistral", {"sliding_window": 7, "num_key_value_heads": 1}),
    ("Mistral", {"sliding_window": 1, "head_dim": 6}),
    ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 5}),
    ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True, "head_dim": 20}),
]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def route_in_float64(router, hidden: torch.Tensor):
    """Transformers rounds gates to float32 in every dtype, which alone moves float64 logits by 1e-7."""
    hidden = hidden.reshape(-1, router.hidden_dim)
    logits = F.linear(hidden, router.weight)
    gates, experts = torch.topk(logits.softmax(-1), router.top_k, dim=-1)
    return logits, gates / gates.sum(-1, keepdim=True), experts


def norm_in_float64(norm, x: torch.Tensor) -> torch.Tensor:
    """Transformers' norms round to float32 in every dtype; a rounding that flips moves float64 logits by 1e-7."""
    return norm.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon))


def build(family: str, changes: dict, dtype: torch.dtype):
    changes = dict(changes)
    theta = changes.pop("rope_theta", 10000.0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=56,
        num_attention_heads=4,
        **{"num_hidden_layers": 3, "num_key_value_heads": 2, "tie_word_embeddings": False, **changes},
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    config._attn_implementation = "sdpa"  # its eager softmax is float32 even in a float64 model
    config._experts_implementation = "eager"  # grouped_mm has no float64
    torch.manual_seed(3)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = partial(norm_in_float64, module)
        for layer in model.model.layers if family == "Mixtral" else ():
            layer.mlp.gate.forward = partial(route_in_float64, layer.mlp.gate)
    with torch.no_grad():
        for parameter in model.parameters():  # weights large enough that every part matters
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("family", "changes"), CASES)
def test_logits_loss_and_gradients(family, changes, dtype, from_transformers):
    theirs = build(family, changes, dtype)
    ours = from_transformers(theirs, dtype)
    tokens = torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(5))

    reference = theirs(tokens, use_cache=False).logits
    logits = ours(tokens).logits
    assert (logits - reference).abs().max() <= TOLERANCE[dtype]

    losses = [
        F.cross_entropy(x[:, :-1].reshape(-1, 61), tokens[:, 1:].reshape(-1), reduction="mean")
        for x in (reference, logits)
    ]
    assert (losses[0] - losses[1]).abs() <= TOLERANCE[dtype]
    for loss in losses:
        loss.backward()
    # The same conversion turns their gradients into ours.
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    wanted = dict(from_transformers(theirs, dtype).named_parameters())
    for name, parameter in ours.named_parameters():
        # transformers computes the zeros of a router with one expert a token
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert (grad - wanted[name]).abs().max() <= TOLERANCE[dtype], name


def test_scored_loss_equals_mixtral_with_its_balance_term(from_transformers):
    """Transformers pools all layers in one balance term; ours is per layer, and the same for a one-layer model."""
    from moe.losses import balance_loss, expert_counts, token_losses

    theirs = build("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 1}, torch.float32)
    theirs.router_aux_loss_coef = 0.3
    ours = from_transformers(theirs, torch.float32)
    tokens = torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(5))
    wanted = theirs(tokens, labels=tokens, output_router_logits=True, use_cache=False).loss
    out = ours(tokens, logits=False)
    cross_entropy = token_losses(out.hidden[:, :-1].reshape(-1, 32), ours.output_weight, tokens[:, 1:].reshape(-1))
    routing = out.routing[0]
    fractions = expert_counts(routing.expert_ids, 4) / routing.expert_ids.numel()
    # Transformers counts each of the K choices of a token as a whole, so its term is K times ours.
    balance = 2 * balance_loss(routing.router_logits, fractions)
    assert abs((cross_entropy.mean() + 0.3 * balance - wanted).item()) < 1e-5
