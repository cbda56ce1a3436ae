"""remove-language and compose: the experts that stay compute what they did."""

from __future__ import annotations

import pytest
import torch

from checkpoints.model_card import training_of
from checkpoints.model_io import load_model, save_model
from checkpoints.transforms.upcycle import upcycle_model
from moe.tokenizer import train_sentencepiece
from tests.checkpoints.command_line import run_main

LANGUAGES = ("python", "java", "cpp")
TOKENS = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def base(tmp_path, hf_model):
    """A dense model with a tokenizer."""
    hf_model("mistral", num_hidden_layers=3, vocab_size=400).save_pretrained(tmp_path / "base")
    texts = ["def f(x):\n    return x\n", "int f(int x) { return x; }\n", "public static void main(String[] a) {}\n"]
    train_sentencepiece(texts * 50, 400, tmp_path / "base", 0)
    return tmp_path / "base"


def write(path, base, languages, seed=1, **settings):
    """A mixture with experts that differ from each other."""
    form = settings.pop("expert_form", "delta")
    sizes = {} if form == "full" else {"expert_rank": 2, "shared_rank": 3}
    model = upcycle_model(load_model(base).model, languages, form, **{**sizes, "num_experts_per_tok": 2, **settings})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_delta" in name or ".experts." in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    loaded = load_model(base)
    save_model(model, loaded.tokenizer, path, template="plain", base=base if form == "delta" else None)
    return model


@torch.no_grad()
def forced(model, expert: int) -> torch.Tensor:
    return model(TOKENS, forced_experts=torch.full((TOKENS.numel(),), expert)).logits


CONTEXT = {"router_context": "ema", "router_layers": "first", "num_experts_per_tok": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        CONTEXT,
        {"moe_layers": (0, 2)},
        {"attention_experts": ("q", "o")},
        {"expert_form": "full"},
        {"expert_form": "full", **CONTEXT},
    ],
)
def test_the_experts_that_stay_compute_what_they_did(tmp_path, base, settings):
    model = write(tmp_path / "mixture", base, LANGUAGES, **settings)
    assert run_main("remove-language", tmp_path / "mixture", tmp_path / "out", "--language", "java") == 0
    assert run_main("verify", tmp_path / "out") == 0
    smaller = load_model(tmp_path / "out")
    assert smaller.config.expert_languages == ("python", "cpp")
    for place, expert in enumerate((0, 2)):
        assert torch.equal(forced(smaller.model, place), forced(model, expert))
    for name, gate in smaller.model.named_parameters():
        if "gate" in name:
            assert torch.equal(gate, model.get_parameter(name)[[0, 2]])
    assert run_main("remove-language", tmp_path / "out", tmp_path / "one", "--language", "cpp") == 0
    one = load_model(tmp_path / "one")
    assert one.config.num_experts_per_tok == one.config.num_experts == 1
    assert torch.equal(forced(one.model, 0), one.model(TOKENS).logits)


def test_composed_experts_compute_what_they_did(tmp_path, base):
    """Of mixtures with shared deltas, targets, ranks and scales of their own; the router is fitted anew."""
    left = write(tmp_path / "left", base, ("python", "java"), 1, **CONTEXT, attention_experts=("k", "v"))
    right = write(tmp_path / "right", base, ("cpp",), 2, **CONTEXT, shared_rank=1, delta_scale=0.5)
    arguments = ("compose", tmp_path / "left", tmp_path / "right", tmp_path / "out", "--router-prompts", "20")
    assert run_main(*arguments) == 0
    assert run_main("verify", tmp_path / "out") == 0
    whole = load_model(tmp_path / "out")
    assert whole.config.expert_languages == ("python", "java", "cpp") and whole.template == "plain"
    assert (whole.config.router_context, whole.config.router_layers) == ("ema", "first")
    assert whole.config.attention_experts == ("k", "v")
    for expert, (model, place) in enumerate(((left, 0), (left, 1), (right, 0))):
        torch.testing.assert_close(forced(whole.model, expert), forced(model, place), rtol=0, atol=1e-5)


def test_cards_tell_what_trained_the_parts(tmp_path, base):
    for name, language in (("left", "python"), ("right", "cpp")):
        write(tmp_path / name, base, (language,), num_experts_per_tok=1)
        with (tmp_path / name / "README.md").open("a") as card:
            card.write(f"\n## Recipe\n\n| setting | value |\n| --- | --- |\n| training | {name} pairs |\n")
        assert run_main("adapters", tmp_path / name, tmp_path / f"{name}-adapters") == 0
    out = tmp_path / "out"
    assert run_main("compose", tmp_path / "left", tmp_path / "right", out, "--router-prompts", "20") == 0
    assert training_of(out) == "for Python: left pairs; for C++: right pairs"
    parts = [tmp_path / "left-adapters" / "python", tmp_path / "right-adapters" / "cpp"]
    assert run_main("upcycle", base, tmp_path / "again", "--adapters", *parts) == 0
    assert training_of(tmp_path / "again") == training_of(out)


@pytest.mark.parametrize("projections", [(), ("q", "v")])
def test_what_was_taken_apart_comes_back(tmp_path, base, projections):
    model = write(tmp_path / "mixture", base, LANGUAGES, **CONTEXT, attention_experts=projections)
    assert run_main("remove-language", tmp_path / "mixture", tmp_path / "a", "--language", "cpp") == 0
    assert run_main("remove-language", tmp_path / "mixture", tmp_path / "b", "--language", "python", "java") == 0
    assert run_main("compose", tmp_path / "a", tmp_path / "b", tmp_path / "out", "--router-prompts", "20") == 0
    again = load_model(tmp_path / "out").model
    assert (again.config.shared_rank, again.config.expert_rank) == (3, 2)
    for name, parameter in model.named_parameters():
        assert "gate" in name or torch.equal(parameter, again.get_parameter(name)), name


def test_mistakes(tmp_path, base, capsys, hf_model):
    write(tmp_path / "mixture", base, LANGUAGES)
    write(tmp_path / "full", base, LANGUAGES, expert_form="full")
    hf_model("mistral", seed=5, num_hidden_layers=3, vocab_size=400).save_pretrained(tmp_path / "other base")
    write(tmp_path / "python", base, ("python",), num_experts_per_tok=1)
    other = upcycle_model(load_model(tmp_path / "other base", template="plain").model, ("go",), "delta", 1)
    save_model(other, None, tmp_path / "go", base=tmp_path / "other base")
    for arguments, message in (
        (("remove-language", "mixture", "out", "--language", "go"), "has no expert for 'go'; it has python, java, cpp"),
        (("remove-language", "mixture", "out", "--language", *LANGUAGES), "these are all experts of"),
        (("remove-language", "base", "out", "--language", "java"), "has no experts; give a mixture"),
        (("remove-language", "mixture", "base", "--language", "java"), "base"),
        (("compose", "mixture", "out"), "alone; give at least two mixtures"),
        (("compose", "mixture", "full", "out"), "full has no delta experts"),
        (("compose", "mixture", "python", "out"), "both have an expert for python; take one away first"),
        (("compose", "mixture", "go", "out"), "changes another base than"),
        (("compose", "mixture", "go", "mixture"), "changes another base than"),
    ):
        paths = [tmp_path / word if (tmp_path / word).exists() or word == "out" else word for word in arguments[1:]]
        if "--language" in arguments:
            paths = [*paths[:3], *arguments[4:]]
        assert run_main(arguments[0], *paths) == 2, arguments
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
