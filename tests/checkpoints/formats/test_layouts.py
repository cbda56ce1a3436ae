"""Other layouts of the same models: read where they hold the same numbers, else refused by what they are."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.__main__ import main
from checkpoints.formats import open_checkpoint
from checkpoints.model_io import load_model
from moe.errors import UserError
from tests.checkpoints.formats.test_config_keys import change, close, logits_of_transformers, our_logits
from tests.checkpoints.formats.test_gguf import WIDE, Kind, write_gguf


@pytest.mark.parametrize("settings", [{}, {"num_local_experts": 3, "tie_word_embeddings": True}], ids=str)
@pytest.mark.parametrize("shard", ["20KB", "1GB"])
def test_mixtral_in_the_layout_of_transformers_5(tmp_path, hf_model, settings, shard):
    hf_model("mixtral", **settings).save_pretrained(tmp_path / "new", save_original_format=False, max_shard_size=shard)
    names = [name for file in (tmp_path / "new").glob("*.safetensors") for name in load_file(file)]
    assert "model.layers.0.mlp.experts.gate_up_proj" in names
    expected = logits_of_transformers(tmp_path / "new")
    assert close(our_logits(tmp_path / "new"), expected)
    assert main(["convert", str(tmp_path / "new"), str(tmp_path / "out")]) == 0
    assert close(logits_of_transformers(tmp_path / "out"), expected)
    assert close(our_logits(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("gate_up_proj", (4, 95, 32)),
        ("gate_up_proj", (3, 96, 32)),
        ("down_proj", (4, 32)),
        ("gate_up_proj", (4, 96, 31)),
    ],
)
def test_stacked_experts_of_another_shape(tmp_path, hf_model, name, shape):
    hf_model("mixtral").save_pretrained(tmp_path, save_original_format=False)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {f"model.layers.1.mlp.experts.{name}": torch.zeros(shape)}, file)
    with pytest.raises(UserError, match=r"model\.safetensors: tensor 'model\.layers\.1\..*(missing|shape)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("source", ["new", "classic", "gguf", "old gguf"])
def test_mixtral_as_input_of_every_command(tmp_path, hf_model, capsys, source):
    theirs = hf_model("mixtral", **{**WIDE, "hidden_size": 128, "intermediate_size": 128, "head_dim": 32})
    path = tmp_path / "model"
    if "gguf" in source:
        path = tmp_path / "model.gguf"
        write_mixtral(path, theirs, old=source == "old gguf")
    else:
        theirs.save_pretrained(path, save_original_format=source == "classic")
    theirs.save_pretrained(tmp_path / "theirs")
    expected = logits_of_transformers(tmp_path / "theirs")
    assert close(our_logits(path), expected)
    assert main(["inspect", str(path)]) == 0 and "4 full" in capsys.readouterr().out
    for command, *more in (["convert"], ["quantize", "--no-perplexity"], ["collapse", "--weights", "2=1"]):
        assert main([command, str(path), str(tmp_path / command), *more]) == 0
    assert close(our_logits(tmp_path / "convert"), expected)
    one = load_model(tmp_path / "collapse").model
    assert torch.equal(
        one.layers[1].feed_forward.w1.weight, load_model(path).model.layers[1].feed_forward.experts.w1[2]
    )
    assert load_model(tmp_path / "quantize").config.num_experts == 4
    assert main(["verify", str(tmp_path / "convert"), "--verify-with", "transformers"]) == 0


def write_mixtral(path, model, old: bool) -> None:
    """A GGUF file; ``old``: one tensor per expert, as in the first months."""
    if not old:
        write_gguf(path, model)
        return
    split = {}
    layers = model.config.num_hidden_layers
    stacks = [f"blk.{layer}.ffn_{kind}_exps.weight" for layer in range(layers) for kind in ("gate", "down", "up")]
    state = model.state_dict()
    for layer in range(layers):
        gate, up = state[f"model.layers.{layer}.mlp.experts.gate_up_proj"].chunk(2, dim=1)
        down = state[f"model.layers.{layer}.mlp.experts.down_proj"]
        for kind, value in (("gate", gate), ("up", up), ("down", down)):
            for expert, one in enumerate(value):
                split[f"blk.{layer}.ffn_{kind}.{expert}.weight"] = one.contiguous().numpy()

    def extra(writer):
        for name, value in split.items():
            writer.add_tensor(name, value, raw_dtype=Kind.F32)

    write_gguf(path, model, skip=stacks, extra=extra)


def test_an_expert_that_a_gguf_file_lacks_or_has_too_many(tmp_path, hf_model):
    model = hf_model("mixtral", **WIDE)
    write_mixtral(tmp_path / "a.gguf", model, old=True)
    content = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(content.replace(b"blk.1.ffn_up.3.weight", b"blk.1.ffn_up.7.weight"))
    with pytest.raises(UserError, match=r"'layers\.1\.feed_forward\.experts\.3\.w3\.weight' is missing"):
        open_checkpoint(tmp_path / "a.gguf")


def wrapped(prefix: str):
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def packed(*ends: str):
    def change_names(tensors):
        rest = dict(tensors)
        value = rest.pop("model.layers.0.mlp.up_proj.weight")
        return rest | {f"model.layers.0.mlp.up_proj.{end}": value.clone() for end in ends}

    return change_names


@pytest.mark.parametrize(
    ("edit", "changes", "message", "command"),
    [
        (wrapped("base_model.model."), {}, "an adapter of peft", "AutoPeftModelForCausalLM"),
        (wrapped("language_model."), {}, "inside a multimodal one", "AutoModelForImageTextToText"),
        (
            lambda t: {n.replace("model.", "model.language_model.", 1): v for n, v in t.items()},
            {},
            "inside a multimodal one",
            "AutoModelForImageTextToText",
        ),
        (wrapped("_orig_mod."), {}, "torch.compile", "removeprefix"),
        (wrapped("module."), {}, "distributed wrapper", "removeprefix"),
        (packed("qweight", "qzeros", "scales", "g_idx"), {}, "quantized by GPTQ", "gptqmodel"),
        (packed("qweight", "qzeros", "scales"), {}, "quantized by AWQ", "gptqmodel"),
        (packed("weight", "weight_scale_inv"), {}, "quantized by FP8", "gptqmodel"),
        (packed("weight", "scales", "biases"), {}, "quantized by MLX", "mlx_lm"),
        (None, {"quantization": {"group_size": 64, "bits": 4}}, "quantized by MLX", "mlx_lm"),
        (None, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized by GPTQ", "gptqmodel"),
        (None, {"quantization_config": {"quant_method": "awq"}}, "quantized by AWQ", "gptqmodel"),
        (None, {"quantization_config": {"quant_method": "fp8"}}, "quantized by FP8", "gptqmodel"),
        (None, {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantized by BITSANDBYTES", "dequantize()"),
        (None, {"quantization_config": {"bits": 4}}, "quantization_config", "dequantize()"),
        (
            None,
            {"model_type": "mistral3", "text_config": {"model_type": "mistral"}},
            "multimodal model .*'mistral3'.* around a 'mistral' one",
            "AutoModelForImageTextToText",
        ),
    ],
)
def test_foreign_directories_are_refused_by_what_they_are(mistral_directory, edit, changes, message, command):
    file = mistral_directory / "model.safetensors"
    if edit is not None:
        save_file(edit(load_file(file)), file, {"format": "pt"})
    change(mistral_directory, **changes)
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(mistral_directory)
    said = str(caught.value)
    assert command in said and str(mistral_directory) in said and "\n" not in said
    code = re.search(r"python -c ('.*')", said)
    if code is not None:
        compile(shlex.split(code[1])[0], "command", "exec")


def test_fp8_weights_without_a_word_in_the_config(mistral_directory):
    file = mistral_directory / "model.safetensors"
    save_file({name: value.to(torch.float8_e4m3fn) for name, value in load_file(file).items()}, file)
    with pytest.raises(UserError, match="tensors of dtype F8_: these weights are quantized by FP8"):
        open_checkpoint(mistral_directory)


def test_the_command_for_wrapped_names_works(mistral_directory, tmp_path, monkeypatch):
    file = mistral_directory / "model.safetensors"
    original = load_file(file)
    save_file(wrapped("_orig_mod.")(original), file, {"format": "pt"})
    with pytest.raises(UserError) as caught:
        open_checkpoint(mistral_directory)
    monkeypatch.chdir(tmp_path)
    exec(shlex.split(str(caught.value).split("python -c ")[1])[0])
    again = load_file(tmp_path / "OUT.safetensors")
    assert again.keys() == original.keys() and all(torch.equal(again[name], original[name]) for name in original)


def test_an_adapter_is_no_model(tmp_path, mistral_directory):
    (mistral_directory / "model.safetensors").rename(mistral_directory / "adapter_model.safetensors")
    (mistral_directory / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter of peft, no model; merge it"):
        open_checkpoint(mistral_directory)
    (mistral_directory / "config.json").unlink()
    with pytest.raises(UserError, match="is an adapter of peft, no model; merge it"):
        open_checkpoint(mistral_directory)


def test_a_mixture_of_our_own_still_reads_json(tmp_path, hf_model):
    """Keys that our writer adds are on the list."""
    hf_model("mistral").save_pretrained(tmp_path / "dense")
    languages = ["--languages", "python", "java", "--moe-layers", "1", "--expert-form", "full"]
    assert main(["upcycle", str(tmp_path / "dense"), str(tmp_path / "moe"), *languages]) == 0
    settings = json.loads((tmp_path / "moe" / "config.json").read_text())
    assert settings["moe_layers"] == [1] and close(our_logits(tmp_path / "moe"), our_logits(tmp_path / "dense"))


@pytest.mark.parametrize(
    "case",
    [
        "12-tied-in-config-but-two-matrices/model",
        "17-mistral-with-layer_types/model",
        "17-mistral-with-layer_types/ministral",
        "18-mixtral-in-transformers-5-layout/model",
        "13-gguf-linear-rope-scaling-ignored/scaled.gguf",
        "19-gguf-mixtral-one-tensor-per-expert/mixtral-2023.gguf",
    ],
)
def test_reported_cases(tmp_path, shared_data, case):
    path = shared_data / "cases" / case
    if not path.exists():
        pytest.skip("no such case in shared/data")
    theirs = path
    if path.is_file():  # transformers reads the directory that convert makes of it
        assert main(["convert", str(path), str(tmp_path / "out")]) == 0
        theirs = tmp_path / "out"
        settings = json.loads((theirs / "config.json").read_text())
        assert settings.get("rope_scaling", {}).get("factor") == (4.0 if case.startswith("13") else None)
        assert settings.get("num_local_experts") == (None if case.startswith("13") else 4)
    assert close(our_logits(path), logits_of_transformers(theirs))


@pytest.mark.parametrize("different", [False, True])
def test_two_output_matrices_in_mistrals_own_format(tmp_path, hf_model, different):
    from tests.checkpoints.formats.test_consolidated import write_consolidated

    theirs = hf_model("mistral")
    if not different:
        theirs.lm_head.weight.data = theirs.model.embed_tokens.weight.data.clone()
    directory = write_consolidated(tmp_path / "own", theirs, tied_embeddings=True)
    assert open_checkpoint(directory).config.tie_embeddings is not different
    with torch.no_grad():
        tokens = torch.arange(40)[None]
        assert close(load_model(directory).model(tokens).logits, theirs(tokens).logits)
