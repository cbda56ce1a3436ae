"""Properties of our own model: packing, caches, deltas, forced experts, recomputation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from moe import layers
from moe.cache import KVCache
from moe.config import ModelConfig
from moe.errors import UserError
from moe.model import Transformer, count_parameters
from moe.rope import RopeScaling

DELTA = {"num_experts": 4, "expert_form": "delta", "shared_rank": 3, "expert_rank": 2}
WINDOWS = [None, 5]
ATTENTION = [{"sliding_window": window} for window in WINDOWS]
ATTENTION += [
    {"sliding_window": 5, "sliding_layers": (1,), "attention_bias": True, "rope_scaling": RopeScaling("linear", 2.0)}
]


def tokens_of(length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["dense", "adapter", "full", "delta", "attention", "attention, context"])
def config(request, tiny_config) -> ModelConfig:
    changes = {
        "dense": {},
        "adapter": {"expert_form": "delta", "shared_rank": 3},
        "full": {"num_experts": 4},
        "delta": DELTA,
        "attention": {**DELTA, "attention_experts": ("q", "k", "v", "o")},
        "attention, context": {
            **DELTA,
            "attention_experts": ("v", "q"),
            "router_context": "ema",
            "router_layers": "first",
        },
    }
    return replace(tiny_config, **changes[request.param])


@pytest.mark.parametrize("attention", ATTENTION, ids=["full", "window", "mixed"])
def test_packed_documents_equal_single_documents(config, attention, make_model):
    model = make_model(replace(config, **attention))
    documents = (9, 1, 14, 6)
    packed = tokens_of(sum(documents))
    together = model(packed, documents=documents).logits[0]
    alone = [model(piece).logits[0] for piece in packed.split(documents, dim=1)]
    assert (together - torch.cat(alone)).abs().max() < 1e-12


def flash_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)):
    """What `varlen_attn` says that it computes, [T, H, C] in and out, with one mask over all documents."""
    assert query.shape == key.shape == value.shape and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max()) and torch.equal(cu_seq_q, cu_seq_k)
    left, right = window_size
    place = torch.arange(query.shape[0])
    owner = torch.searchsorted(cu_seq_q, place, right=True)
    behind = place[:, None] - place[None]
    seen = (owner[:, None] == owner[None]) & (behind >= -right) & ((behind <= left) | (left < 0))
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))  # [H, T, C]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1)


@pytest.mark.parametrize("window", [None, 1, 5])
def test_packed_attention_of_gpus_equals_the_loop_of_cpus(window, monkeypatch):
    random = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, h, 30, 8, dtype=torch.float64, generator=random) for h in (4, 2, 2))
    documents = (9, 1, 14, 6)
    bounds = torch.tensor([0, 9, 10, 24, 30], dtype=torch.int32)
    looped = layers.attend(q, k, v, layers.AttentionPattern(window, documents))
    monkeypatch.setattr(varlen, "varlen_attn", flash_attention)
    monkeypatch.setattr(layers, "has_flash_attention", lambda q: True)
    packed = layers.attend(q, k, v, layers.AttentionPattern(window, documents, bounds))
    assert packed.shape == q.shape and (looped - packed).abs().max() < 1e-12


def test_torch_takes_packed_attention_as_it_is_called():
    """Forward and backward on tensors without data: names, order, dtypes and shapes of the arguments."""
    with FakeTensorMode():
        q, k, v = (torch.randn(1, h, 30, 8, dtype=torch.bfloat16, requires_grad=True) for h in (4, 2, 2))
        out = layers.attend_packed(q, k, v, torch.zeros(5, dtype=torch.int32), 14, 5)
        out.sum().backward()
    assert out.shape == q.shape and k.grad.shape == k.shape


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_flash_attention_sees_what_float32_attention_sees(window):
    torch.manual_seed(0)
    documents = (300, 1, 14, 129)
    q, k, v = (torch.randn(1, h, 444, 64, device="cuda").bfloat16().requires_grad_() for h in (4, 2, 2))
    pattern = layers.make_pattern(444, window, documents, q.device)
    assert pattern.bounds is not None and layers.has_flash_attention(q)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    got, want = layers.attend(q, k, v, pattern), layers.attend(*wide, pattern)
    grad = torch.randn_like(want)
    pairs = [
        (got, want),
        *zip(torch.autograd.grad(got, (q, k, v), grad.bfloat16()), torch.autograd.grad(want, wide, grad)),
    ]
    for ours, exact in pairs:
        largest = exact.abs().max()  # nothing for a query that sees one key, but for what bf16 rounds
        assert (ours.float() - exact).abs().max() < 2**-6 * (largest if largest > 1e-3 else 1.0)


@pytest.mark.parametrize("attention", ATTENTION, ids=["full", "window", "mixed"])
@pytest.mark.parametrize("chunks", [(13, 1, 1, 1, 1, 1, 1, 1), (3, 9, 2, 6), (1,) * 20, (20,)])
def test_cache_equals_no_cache(config, attention, chunks, make_model):
    model = make_model(replace(config, **attention))
    tokens = tokens_of(20, rows=2)
    wanted = model(tokens).logits
    cache = KVCache(model.config, 2, 20, torch.float64)
    assert [track.capacity for track in cache.tracks.values()] == [window or 20 for window in model.config.windows]
    got = torch.cat([model(piece, cache=cache).logits for piece in tokens.split(chunks, dim=1)], dim=1)
    assert (got - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("slack", [0, 3])
@pytest.mark.parametrize("attention", ATTENTION, ids=["full", "window", "mixed"])
def test_rows_of_different_lengths_equal_single_rows(config, attention, slack, make_model):
    """Packed prompts, steps of one token and of several, tokens taken back, rows dropped and the cache grown."""
    model = make_model(replace(config, **attention))
    lengths = [11, 4, 8]
    rows = [tokens_of(40, seed=s)[0] for s in range(3)]
    wanted = [model(row[None]).logits[0] for row in rows]
    cache = KVCache(model.config, 3, 16, torch.float64, slack=slack)
    packed = torch.cat([row[:n] for n, row in zip(lengths, rows)])[None]
    logits = model(packed, cache=cache, documents=tuple(lengths), last_only=True).logits[0]
    assert (logits - torch.stack([w[n - 1] for w, n in zip(wanted, lengths)])).abs().max() < 1e-12
    cache.grow(5, 40)
    for count, kept in (
        (1, (1, 1, 1)),
        (slack + 1, (1, slack + 1, 1)),
        (1, (1, 1, 1)),
        (slack + 1, (1, 1, 1)),
        (6, (6,) * 3),
    ):
        step = cache.step(3, count)
        logits = model(torch.stack([r[n : n + count] for n, r in zip(lengths, rows)]), cache=step).logits
        for row, n, w in zip(range(3), lengths, wanted):
            assert (logits[row] - w[n : n + count]).abs().max() < 1e-12
        step.advance(kept)
        lengths = [n + k for n, k in zip(lengths, kept)]
        assert cache.lengths == lengths
    assert cache.drop_rows([0]) == [2, 1]
    logits = model(torch.stack([rows[2][lengths[2]], rows[1][lengths[1]]])[:, None], cache=cache).logits
    for place, row in enumerate((2, 1)):
        assert (logits[place, 0] - wanted[row][lengths[row]]).abs().max() < 1e-12


def test_a_full_cache_says_so(tiny_config, make_model):
    model = make_model(tiny_config)
    cache = KVCache(model.config, 1, 4, torch.float64)
    with pytest.raises(ValueError, match="made for 4 tokens"):
        model(tokens_of(5), cache=cache)
    cache = KVCache(model.config, 1, 4, torch.float64)
    with pytest.raises(ValueError, match="made for 4 tokens"):
        model(tokens_of(5), cache=cache, documents=(5,))
    with pytest.raises(ValueError, match="made for 1 rows"):
        model(tokens_of(4), cache=cache, documents=(2, 2))
    model(tokens_of(2), cache=cache)
    with pytest.raises(ValueError, match="holds 1 rows and is asked to continue 2"):
        model(tokens_of(1, rows=2), cache=cache)


def test_untouched_deltas_change_nothing(tiny_config):
    dense = Transformer(tiny_config).reset(1, 0.2).double()
    sparse_config = replace(tiny_config, num_experts=4, expert_form="delta", shared_rank=3, expert_rank=2)
    sparse = Transformer(sparse_config).reset(2).double()
    state = {name.replace("feed_forward.", "feed_forward.base."): value for name, value in dense.state_dict().items()}
    missing, unexpected = sparse.load_state_dict(state, strict=False)
    assert not unexpected and all("delta" in name or "gate" in name for name in missing)
    tokens = tokens_of(20)
    assert (sparse(tokens).logits - dense(tokens).logits).abs().max() <= 1e-12


def test_delta_experts_equal_full_experts_with_merged_weights(tiny_config, make_model):
    delta_config = replace(tiny_config, num_experts=4, expert_form="delta", shared_rank=3, expert_rank=2)
    delta = make_model(delta_config)
    full = Transformer(replace(delta_config, expert_form="full", shared_rank=0, expert_rank=0)).double()
    state = {k: v for k, v in delta.state_dict().items() if "delta" not in k and ".base." not in k}
    for index, block in enumerate(delta.layers):
        ffn, scale = block.feed_forward, delta_config.delta_scale
        for n in "123":
            base = getattr(ffn.base, f"w{n}").weight
            shared = getattr(ffn.shared_delta, f"b{n}") @ getattr(ffn.shared_delta, f"a{n}")
            own = getattr(ffn.expert_deltas, f"b{n}") @ getattr(ffn.expert_deltas, f"a{n}")
            state[f"layers.{index}.feed_forward.experts.w{n}"] = base + scale * (shared + own)
    full.load_state_dict(state)
    tokens = tokens_of(20)
    assert (delta(tokens).logits - full(tokens).logits).abs().max() < 1e-11


def test_forced_experts_equal_that_expert_alone(tiny_config, make_model):
    model = make_model(replace(tiny_config, num_experts=3))
    forced = torch.tensor([0] * 6 + [2] * 6)
    out = model(tokens_of(12), documents=(6, 6), forced_experts=forced)
    assert all(r.router_logits is None and r.expert_ids.flatten().equal(forced) for r in out.routing)
    dense = Transformer(tiny_config).double()
    for expert, piece in ((0, slice(0, 6)), (2, slice(6, 12))):
        state = {k: v for k, v in model.state_dict().items() if "gate" not in k}
        state = {
            k.replace("experts.", "") + ".weight" if "experts" in k else k: v[expert] if "experts" in k else v
            for k, v in state.items()
        }
        dense.load_state_dict(state)
        assert (dense(tokens_of(12)[:, piece]).logits[0] - out.logits[0, piece]).abs().max() < 1e-12


def test_recomputation_gives_the_same_gradients(config, make_model):
    gradients = []
    for recompute in (False, True):
        model = make_model(config)
        model(tokens_of(16), activation_checkpointing=recompute).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-14) for n in gradients[0])


@pytest.mark.parametrize("forced", [False, True])
def test_experts_in_attention_are_sums_over_plain_products(tiny_config, make_model, forced):
    """Each token's projections by a loop over its experts, with the gates of its feed-forward."""
    model = make_model(replace(tiny_config, **DELTA, attention_experts=("q", "o"), delta_scale=0.7))
    seen, attention = {}, model.layers[1].attention

    def projected(name):
        return lambda _, inputs, out: seen.update({name: (inputs[0], out)})

    for name in ("q", "k", "o"):
        getattr(attention, f"w{name}").register_forward_hook(projected(name))
    plain, found = attention.project, {}
    attention.project = lambda name, x, shares: found.setdefault(name, plain(name, x, shares))
    ids = torch.arange(10) % 4 if forced else None
    routing = model(tokens_of(10), forced_experts=ids).routing[1]
    assert torch.equal(found["k"], seen["k"][1]) and (not forced or torch.equal(routing.expert_ids[:, 0], ids))
    for name in ("q", "o"):
        x, base = (part[0] for part in seen[name])
        wanted = base.clone()
        for token, (gates, experts) in enumerate(zip(routing.gates, routing.expert_ids)):
            a, b = attention.shared_delta.pair(name)
            wanted[token] += 0.7 * b @ (a @ x[token])
            for gate, expert in zip(gates, experts):
                a, b = (factor[expert] for factor in attention.expert_deltas.pair(name))
                wanted[token] += 0.7 * gate * b @ (a @ x[token])
        assert (found[name][0] - wanted).abs().max() < 1e-12 and (wanted - base).abs().max() > 0.1


def test_experts_in_attention_share_the_decision_and_start_as_none(tiny_config, make_model):
    """The router reads what attention reads; at B = 0 the logits are those without, bit by bit."""
    config = replace(tiny_config, **DELTA, router_layers="first")
    model = Transformer(replace(config, attention_experts=("q", "k", "v", "o"))).reset(0)
    without = Transformer(config)
    without.load_state_dict(
        {n: p for n, p in model.state_dict().items() if ".attention." not in n or "_delta" not in n}
    )
    ids = torch.arange(12) % 4
    assert torch.equal(
        model(tokens_of(12), forced_experts=ids).logits, without(tokens_of(12), forced_experts=ids).logits
    )
    seen = {}
    routing = model(tokens_of(12), observer=lambda layer, x: seen.update({layer: x})).routing
    embedded = model.layers[0].attention_norm(model.tok_embeddings(tokens_of(12)))
    assert torch.equal(seen[0], embedded) and routing[0] is routing[1]
    assert torch.equal(routing[0].router_logits, model.layers[0].feed_forward.gate(embedded[0]))


def test_observer_sees_what_enters_each_feed_forward(tiny_config, make_model):
    model = make_model(tiny_config)
    seen = {}
    model(tokens_of(7), observer=lambda layer, x: seen.update({layer: x}))
    assert sorted(seen) == [0, 1] and seen[0].shape == (1, 7, 32)


def test_counting_parameters(tiny_config):
    tied = Transformer(replace(tiny_config, tie_embeddings=True))
    assert count_parameters(Transformer(tiny_config)) - count_parameters(tied) == 97 * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads": 3}, "not a multiple"),
        ({"head_dim": 7}, "odd"),
        ({"dim": 0}, "positive"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"num_experts": 2, "num_experts_per_tok": 3}, "expected 1 to num_experts"),
        ({"num_experts": 2, "expert_languages": ("python",)}, "names 1 languages"),
        ({"num_experts": 2, "expert_languages": ("python", "python")}, "names one twice: python python"),
        ({"num_experts": 2, "expert_form": "delta"}, "expert_rank"),
        ({"expert_form": "sparse"}, "expert_form"),
        ({"num_experts": 2, "attention_experts": ("q",)}, "attention_experts are low-rank deltas"),
        ({"attention_experts": ("q", "w")}, "names 'w', expected some of q, k, v, o"),
    ],
)
def test_sizes_that_do_not_fit(tiny_config, change, message):
    with pytest.raises(UserError, match=message):
        replace(tiny_config, **change)


def test_config_round_trip(config):
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="unknown model setting"):
        ModelConfig.from_dict({**config.to_dict(), "hidden": 3})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dim", 32.0, "a whole number"),
        ("n_layers", True, "a whole number"),
        ("n_heads", "4", "a whole number"),
        ("vocab_size", 10**50, "a whole number"),
        ("sliding_window", [8], "a whole number or null"),
        ("norm_eps", float("nan"), "a number"),
        ("rope_theta", None, "a number"),
        ("tie_embeddings", 1, "true or false"),
        ("expert_form", None, "a text"),
        ("expert_languages", [None], "a list of texts"),
        ("expert_languages", "python", "a list of texts"),
        ("moe_layers", {"0": 1}, "a list of layer numbers or null"),
    ],
)
def test_values_of_another_type_are_named(tiny_config, name, value, expected):
    with pytest.raises(UserError, match=f"{name} is .*, expected {expected}"):
        ModelConfig.from_dict({**tiny_config.to_dict(), name: value})
