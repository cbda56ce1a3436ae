"""Int4 feed-forwards: what is written is what the kernels' packing says, and calibration beats rounding to nearest."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.commands import quantize
from checkpoints.formats import open_checkpoint
from checkpoints.formats.parameters import fill_model, meta_model
from checkpoints.model_io import load_model, save_model
from checkpoints.storage.safetensors_file import load_tensors, save_tensors
from checkpoints.transforms.gptq import InputMoments, gptq, gptq_rounder, perplexity
from checkpoints.transforms.quantize import quantized_tensors
from kernels.int4 import pack, unpack
from moe.cache import KVCache
from moe.config import ModelConfig
from moe.data.synthetic import generate_pairs
from moe.errors import UserError
from moe.inference.generation import generate_many
from moe.tokenizer import train_sentencepiece
from tests.checkpoints.command_line import run_main
from tests.pair_files import write_pairs

CONFIG = ModelConfig(vocab_size=97, dim=128, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=256, max_seq_len=128)


@pytest.fixture
def saved(tmp_path, make_model):
    def make(**changes):
        model = make_model(replace(CONFIG, **changes), dtype=torch.float32, std=0.08)
        save_model(model, None, tmp_path / "model")
        return tmp_path / "model", model

    return make


@pytest.mark.parametrize("experts", [0, 3], ids=["dense", "mixture"])
def test_weights_are_the_kernels_packing_and_load_again(tmp_path, saved, experts):
    path, model = saved(num_experts=experts)
    assert run_main("quantize", path, tmp_path / "int4", "--no-perplexity") == 0
    loaded = load_model(tmp_path / "int4")
    for name, parameter in loaded.model.named_parameters():
        original = model.get_parameter(name)
        if ".feed_forward.w" in name or ".experts." in name:
            assert torch.equal(parameter, unpack(pack(original)).view_as(parameter))
        else:
            assert torch.equal(parameter, original)
    stored = load_file(tmp_path / "int4" / "model.safetensors")
    name = "block_sparse_moe.experts.1.w2" if experts else "mlp.down_proj"
    original = model.layers[1].feed_forward
    packed = pack(original.experts.w2[1] if experts else original.w2.weight)
    assert torch.equal(stored[f"model.layers.1.{name}.int4_packed"], packed.packed[0])
    assert torch.equal(stored[f"model.layers.1.{name}.int4_scales"], packed.scales[0])
    settings = json.loads((tmp_path / "int4" / "config.json").read_text())["quantization_config"]
    assert settings == {"quant_method": "int4-split128", "bits": 4, "group_size": 128, "rounding": "nearest"}
    assert run_main("verify", tmp_path / "int4") == 0


def test_widths_that_are_no_multiple_of_128_have_smaller_groups(tmp_path, saved, tiny_config, make_model, capsys):
    path, _ = saved(hidden_dim=192)
    assert run_main("quantize", path, tmp_path / "int4", "--no-perplexity") == 0
    assert "6 of 6 feed-forward matrices to int4 in groups of 128 and 64" in capsys.readouterr().out
    stored = load_file(tmp_path / "int4" / "model.safetensors")
    assert stored["model.layers.0.mlp.down_proj.int4_packed"].shape == (3, 128, 32)
    save_model(make_model(tiny_config), None, tmp_path / "narrow")
    assert run_main("quantize", tmp_path / "narrow", tmp_path / "some", "--no-perplexity") == 0
    assert "others have an input width that is not a multiple of 32" in capsys.readouterr().out
    save_model(make_model(replace(tiny_config, dim=40, hidden_dim=48)), None, tmp_path / "odd")
    assert run_main("quantize", tmp_path / "odd", tmp_path / "none", "--no-perplexity") == 2
    assert "multiple of 32" in capsys.readouterr().err


FORMATS = {"int4": [], "int4, rest int8": ["--rest", "int8"], "int8": ["--bits", "8"]}


@pytest.mark.parametrize(
    ("form", "bits"),
    [
        ("dense", "int8"),
        ("tied", "int4, rest int8"),
        ("full", "int4"),
        ("some layers", "int8"),
        ("delta", "int4"),
        ("delta", "int8"),
    ],
)
def test_quantized_models_run_as_they_are(tmp_path, make_model, form, bits, capsys):
    """Packed in memory they compute what their decoded weights do, in the bytes that inspect states."""
    changes = {
        "dense": {},
        "tied": {"tie_embeddings": True},
        "full": {"num_experts": 3},
        "some layers": {"num_experts": 3, "moe_layers": (1,)},
        "delta": {"num_experts": 3, "expert_form": "delta", "shared_rank": 2, "expert_rank": 2},
    }
    config, base, out, flags = replace(CONFIG, **changes[form]), tmp_path / "model", tmp_path / "packed", FORMATS[bits]
    save_model(make_model(config, dtype=torch.float32, std=0.08), None, base)
    assert run_main("quantize", base, out, "--no-perplexity", *flags) == 0
    decoded, packed = load_model(out).model, load_model(out, torch.bfloat16, packed=True).model
    kept = [type(module).__name__ for module in packed.modules()].count("PackedWeights")
    attention = 0 if flags == [] else 8 + 1
    assert kept == attention + 6
    tokens = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = decoded(tokens).logits, packed(tokens).logits.float()
        assert (found - wanted).square().mean() < 0.001 * wanted.square().mean()
        steps = [generate_many(m, tokens.tolist(), max_new_tokens=3) for m in (decoded, packed)]
    assert [len(a.tokens) for a in steps[1]] == [3, 3]
    capsys.readouterr()
    assert run_main("inspect", out) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory, as stored")]
    sizes = {id(t): t.nbytes for t in (*packed.parameters(), *packed.buffers())}
    taken = sum(sizes.values()) + KVCache(config, 1, 4096).nbytes
    number, unit = line.split("stored")[1].split(" with")[0].split()
    assert float(number) * 1024 ** ["B", "KiB", "MiB"].index(unit) == pytest.approx(taken, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_keeps_int4_weights_where_it_multiplies_them(tmp_path, make_model, dtype):
    """The kernels take bfloat16 alone; otherwise weights are decoded. The meta device stands for a GPU."""
    save_model(make_model(CONFIG, dtype=torch.float32), None, tmp_path / "model")
    assert run_main("quantize", tmp_path / "model", tmp_path / "out", "--no-perplexity") == 0
    model = meta_model(CONFIG)
    fill_model(model, open_checkpoint(tmp_path / "out").tensors, dtype, "meta", packed=True)
    kept = [type(module).__name__ for module in model.modules()].count("Int4Weights")
    assert kept == (6 if dtype == torch.bfloat16 else 0) and model.layers[0].attention.wq.weight.dtype == dtype


def test_running_takes_the_memory_that_inspect_states(tmp_path, make_model, capsys):
    """What a process holds after loading, beyond what it held before: neither decoded nor joined weights stay."""
    config = replace(CONFIG, dim=1024, hidden_dim=4096, n_layers=1, n_heads=8, n_kv_heads=1, num_experts=4)
    model, out = tmp_path / "model", tmp_path / "packed"
    save_model(make_model(config, dtype=torch.bfloat16, std=0.02), None, model)
    assert run_main("quantize", model, out, "--bits", "8", "--no-perplexity") == 0
    capsys.readouterr()
    assert run_main("inspect", out) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("memory, as stored")]
    number, unit = line.split("stored")[1].split(" with")[0].split()
    code = (
        "import sys, torch\n"
        "from checkpoints.model_io import load_model\n"
        "from moe.hardware import keep_freed_memory, used_memory\n"
        "from moe.cache import KVCache\n"
        "torch.set_num_threads(1)\n"
        "keep_freed_memory(torch.device('cpu'))\n"
        "(torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)).sum()\n"
        "before = used_memory(torch.device('cpu'))\n"
        "model = load_model(sys.argv[1], torch.bfloat16, packed=True).model\n"
        "cache = KVCache(model.config, 1, 4096)\n"
        "print(used_memory(torch.device('cpu')) - before)\n"
    )
    taken = int(subprocess.run([sys.executable, "-c", code, out], capture_output=True, check=True).stdout)
    stated = float(number) * 1024 ** ["B", "KiB", "MiB"].index(unit)
    assert stated > 40 << 20 and taken == pytest.approx(stated, rel=0.05, abs=14 << 20)  # modules that loading imports


def test_int8_takes_no_other_flags(tmp_path, saved, capsys):
    path, _ = saved()
    assert run_main("quantize", path, tmp_path / "x", "--bits", "8", "--method", "gptq") == 2
    assert "leave --method and --rest out" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_gptq_equals_rounding_when_inputs_are_independent():
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gptq(weight, torch.eye(256)).packed, pack(weight).packed)


def test_gptq_lowers_the_error_on_correlated_inputs():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, 256, generator=generator) / 16
    inputs = torch.randn(2000, 256, generator=generator) @ mixing + 0.5
    inputs[:, 7] = 0
    weight = torch.randn(64, 256, generator=generator)

    def error(quantized) -> float:
        return ((inputs @ (unpack(quantized)[0] - weight).t()) ** 2).mean().item()

    moments = inputs.t() @ inputs / len(inputs)
    assert error(gptq(weight, moments)) < 0.5 * error(pack(weight))


@pytest.mark.parametrize("experts", [0, 3], ids=["dense", "mixture"])
def test_calibration_brings_the_model_closer_to_itself(saved, experts):
    path, model = saved(num_experts=experts)
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(0, 20, (60,), generator=generator).tolist() for _ in range(20)]
    source = open_checkpoint(path)
    nearest = {t.name: t.read() for t in quantized_tensors(source)}
    moments = InputMoments(model, sequences[:16])
    calibrated = {t.name: t.read() for t in quantized_tensors(source, gptq_rounder(moments))}
    assert nearest.keys() == calibrated.keys()
    errors = {}
    for kind, tensors in (("nearest", nearest), ("gptq", calibrated)):
        save_tensors(path / "model.safetensors", tensors)
        settings = json.loads((path / "config.json").read_text())
        settings["quantization_config"] = {"quant_method": "int4-split128"}
        (path / "config.json").write_text(json.dumps(settings))
        other = load_model(path, check=False).model
        with torch.no_grad():
            errors[kind] = sum(
                (other(torch.tensor([s])).logits - model(torch.tensor([s])).logits).square().mean().item()
                for s in sequences[16:]
            )
    assert errors["gptq"] < 0.9 * errors["nearest"]


def test_perplexity_is_the_exponential_of_the_mean_loss(saved):
    _, model = saved()
    rows = [[1, 2, 3, 4], [5, 6]]
    losses = []
    for row in rows:
        logits = model(torch.tensor([row])).logits[0].log_softmax(-1)
        losses += [-logits[i, token].item() for i, token in enumerate(row[1:])]
    assert perplexity(model, rows) == pytest.approx(float(torch.tensor(losses).mean().exp()), rel=1e-5)


def test_incomplete_pairs_are_refused(tmp_path, saved):
    path, _ = saved()
    assert run_main("quantize", path, tmp_path / "int4", "--no-perplexity") == 0
    file = tmp_path / "int4" / "model.safetensors"
    tensors = load_tensors(file)
    stem = "model.layers.0.mlp.up_proj"
    for changed in (
        {name: value for name, value in tensors.items() if name != f"{stem}.int4_scales"},
        {name: value for name, value in tensors.items() if name != f"{stem}.int4_packed"},
        {**tensors, f"{stem}.int4_scales": tensors[f"{stem}.int4_scales"].float()},
        {**tensors, f"{stem}.int4_packed": tensors[f"{stem}.int4_packed"][:, :, :32]},
    ):
        save_tensors(file, changed)
        with pytest.raises(UserError, match=r"up_proj\.(int4_(packed|scales)' has no|weight' has shape)"):
            open_checkpoint(tmp_path / "int4")


def test_other_quantizations_are_refused(saved):
    path, _ = saved()
    settings = json.loads((path / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="quantization_config"):
        open_checkpoint(path)


def test_real_pairs_calibrate_and_measure(tmp_path, monkeypatch, capsys, make_model):
    data = tmp_path / "data"
    for split in ("train", "validation"):
        (data / split).mkdir(parents=True)
        for language in ("python", "java", "javascript", "cpp"):
            write_pairs(generate_pairs(language, 12, 0, split=split), data / split / f"{language}.jsonl.gz")
    texts = [pair.text + "\n" + pair.code for pair in generate_pairs("python", 60, 0)]
    tokenizer = train_sentencepiece(texts, 400, tmp_path / "tokenizer")
    model = make_model(replace(CONFIG, vocab_size=tokenizer.vocab_size, max_seq_len=512), dtype=torch.float32, std=0.08)
    save_model(model, tokenizer, tmp_path / "model", template="plain")
    limits = ["--calibration", "5", "--evaluation", "3", "--method", "gptq"]
    assert run_main("quantize", tmp_path / "model", tmp_path / "real", "--data", data, *limits) == 0
    printed = capsys.readouterr().out
    assert "calibrated on 20 prompts" in printed and "on 12 held-out prompts" in printed
    read = []
    monkeypatch.setattr(quantize, "write_rewritten", lambda rewrite, *rest: read.append(rewrite.job))
    monkeypatch.setattr(quantize, "directory_bytes", lambda path: 0)
    for more in ([], ["--data", data], ["--data", data]):
        flags = ["--no-perplexity", *limits, *more]
        assert run_main("quantize", tmp_path / "model", tmp_path / "other", *flags) == 0
    assert read[0] != read[1] == read[2], "a rerun takes finished shards only when it calibrates on the same prompts"
    assert run_main("quantize", tmp_path / "model", tmp_path / "none", "--data", tmp_path) == 2
    assert "no split 'validation'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
