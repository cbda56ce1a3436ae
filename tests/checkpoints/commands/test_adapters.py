"""adapters, and upcycle --adapters: experts as PEFT adapters and back, with peft itself as the judge."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.model_io import load_model, save_model
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.upcycle import upcycle_model
from moe.data.synthetic import generate_pairs
from moe.tokenizer import train_sentencepiece
from tests.checkpoints.command_line import run_main

LANGUAGES = ("python", "java", "cpp")
TOKENS = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def base(tmp_path, hf_model) -> Path:
    hf_model("mistral", num_hidden_layers=3).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def mixture(tmp_path, base):
    """Writes a delta mixture whose experts differ to ``tmp_path / "mixture"`` and returns it."""

    def make(**settings):
        sizes = {"expert_rank": 2, "shared_rank": 3, "num_experts_per_tok": 1, **settings}
        model = upcycle_model(load_model(base).model, LANGUAGES, "delta", **sizes)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "_delta" in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        save_model(model, None, tmp_path / "mixture", base=base)
        return model

    return make


@torch.no_grad()
def forced(model, expert: int) -> torch.Tensor:
    return model(TOKENS, forced_experts=torch.full((TOKENS.numel(),), expert)).logits


def transformers_model(path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"moe_layers": (0, 2)},
        {"shared_rank": 0, "delta_scale": 0.3},
        {"router_context": "ema", "router_layers": "first"},
        {"attention_experts": ("q", "k", "v", "o"), "moe_layers": (1, 2)},
    ],
    ids=["all layers", "some layers", "no shared delta", "context", "attention"],
)
def test_adapters_compute_what_the_experts_do(tmp_path, base, mixture, settings):
    peft = pytest.importorskip("peft")
    model = mixture(**settings)
    assert run_main("adapters", tmp_path / "mixture", tmp_path / "out") == 0
    assert run_main("verify", tmp_path / "out") == 0
    adapted = peft.PeftModel.from_pretrained(transformers_model(base), tmp_path / "out" / "python", "python")
    for language in LANGUAGES[1:]:  # several languages on one base
        adapted.load_adapter(tmp_path / "out" / language, language)
    for expert, language in enumerate(LANGUAGES):
        adapted.set_adapter(language)
        expected = forced(model, expert)
        assert (adapted(TOKENS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    with adapted.disable_adapter():
        assert (adapted(TOKENS).logits - forced(model, 0)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "settings",
    [{}, {"moe_layers": (0, 2)}, {"shared_rank": 0, "delta_scale": 0.5}, {"attention_experts": ("k", "o")}],
)
def test_a_mixture_survives_the_round_trip_bit_by_bit(tmp_path, base, mixture, settings):
    model = mixture(**settings)
    assert run_main("adapters", tmp_path / "mixture", tmp_path / "out") == 0
    adapters = [tmp_path / "out" / language for language in LANGUAGES]
    assert run_main("upcycle", base, tmp_path / "back", "--adapters", *adapters) == 0
    first, second = (open_any(tmp_path / name) for name in ("mixture", "back"))
    assert second.config == first.config
    deltas = [name for name in first.tensors if "_delta" in name]
    assert deltas and all(torch.equal(first.tensors[name].read(), second.tensors[name].read()) for name in deltas)
    back = load_model(tmp_path / "back").model
    assert all(torch.equal(forced(back, expert), forced(model, expert)) for expert in range(3))
    assert run_main("verify", tmp_path / "back") == 0 and run_main("verify", tmp_path / "out" / "java") == 0
    card = (tmp_path / "back" / "README.md").read_text()
    assert "Put together from experts that were trained apart" in card


@pytest.fixture
def trained(tmp_path, base):
    """Makes an adapter with peft, as other people train them: ``trained("java", r=4, use_rslora=True)``."""
    peft = pytest.importorskip("peft")

    def make(name: str, seed: int = 0, **settings):
        found = {"r": 4, "lora_alpha": 12, "target_modules": ["gate_proj", "up_proj", "down_proj"], **settings}
        torch.manual_seed(seed)
        model = peft.get_peft_model(transformers_model(base), peft.LoraConfig(task_type="CAUSAL_LM", **found))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_(0.0, 0.1)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name, model.eval()

    return make


@torch.no_grad()
def test_adapters_of_others_become_experts(tmp_path, base, trained):
    """Ranks, scales, targets and layers of their own, by adapter and by module."""
    made = [
        trained("python", 1),
        trained(
            "java",
            2,
            r=2,
            lora_alpha=5,
            use_rslora=True,
            target_modules=["down_proj", "v_proj"],
            layers_to_transform=[1],
        ),
        trained("cpp", 3, r=3, rank_pattern={"up_proj": 7}, alpha_pattern={r"layers\.0\.mlp.up_proj": 40}),
    ]
    paths = [path for path, _ in made]
    assert run_main("upcycle", base, tmp_path / "out", "--adapters", *paths, "--num-experts-per-tok", "2") == 0
    loaded = load_model(tmp_path / "out")
    assert loaded.config.expert_rank == 7 and loaded.config.shared_rank == 0
    assert loaded.config.expert_languages == LANGUAGES and loaded.config.num_experts_per_tok == 2
    for expert, (_, theirs) in enumerate(made):
        expected = theirs(TOKENS).logits
        assert (forced(loaded.model, expert) - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_layers_that_no_adapter_changes_stay_dense(tmp_path, base, trained):
    made = [trained(name, seed, layers_to_transform=[1]) for seed, name in enumerate(("a", "b"))]
    flags = ["--languages", "rust", "go", "--adapters", *(path for path, _ in made)]
    assert run_main("upcycle", base, tmp_path / "out", *flags) == 0
    loaded = load_model(tmp_path / "out")
    assert loaded.config.moe_layers == (1,) and loaded.config.expert_languages == ("rust", "go")
    expected = made[1][1](TOKENS).logits
    assert (forced(loaded.model, 1) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which also changes the base"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_an_expert_cannot_represent_is_named(tmp_path, base, trained, capsys, settings, words):
    paths = [trained("python")[0], trained("java", **settings)[0]]
    capsys.readouterr()
    assert run_main("upcycle", base, tmp_path / "out", "--adapters", *paths) == 2
    error = capsys.readouterr().err
    assert words in error and str(paths[1]) in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_damaged_and_foreign_adapters_are_told(tmp_path, base, mixture, hf_model, capsys):
    mixture()
    assert run_main("adapters", tmp_path / "mixture", tmp_path / "ad") == 0
    folder = tmp_path / "ad" / "java"
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    settings, tensors = json.loads(config.read_text()), load_file(weights)

    def refused(*adapters, source=base, flags=()) -> str:
        capsys.readouterr()
        assert run_main("upcycle", source, tmp_path / "out", *flags, "--adapters", *adapters) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tmp_path / "out").exists()
        return error

    assert "name the adapters in it (cpp, java, python)" in refused(tmp_path / "ad")
    assert "give the folder of a PEFT adapter" in refused(base, flags=("--languages", "python"))
    folder.rename(tmp_path / "mine")
    assert "add --languages, in the order of --adapters" in refused(tmp_path / "mine")
    (tmp_path / "mine").rename(folder)
    assert "names 1 languages for 2 adapters" in refused(folder, folder, flags=("--languages", "python"))
    assert "name one twice" in refused(folder, folder)
    assert "leave --expert-form full out" in refused(folder, flags=("--expert-form", "full"))
    assert "2 experts per token, of 1" in refused(folder, flags=("--num-experts-per-tok", "2"))
    for change, words in (
        ({"r": 4}, "shape [4, 32]"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"lora_alpha": None}, "lora_alpha is 'None'"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; expected 'LORA'"),
        ({"rank_pattern": {"(a+)+": 3}}, "rank_pattern has '(a+)+'"),
        ({"alpha_pattern": ["x"]}, "alpha_pattern has"),
        ({"layers_to_transform": 7}, "layers_to_transform is 7, which leaves out model.layers."),
        ({"layers_to_transform": "0"}, "layers_to_transform is 0, which leaves out model.layers."),
        ({"target_modules": ["gate_proj", "mlp.up_proj"]}, ", which leaves out model.layers.0.mlp.down_proj"),
        ({"exclude_modules": ["layers.1.mlp.up_proj"]}, ", which leaves out model.layers.1.mlp.up_proj"),
        ({"rank_pattern": "up_proj"}, "rank_pattern has 'up_proj'"),
        ({"something_new": {"rank": 3}}, "something_new is {'rank': 3}, which an expert cannot represent"),
    ):
        config.write_text(json.dumps(settings | change))
        assert words in refused(folder)
    config.write_text(json.dumps(settings))
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    assert "lora_B of model.layers.1.mlp.up_proj is missing" in refused(folder)
    save_file({**tensors, name.replace("layers.1", "layers.7"): tensors[name].clone()}, weights)
    assert "is missing" in refused(folder)
    save_file({**tensors, name.replace("mlp.", "mlp_"): tensors[name].clone()}, weights)
    assert "is not one that an expert can represent" in refused(folder)
    weights.rename(folder / "adapter_model.bin")
    assert "pickled, which is never read" in refused(folder)
    hf_model("mistral", hidden_size=64, num_hidden_layers=1).save_pretrained(tmp_path / "other")
    for language in ("python", "cpp"):
        assert (
            "give" in (error := refused(tmp_path / "ad" / language, source=tmp_path / "other")) and "own base" in error
        )


def test_models_without_deltas_have_no_adapters(tmp_path, base, mixture, capsys):
    mixture()
    assert run_main("merge", tmp_path / "mixture", tmp_path / "full", "--no-proof") == 0
    capsys.readouterr()
    assert run_main("adapters", tmp_path / "full", tmp_path / "out") == 2
    assert "full experts, which no low-rank adapter holds" in capsys.readouterr().err
    assert run_main("adapters", base, tmp_path / "out") == 2
    assert "is a dense model" in capsys.readouterr().err and not (tmp_path / "out").exists()
    model = load_model(tmp_path / "mixture").model
    with torch.no_grad():
        model.norm.weight += 0.5
    save_model(model, None, tmp_path / "more", base=base)
    assert run_main("adapters", tmp_path / "more", tmp_path / "out") == 2
    assert "changes the base's norm.weight, too" in capsys.readouterr().err and not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_lone_adapter_is_one(tmp_path, base):
    peft = pytest.importorskip("peft")
    model = upcycle_model(load_model(base).model, (), shared_rank=3)
    for name, parameter in model.named_parameters():
        if "_delta" in name:
            parameter += 0.1
    save_model(model, None, tmp_path / "mixture", base=base)
    assert run_main("adapters", tmp_path / "mixture", tmp_path / "out") == 0
    adapted = peft.PeftModel.from_pretrained(transformers_model(base), tmp_path / "out" / "adapter")
    expected = model(TOKENS).logits
    assert (adapted(TOKENS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_adapter_of_another_base_is_told(tmp_path, base, mixture, capsys):
    mixture()
    assert run_main("adapters", tmp_path / "mixture", tmp_path / "ad", "--base-id", "org/Base-7B") == 0
    capsys.readouterr()
    line = ("upcycle", base, tmp_path / "out", "--dry-run", "--adapters", tmp_path / "ad" / "java")
    assert run_main(*line) == 0 and "was trained on org/Base-7B" in capsys.readouterr().err
    assert run_main(*line, "--base-id", "org/Base-7B") == 0 and "was trained" not in capsys.readouterr().err
    assert run_main("upcycle", "--base", base, tmp_path / "out") == 2
    assert "the base comes first" in capsys.readouterr().err


def test_writing_adapters_is_all_or_nothing(tmp_path, base, mixture, capsys, monkeypatch):
    mixture()
    line = ("adapters", tmp_path / "mixture", tmp_path / "out")
    with monkeypatch.context() as patch:
        from checkpoints.transforms import adapters

        real = adapters.write_model_directory

        def broken(target, *rest, **settings):
            if target.name == "java":
                raise OSError(28, "No space left on device")
            return real(target, *rest, **settings)

        patch.setattr(adapters, "write_model_directory", broken)
        assert run_main(*line) == 2 and "is full" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "mixture"]
    assert run_main(*line, "--dry-run") == 0 and not (tmp_path / "out").exists()
    assert run_main(*line) == 0
    assert run_main(*line) == 2 and "exists already" in capsys.readouterr().err
    assert run_main(*line, "--force", "--dtype", "bfloat16") == 0
    tensors = load_file(tmp_path / "out" / "cpp" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert run_main("verify", tmp_path / "out") == 0
    path = tmp_path / "out" / "cpp" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert run_main("verify", tmp_path / "out") == 2 and "is damaged" in capsys.readouterr().err


@torch.no_grad()
def test_a_router_is_fitted_through_the_adapters_on_data(tmp_path, hf_model, capsys):
    """On a folder of pairs; the first layer's router sees the document and sends it to its language."""
    languages = ("python", "java")
    for language in languages:
        for split, count, seed in (("train", 60, 0), ("test", 8, 1)):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"language": language, "text": pair.text, "code": pair.code})
                for pair in generate_pairs(language, count, seed, split)
            ]
            (tmp_path / "data" / split / f"{language}.jsonl").write_text("\n".join(lines))
    texts = [f"{pair.text}\n{pair.code}" for name in languages for pair in generate_pairs(name, 30)]
    tokenizer = train_sentencepiece(texts, 400, tmp_path / "tokenizer")
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden_size": 64, "max_position_embeddings": 1024}
    hf_model("mistral", std=0.05, **sizes).save_pretrained(tmp_path / "plain")
    base = save_model(load_model(tmp_path / "plain").model, tokenizer, tmp_path / "base", template="plain")
    model = upcycle_model(load_model(base).model, languages, "delta", 1, 2, 2)
    for name, parameter in model.named_parameters():
        if "_delta" in name:
            parameter.normal_(0.0, 0.05)
    save_model(model, tokenizer, tmp_path / "mixture", base=base, template="plain")
    assert run_main("adapters", tmp_path / "mixture", tmp_path / "ad") == 0
    flags = ["--router", "fitted", "--data", tmp_path / "data", "--router-context", "mean"]
    out, adapters = tmp_path / "out", [tmp_path / "ad" / name for name in languages]
    assert run_main("upcycle", base, out, *flags, "--adapters", *adapters) == 0
    printed = capsys.readouterr().out
    assert float(re.search(r"([\d.]+)% of held-out tokens to their language", printed)[1]) > 85, printed
    config = load_model(out).config
    assert config.router_context == "mean" and config.router_layers == "first" and config.num_experts_per_tok == 1
    assert run_main("upcycle", base, tmp_path / "no", *flags[:2], "--data", tmp_path / "gone") == 2
    assert "no such directory" in capsys.readouterr().err
