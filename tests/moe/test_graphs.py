"""Steps as CUDA graphs: on a CPU a recorder replays the operations that it saw, with the arguments they had then."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from eval.random_models import pack, random_model
from kernels import ops
from moe import graphs
from moe.cache import KVCache
from moe.config import ModelConfig
from moe.experts import MoEFeedForward
from moe.graphs import GraphDecoder
from moe.inference.engine import Engine, Request
from moe.inference.generation import generate_many
from moe.inference.routing_stats import RoutingShares
from moe.inference.sampling import Sampling
from moe.rope import RopeScaling

FULL = {"num_experts": 3, "num_experts_per_tok": 2}
DELTA = {"num_experts": 3, "expert_form": "delta", "shared_rank": 2, "expert_rank": 3}
FORMS = {
    "dense": {},
    "biases": {"attention_bias": True, "tie_embeddings": True},
    "full": {**FULL, "router_context": "ema", "router_half_life": 4},
    "first decides": {**FULL, "num_experts_per_tok": 1, "router_context": "mean", "router_layers": "first"},
    "some layers": {**FULL, "moe_layers": (1,), "router_context": "mean"},
    "delta": {**DELTA, "num_experts_per_tok": 2, "router_context": "filter"},
    "windows": {**DELTA, "num_experts_per_tok": 1, "sliding_window": 5},
    "mixed windows": {**FULL, "sliding_window": 40, "sliding_layers": (0,)},
    "adapter": {"expert_form": "delta", "shared_rank": 2, "num_experts": 0},
    "attention": {**DELTA, "num_experts_per_tok": 2, "attention_experts": ("q", "v", "o"), "router_context": "ema"},
}
FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "is_nonzero", "equal")


class Tape(TorchDispatchMode):
    """Notes operations and their arguments; what they would change outside of the tape stays as it was."""

    def __init__(self):
        super().__init__()
        self.calls, self.own = [], set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket.__name__ in FORBIDDEN:
            raise RuntimeError(f"{function} is not permitted when stream is capturing")
        changes = function._schema.is_mutable
        outside = changes and storage(args[0]) not in self.own
        return self.note(function, args, kwargs, args[0] if outside else None, changes)

    def note(self, function, args, kwargs, result=None, changes=False):
        found = function(*args, **kwargs) if result is None else result
        given = {storage(part) for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)}
        fresh = [part for part in tree_leaves(found) if isinstance(part, torch.Tensor) and storage(part) not in given]
        self.own |= {storage(part) for part in fresh}
        if changes or fresh:
            self.calls.append((function, args, kwargs, fresh, found))  # views need no replay
        return found

    def replay(self):
        for function, args, kwargs, fresh, _ in self.calls:
            again = [part for part in tree_leaves(function(*args, **kwargs)) if isinstance(part, torch.Tensor)]
            for kept, part in zip(fresh, again):
                kept.copy_(part)


def storage(tensor) -> int:
    return tensor.untyped_storage()._cdata


class Recorder:
    """In the place of the one that needs a GPU."""

    tape: Tape | None = None
    recorded = 0
    replayed = 0

    def __init__(self, device):
        pass

    def run(self, function):
        return function()

    def record(self, function):
        tape = Recorder.tape = Tape()
        try:
            with pytest.MonkeyPatch.context() as patch, tape:
                patch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("a value was read on the host"))
                found = function()
        finally:
            Recorder.tape = None
        Recorder.recorded += 1

        def replay():
            Recorder.replayed += 1
            tape.replay()

        return replay, found


def as_one(function):
    """An operation that a tape notes as a whole: on a CPU experts are chosen on the host."""

    def call(*args, **kwargs):
        if Recorder.tape is None:
            return function(*args, **kwargs)
        with _disable_current_modes(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", TOLIST)
            return Recorder.tape.note(function, args, kwargs)

    return call


TOLIST = torch.Tensor.tolist


@pytest.fixture
def taped(monkeypatch):
    Recorder.recorded = Recorder.replayed = 0
    monkeypatch.setattr(graphs, "Recorder", Recorder)
    monkeypatch.setattr(GraphDecoder, "fits", staticmethod(lambda model: True))
    for name in ("experts_forward", "delta_experts_forward"):
        monkeypatch.setattr(ops, name, as_one(getattr(ops, name)))
    return Recorder


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(1, 97, (n,), generator=generator).tolist() for n in lengths]


def kept(found: list):
    """An ``on_output`` that keeps what it gets."""
    return lambda requests, output: found.append(([request.key for request in requests], output))


def close(ours, theirs, tolerance: float):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def compare(got, wanted, tolerance: float):
    """The same rows in the same order, the same choices, numbers that differ in their last bits."""
    assert [keys for keys, _ in got] == [keys for keys, _ in wanted]
    for (_, ours), (_, theirs) in zip(got, wanted):
        close(ours.logits, theirs.logits, tolerance)
        close(ours.hidden, theirs.hidden, tolerance)
        assert len(ours.routing) == len(theirs.routing)
        for mine, other in zip(ours.routing, theirs.routing):
            assert torch.equal(mine.expert_ids, other.expert_ids)
            close(mine.gates, other.gates, tolerance)
            close(mine.router_logits, other.router_logits, tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_graphs_write_what_the_model_writes(form, tiny_config, make_model, taped):
    """Rows of several lengths that leave one after another and wait for room, windows that wrap, a cache that grows."""
    model = make_model(replace(tiny_config, max_seq_len=600, **FORMS[form]), std=0.1)
    prompts, limits = prompts_of(250, 7, 124, 3, 3, 60), [12, 5, 11, 3, 8, 6]
    answers: dict[bool, list] = {}
    outputs: dict[bool, list] = {}
    for cuda_graphs in (False, True):
        answers[cuda_graphs], outputs[cuda_graphs] = [None] * 6, []
        engine = Engine(model, 3, on_output=kept(outputs[cuda_graphs]), cuda_graphs=cuda_graphs)
        engine._decoder = None
        for key, (prompt, limit) in enumerate(zip(prompts, limits)):
            done = lambda answer, key=key, found=answers[cuda_graphs]: found.__setitem__(key, answer)  # noqa: E731
            engine.submit(Request(prompt, limit, key=key, on_finished=done))
        engine.run()
    assert answers[True] == answers[False] and None not in answers[True]
    assert [len(answer.tokens) for answer in answers[True]] == limits
    compare(outputs[True], outputs[False], 1e-9)
    assert 3 <= taped.recorded <= 6 and taped.replayed >= 8


def test_experts_that_requests_ask_for(tiny_config, make_model, taped):
    """A bias of some rows and of none: both kinds of graphs, and a row's bias leaves with it."""
    model = make_model(replace(tiny_config, **FULL))
    biases = [(0.0, -torch.inf, 0.0), None, (-3.0, 2.0, 0.0), None]
    found = []
    for cuda_graphs in (False, True):
        outputs: list = []
        engine = Engine(model, 4, on_output=kept(outputs), cuda_graphs=cuda_graphs)
        for key, (prompt, bias) in enumerate(zip(prompts_of(4, 9, 2, 5), biases)):
            engine.submit(Request(prompt, (6, 14, 10, 14)[key], expert_bias=bias, key=key))
        engine.run()
        found.append(outputs)
    compare(found[1], found[0], 1e-9)
    assert {bias for _, _, bias in engine._graphs._graphs} == {True, False}
    for keys, output in found[1]:
        if 0 in keys:
            assert all(1 not in layer.expert_ids[keys.index(0)] for layer in output.routing)


@pytest.mark.parametrize("form", ["full", "delta", "dense"])
def test_int4_and_16_bits(form, tiny_config, make_model, taped):
    config = replace(tiny_config, dim=128, hidden_dim=128, **FORMS[form])
    model = make_model(config, dtype=torch.bfloat16, std=0.05)
    if form != "dense":
        for module in model.modules():
            if isinstance(module, MoEFeedForward):
                pack(module)
    prompts = prompts_of(12, 3, 30)
    outputs: list = [[], []]
    for cuda_graphs in (False, True):
        engine = Engine(model, 3, on_output=kept(outputs[cuda_graphs]), cuda_graphs=cuda_graphs)
        engine._decoder = None
        engine.submit(*(Request(prompt, 4, key=key) for key, prompt in enumerate(prompts)))
        engine.run()
    for (_, ours), (_, theirs) in zip(*outputs):
        assert (ours.logits - theirs.logits).abs().max() < 0.05 * theirs.logits.abs().max()
    assert len(outputs[1]) == 4 and taped.replayed == 2


def test_draws_statistics_and_drafts(tiny_config, make_model, taped):
    """With drafts a buffer is larger than its window, and steps with and without them take turns."""
    model = make_model(replace(tiny_config, sliding_window=9, **FULL), std=0.1)
    prompts = [prompt * 3 for prompt in prompts_of(6, 8, 5)]
    found = []
    for cuda_graphs in (False, True):
        shares = RoutingShares(model.config, 3)
        settings = {"max_new_tokens": 10, "sampling": Sampling(0.8, 20, seed=5), "cuda_graphs": cuda_graphs}
        answers = generate_many(model, prompts, on_output=shares, **settings)
        assert [a.tokens for a in generate_many(model, prompts, draft=3, **settings)] == [a.tokens for a in answers]
        assert [a.tokens for a in generate_many(model, prompts, **settings)] == [a.tokens for a in answers]
        found.append((answers, shares.gates))
    assert found[0][0] == found[1][0]
    assert (found[0][1] - found[1][1]).abs().max() < 1e-6


def test_a_graph_outlives_the_tables_of_other_caches(tiny_config, make_model, taped):
    """A longer cache of the same model has a longer table of angles; memory of the old one is not reused."""
    model = make_model(tiny_config)
    decoder = GraphDecoder(model)
    one, other = (KVCache(model.config, 1, 16, torch.float64) for _ in range(2))
    for number in range(6):
        step, tokens = one.step(1, 1), torch.tensor([[number + 3]])
        found = decoder(tokens, step)
        step.advance()
        assert one.lengths == [number + 1]
        assert (found.logits - model(tokens, cache=other).logits).abs().max() < 1e-9
        model(tokens, cache=KVCache(model.config, 1, 32 * (number + 1), torch.float64))
        (graph,) = decoder._graphs.values()
        assert graph.rope_table is not model.rope_table and len(graph.rope_table[0]) == 16
    assert taped.recorded == 1


def test_a_cache_that_moved_gets_new_graphs(tiny_config, make_model, taped):
    model = make_model(tiny_config)
    decoder = GraphDecoder(model)
    one, other = (KVCache(model.config, 2, 8, torch.float64) for _ in range(2))
    for number in range(12):
        if number in (3, 7):
            one.grow(2, 8 * number)
            other.grow(2, 8 * number)
        step, tokens = one.step(2, 1), torch.tensor([[number + 3], [2 * number]])
        found = decoder(tokens, step)
        step.advance()
        assert (found.logits - model(tokens, cache=other).logits).abs().max() < 1e-9
    assert taped.recorded == 3 and len(decoder._graphs) == 1


def test_an_operation_that_cannot_be_recorded_is_reported_once(tiny_config, make_model, taped, monkeypatch):
    model = make_model(replace(tiny_config, num_experts=3, router_context="mean"))
    wanted = generate_many(model, prompts_of(4, 7), max_new_tokens=9, cuda_graphs=False)
    plain = ops.experts_forward

    def with_a_wait(x, *args):
        assert x.sum().item() == x.sum()
        return plain(x, *args)

    monkeypatch.setattr(ops, "experts_forward", with_a_wait)
    with pytest.warns(UserWarning, match="decoding goes on without CUDA graphs: .*stream is capturing") as caught:
        assert generate_many(model, prompts_of(4, 7), max_new_tokens=9) == wanted
    assert len(caught) == 1 and taped.replayed == 0


def test_a_fused_step_that_fails_gives_way_to_the_model(tiny_config, make_model, taped, monkeypatch):
    """Halfway, when routers have already noted a token: it does not count twice."""
    model = make_model(replace(tiny_config, num_experts=3, router_context="mean"))
    wanted = generate_many(model, prompts_of(4, 7), max_new_tokens=9, cuda_graphs=False)
    plain, decoders = GraphDecoder.__init__, []

    def broken(self, model):
        def step(tokens, *, cache, expert_bias):
            cache.cache.router_states += 1.0
            self._graphs["of the fused step"] = None
            decoders.append(self)
            raise RuntimeError("out of resource: registers\nmore")

        plain(self, model)
        self._step = step

    monkeypatch.setattr(GraphDecoder, "__init__", broken)
    with pytest.warns(UserWarning, match=r"a fused step failed \(out of resource: registers\)$") as caught:
        assert generate_many(model, prompts_of(4, 7), max_new_tokens=9) == wanted
    assert len(caught) == 1 and taped.replayed > 0
    (decoder,) = decoders
    assert "of the fused step" not in decoder._graphs  # its memory may be gone


def test_a_model_whose_angles_depend_on_the_length_runs_without(tiny_config, make_model):
    assert not GraphDecoder.fits(make_model(tiny_config))  # on a CPU
    with torch.device("meta"):
        models = [
            make_model(replace(tiny_config, rope_scaling=scaling))
            for scaling in (None, RopeScaling("linear", 2.0), RopeScaling("dynamic", 2.0))
        ]
    for model in models:
        model.__class__ = type("OnGPU", (type(model),), {"device": torch.device("cuda")})
    assert [GraphDecoder.fits(model) for model in models] == [True, True, False]
    models[0].reshard = lambda: None  # as FSDP adds it
    assert not GraphDecoder.fits(models[0])


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("form", ["dense", "int4", "delta", "plain router", "attention"])
@torch.no_grad()
def test_graphs_on_a_gpu(form, rows):
    """Each step beside the eager one from the same cache, while it grows; both experts speak, so none is a close call.

    Whole answers are compared in float32, where roundings decide nothing.
    """
    kind = {"num_experts": 2, "num_experts_per_tok": 2, "router_context": "filter"} if form != "dense" else {}
    if form == "plain router":
        kind["router_context"] = "none"
    if form in ("delta", "attention"):
        kind |= {"expert_form": "delta", "shared_rank": 16, "expert_rank": 16}
    if form == "attention":  # which the fused kernels exclude
        kind |= {"attention_experts": ("q", "k", "v", "o"), "router_context": "ema"}
    config = ModelConfig(500, 256, 2, 8, 2, 256, max_seq_len=1024, **kind)
    dtype = torch.float32 if form == "dense" else torch.bfloat16
    torch.manual_seed(0)
    model = random_model(config, torch.device("cuda"), dtype, packed=form in ("int4", "plain router")).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.1)
    # Short prompts run on the kernels of steps: others would have to be compiled.
    decoder, lengths = GraphDecoder(model), ((110, 5, 60) if form == "dense" else (11, 5, 14))[:rows]
    one, other = (KVCache(config, 4, 200, dtype, "cuda") for _ in range(2))
    tokens = torch.randint(0, 500, (1, sum(lengths)), device="cuda")
    bias = torch.tensor([[1.0, -torch.inf]] * rows, device="cuda") if kind else None
    warnings.filterwarnings("error", message="decoding goes on without")
    for cache in (one, other):
        model(tokens, cache=cache, documents=lengths)
    for number in range(40):
        if number == 30:
            one.grow(4, 400)
            other.grow(4, 400)
        given, say = torch.randint(0, 500, (rows, 1)), bias if number % 4 == 3 else None
        first, second = one.step(rows, 1), other.step(rows, 1)
        wanted = model(given.cuda(), cache=second, expert_bias=say)
        found = decoder(given, first, say)
        first.advance()
        second.advance()
        close(found.logits, wanted.logits, 0.05 * float(wanted.logits.abs().max()))
        assert len(found.routing) == len(wanted.routing)
        for ours, theirs in zip(found.routing, wanted.routing):
            close(ours.gates.sort().values, theirs.gates.sort().values, 0.05)
        for ours, theirs in zip(one.tracks.values(), other.tracks.values()):  # roundings do not add up
            ours.buffer[:rows] = theirs.buffer[:rows]
        one.router_states.copy_(other.router_states)
    assert not decoder._failed and {key[1] for key in decoder._graphs} == {256 if form == "dense" else 128}
    prompts = [[3 + i, 7, 11 * i] for i in range(rows)]
    answers = [generate_many(model, prompts, max_new_tokens=270, cuda_graphs=flag) for flag in (True, False)]
    assert [len(answer.tokens) for answer in answers[0]] == [270] * rows
    assert form != "dense" or answers[0] == answers[1]
