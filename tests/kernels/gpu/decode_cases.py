"""The kernels of a step of generation, and whole steps, in Triton's interpreter (see `test_interpreter.py`)."""

from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernels import custom_ops, ops
from kernels.gpu import launch, launch_decode
from moe.cache import KVCache
from moe.config import ModelConfig
from moe.experts import MoEFeedForward
from moe.gpu_decoder import GPUDecoder
from moe.graphs import GraphStep, power_of_two
from moe.layers import rms_norm
from moe.model import ModelOutput, Transformer
from moe.rope import RopeScaling, rope_angles
from moe.router import Routing, select_top_k
from tests.kernels.gpu.interpreter_cases import error, host_work

assert os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = [torch.float32, torch.bfloat16]
pytestmark = pytest.mark.filterwarnings("ignore:.*cuda.*")


@pytest.fixture(autouse=True)
def _no_gradients():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width", "added"), [(1, 64, True), (3, 100, True), (3, 100, False), (2, 1, True)])
def test_add_norm(dtype, rows, width, added):
    x, y, weight = (torch.randn(*lead, width).mul(3).to(dtype) for lead in ((rows,), (rows,), ()))
    total = x + y if added else x.clone()
    want = rms_norm(total, weight, 1e-5)
    out, decision = launch_decode.add_norm(x, y if added else None, weight, 1e-5)
    assert torch.equal(x, total) and decision is None  # the residual, in place
    if dtype == torch.float32:
        assert error(out, want) <= 1e-6
    else:  # sums in another order may round a value the other way
        assert error(out, want) <= 2**-7 and (out == want).float().mean() > 0.98


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (3, 2), (4, 1), (8, 3), (64, 6), (5, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_router(dtype, experts, top_k, biased):
    """Logits, gates and experts as the layer has them; -inf excludes an expert, whose gate is 0 where it is chosen."""
    x, weight, gate = torch.randn(3, 70).to(dtype), torch.ones(70, dtype=dtype), torch.randn(experts, 70)
    bias = torch.randn(3, experts)
    bias[0, :-1] = -torch.inf
    with launch.redirected(tiles={"add_norm": launch.Tile(1, 512, 1, 4, 1)}):  # four experts at once
        out, (logits, gates, ids) = launch_decode.add_norm(x, None, weight, 1e-5, gate, bias if biased else None, top_k)
    want = F.linear(out.float(), gate)
    if biased:
        want = want + bias
    assert torch.equal(logits == -torch.inf, want == -torch.inf)
    assert error(logits.nan_to_num(neginf=0), want.nan_to_num(neginf=0)) <= 1e-6
    want_gates, want_ids = select_top_k(logits, top_k)
    assert gates.dtype == torch.float32 and ids.dtype == torch.int64
    torch.testing.assert_close(gates, want_gates, rtol=0, atol=2e-7)
    sure = want_gates > 0  # the order of excluded experts is nobody's business
    assert torch.equal(ids[sure], want_ids[sure])
    assert all(len(set(row)) == top_k and set(row) <= set(range(experts)) for row in ids.tolist())
    torch.testing.assert_close(gates.sum(1), torch.ones(3), rtol=0, atol=6e-8 * top_k)
    assert top_k > 2 or torch.equal(gates[:, 0], 1 - gates[:, 1:].sum(1))


def test_a_narrow_router_and_equal_logits():
    """The gate's dtype rounds the logits; of equal ones the first are chosen; NaN stays NaN, with real experts."""
    x, weight = torch.randn(2, 64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16)
    gate = torch.randn(2, 64, dtype=torch.bfloat16)
    bias = torch.randn(2, 2)
    out, (logits, _, _) = launch_decode.add_norm(x, None, weight, 1e-5, gate, bias, 1)
    want = F.linear(out.float(), gate.float()).bfloat16() + bias.bfloat16()
    assert logits.dtype == torch.bfloat16 and error(logits, want) <= 2**-7
    equal = torch.randn(64, dtype=torch.bfloat16).expand(5, 64).contiguous()
    _, (_, gates, ids) = launch_decode.add_norm(x, None, weight, 1e-5, equal, None, 3)
    assert ids.tolist() == [[0, 1, 2]] * 2
    torch.testing.assert_close(gates, torch.full((2, 3), 1 / 3))
    x[0, 3] = torch.nan
    out, (_, gates, ids) = launch_decode.add_norm(x, None, weight, 1e-5, equal, None, 3)
    assert out[0].isnan().all() and gates[0].isnan().all() and ids.tolist() == [[0, 1, 2]] * 2
    assert not gates[1].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("parts", ["", "norm", "norm bias", "norm sum", "norm sum bias", "bias"])
def test_linear(dtype, rows, parts):
    x, y, norm, bias = (torch.randn(*sizes).to(dtype) for sizes in ((rows, 70), (rows, 70), (70,), (11,)))
    w, before = torch.randn(11, 70).to(dtype), x.clone()
    y, norm, bias = (
        part if name in parts else None for part, name in ((y, "sum"), (norm, "norm"), (bias, "bias"))
    )  # fmt: skip
    total = x if y is None else x + y
    normed = total if norm is None else rms_norm(total, norm, 1e-5)
    want = F.linear(normed.double(), w.double(), None if bias is None else bias.double())
    kept, found = launch_decode.linear(x, y, norm, 1e-5, w, bias)
    assert torch.equal(kept, total) and found.dtype == dtype
    assert error(found, want) <= (1e-6 if dtype == torch.float32 else 2**-7)
    assert rows > 1 or torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "groups", "size", "capacity", "window", "split_keys"),
    [(4, 2, 16, 70, None, 256), (3, 1, 6, 40, 40, 256), (2, 2, 2, 44, 40, 10), (6, 2, 20, 70, None, 20)],
)
def test_attend(dtype, queries, groups, size, capacity, window, split_keys, monkeypatch):
    """The first token, more keys than a tile, rows that wrapped around or not, slack behind a window; splits."""
    monkeypatch.setattr(launch_decode, "SPLIT_KEYS", split_keys)
    positions = torch.tensor([0, 7, 69, 37])
    rows, turning = len(positions), queries + groups
    heads = torch.randn(rows, queries + 2 * groups, size).to(dtype)
    table = tuple(part[0, 0] for part in rope_angles(torch.arange(70)[None], size, 1e4, dtype))
    cos, sin = (part[positions][:, None, None] for part in table)  # [R, 1, 1, C]
    turned = ops.rotate(heads[:, :turning, None], cos, sin)[:, :, 0]
    for kept in {dtype, torch.float32}:
        buffer = torch.randn(rows + 1, 2 * groups, capacity, size).to(kept)
        given = buffer.clone()
        with launch.recorded() as launches:
            found = launch_decode.attend(heads.view(rows, -1), positions, table, given, queries, window, 70)
        assert [made.op for made in launches] == ["attend", "attend_join"][: 1 + (split_keys < 256)]
        for row, position in enumerate(positions.tolist()):
            new = torch.cat((turned[row, queries:], heads[row, turning:]))
            buffer[row, :, position % capacity] = new.to(kept)
            times = range(max(0, position + 1 - (window or capacity)), position + 1)
            k, v = buffer[row, :, [time % capacity for time in times]].double().chunk(2)  # [G, L, C]
            q = turned[row, :queries].to(kept).double().view(groups, -1, size)
            want = F.scaled_dot_product_attention(q, k, v).flatten()
            assert error(found[row], want) <= (1e-6 if dtype == torch.float32 else 2**-7)
        assert found.dtype == dtype and error(given, buffer) <= (1e-6 if dtype == torch.float32 else 0)


FULL = {"num_experts": 3, "num_experts_per_tok": 2}
DELTA = {"num_experts": 3, "expert_form": "delta", "shared_rank": 2, "expert_rank": 3}
FORMS = {
    "dense": {"rope_scaling": RopeScaling("linear", 2.0)},
    "biases": {"attention_bias": True, "tie_embeddings": True},
    "full": FULL,
    "window": {**FULL, "num_experts_per_tok": 1, "sliding_window": 5, "moe_layers": (1,)},
    "mixed windows": {"sliding_window": 6, "sliding_layers": (0,), "n_kv_heads": 4},
    "first decides": {**FULL, "router_context": "mean", "router_layers": "first"},
    "first of plain": {**FULL, "router_layers": "first"},
    "delta": {**DELTA, "num_experts_per_tok": 2, "router_context": "filter"},
    "adapter": {"expert_form": "delta", "shared_rank": 2, "num_experts": 0},
}


def make_model(dtype=torch.float32, **changes) -> Transformer:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "max_seq_len": 64}
    model = Transformer(ModelConfig(**{"vocab_size": 97, **sizes, **changes})).reset(0, 0.2).to(dtype)
    for name, parameter in model.named_parameters():
        if "delta" in name and ".b" in name:
            parameter.normal_(0.0, 0.2)
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 2.0)
    return model


def steps(model: Transformer, decode, lengths: tuple[int, ...], count: int, biased: bool, bound: float = 1e-5):
    """Outputs of a decoder, whose rows are padded, beside the model's, from caches that each fills itself."""
    rows, padded = len(lengths), power_of_two(len(lengths))
    caches = [KVCache(model.config, padded, 24, model.dtype) for _ in range(2)]
    tokens = torch.randint(0, 97, (1, sum(lengths)))
    model(tokens, cache=caches[0], documents=lengths)
    for row in range(rows):
        caches[1].set_row(row, caches[0].row(row))
    bias = torch.randn(padded, model.config.num_experts) if biased and model.config.is_moe else None
    for _ in range(count):
        given = torch.randint(0, 97, (padded, 1))
        step = caches[1].step(rows, 1)
        with pytest.MonkeyPatch.context() as patch:  # experts by other code
            patch.setattr(custom_ops, "HAS_TRITON", False)
            wanted = model(given[:rows], cache=step, expert_bias=None if bias is None else bias[:rows])
        step.advance()
        positions = torch.tensor(caches[0].lengths + [0] * (padded - rows))
        keys = min(power_of_two(max(caches[0].lengths) + 1), 24)
        output = decode(given, cache=GraphStep(caches[0], positions, keys), expert_bias=bias)
        caches[0].lengths = [length + 1 for length in caches[0].lengths]
        routing = [Routing(r.router_logits[:rows], r.gates[:rows], r.expert_ids[:rows]) for r in output.routing]
        yield ModelOutput(output.hidden[:rows], output.logits[:rows], routing), wanted
    for ours, theirs in zip(caches[0].tracks.values(), caches[1].tracks.values()):
        assert error(ours.buffer[:, :rows], theirs.buffer[:, :rows]) <= bound


@pytest.mark.parametrize(
    ("form", "lengths"), [*((form, (3, 9)) for form in FORMS), ("window", (4, 1, 9)), ("biases", (4,)), ("full", (9,))]
)
def test_a_step_is_that_of_the_model(form, lengths):
    model = make_model(**FORMS[form])
    before = copy.deepcopy(model.state_dict())
    decoder = GPUDecoder(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for found, wanted in steps(
        model, decoder, lengths, 3 if model.config.sliding_window else 2, form in ("full", "first decides")
    ):
        assert found.hidden.shape == wanted.hidden.shape and error(found.hidden, wanted.hidden) <= 1e-5
        assert error(found.logits, wanted.logits) <= 1e-5
        assert len(found.routing) == len(wanted.routing)
        for ours, theirs in zip(found.routing, wanted.routing):
            assert torch.equal(ours.expert_ids, theirs.expert_ids)
            assert error(ours.gates, theirs.gates) <= 1e-5
            assert error(ours.router_logits, theirs.router_logits) <= 1e-5


@pytest.mark.parametrize("form", ["biases", "full", "delta", "adapter"])
def test_a_step_in_16_bits_with_wider_routers(form):
    model = make_model(torch.bfloat16, **FORMS[form])
    for module in model.modules():
        if isinstance(module, MoEFeedForward) and module.gate is not None:
            module.gate.float()
    for found, wanted in steps(model, GPUDecoder(model), (3, 7), 1, True, 0.05):
        assert found.logits.dtype == torch.bfloat16 and error(found.logits, wanted.logits) <= 0.05
        for ours, theirs in zip(found.routing, wanted.routing):
            assert ours.router_logits.dtype == torch.float32 and error(ours.router_logits, theirs.router_logits) <= 0.05


def test_models_that_the_kernels_exclude():
    """Two dtypes, float64, packed weights, angles that move, experts in attention, more or wider ones than fit."""
    mixed = make_model()
    mixed.layers[0].attention.wo.bfloat16()
    packed = make_model()
    del packed.layers[1].attention.wq.weight
    packed.layers[1].attention.wq.weight = nn.Identity()
    turned = make_model()
    turned.layers[0].attention.wo.weight.data = turned.layers[0].attention.wo.weight.data.t()
    many = make_model(num_experts=65, num_experts_per_tok=1, hidden_dim=8)
    others = [make_model(torch.float64), make_model(rope_scaling=RopeScaling("dynamic", 2.0))]
    others.append(make_model(**FORMS["delta"], attention_experts=("q",)))
    with torch.device("meta"):
        others += [make_model(dim=8200, head_dim=32, hidden_dim=8), make_model(head_dim=260, hidden_dim=8)]
    assert not any(GPUDecoder.fits(model) for model in (mixed, packed, turned, many, *others))
    with pytest.raises(ValueError, match="one dtype"):
        GPUDecoder(mixed)


@pytest.mark.parametrize("rows", [1, 2])
def test_kernels_of_a_layer(rows):
    """Seven of ours and, for several rows, two products; all else happens once a step."""
    counts = []
    for layers in (2, 3):
        model = make_model(**{**FULL, "n_layers": layers})
        decoder, cache = GPUDecoder(model), KVCache(model.config, 2, 24)
        model.angles(24, model.dtype, model.device)
        positions, tokens = torch.ones(2, rows, dtype=torch.int64)
        with host_work() as (work, launched):
            decoder(tokens[:, None], cache=GraphStep(cache, positions, 16))
        assert work.waits == []
        counts.append((launched, work.kernels))
    (few, few_torch), (many, many_torch) = counts
    experts = ["route", "swiglu", "gemm", "combine"]
    own = ["gemv", "attend", "gemv", "add_norm"] if rows == 1 else ["add_norm", "attend", "add_norm"]
    assert few == (own + experts) * 2 + ["add_norm"] and many == (own + experts) * 3 + ["add_norm"]
    layer = [*["aten::mm"] * (0 if rows == 1 else 2), "language_experts::experts"]  # which is counted by its launches
    assert few_torch[0] == "aten::embedding" and few_torch[1:-1] == layer * 2 and many_torch[1:-1] == layer * 3
