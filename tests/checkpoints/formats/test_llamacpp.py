"""What is written goes through llama.cpp's converters, where they are, and comes back with the same logits.

    CONVERT_HF_TO_GGUF=PATH/TO/convert_hf_to_gguf.py python -m pytest tests/checkpoints/formats/test_llamacpp.py

The scripts are in llama.cpp's repository, and in the source distribution of llama-cpp-python (vendor/llama.cpp). With
llama-cpp-python installed, llama.cpp itself computes the logits of extracted experts and of adapters.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.model_io import load_model, save_model
from checkpoints.transforms.upcycle import upcycle_model

SCRIPT = os.environ.get("CONVERT_HF_TO_GGUF", "")


pytestmark = pytest.mark.skipif(not SCRIPT, reason="CONVERT_HF_TO_GGUF does not name llama.cpp's converter")
TEXT = "def add(a, b):\n\treturn a + b  # é\n"


def mistral_tokenizer():
    mistral_common = pytest.importorskip("mistral_common")
    from moe.tokenizer import load_tokenizer

    return load_tokenizer(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1")


def convert(script: str | Path, source: Path, out: Path, *flags) -> Path:
    command = [sys.executable, script, source, "--outfile", out, "--outtype", "f32", *flags]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out


@pytest.mark.parametrize(("form", "layers"), [("dense", ""), ("full", "all"), ("full", "1")])
@pytest.mark.parametrize("template", ["plain", "mistral-instruct"])
def test_the_converter_takes_what_is_written(tmp_path, tiny_config, make_model, form, layers, template):
    tokenizer = mistral_tokenizer()
    config = replace(tiny_config, vocab_size=tokenizer.vocab_size)
    save_model(make_model(config, dtype=torch.float32), tokenizer, tmp_path / "dense", template=template)
    if form == "full":
        flags = ["--expert-form", "full", "--moe-layers", layers, "--no-proof"]
        assert main(["upcycle", str(tmp_path / "dense"), str(tmp_path / "full"), *flags]) == 0
    ours, back = load_model(tmp_path / form), load_model(convert(SCRIPT, tmp_path / form, tmp_path / "a.gguf"))
    assert back.template == ours.template == template and back.config.num_experts == ours.config.num_experts
    assert back.tokenizer.encode(TEXT) == ours.tokenizer.encode(TEXT)
    tokens = torch.tensor([ours.tokenizer.encode(TEXT)])
    with torch.no_grad():
        expected, found = ours.model(tokens).logits, back.model(tokens).logits
    if layers == "1":  # GGUF has no moe_layers: layer 0 comes back as equal experts, which round in another order
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    else:
        assert torch.equal(found, expected)


def llamacpp_logits(tokens: list[int], model: Path, lora: Path | None = None) -> torch.Tensor:
    """[S, V] from llama.cpp, with keys and values in float32."""
    llama_cpp = pytest.importorskip("llama_cpp")
    adapter = None if lora is None else str(lora)
    cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    llama = llama_cpp.Llama(
        str(model), n_ctx=128, logits_all=True, verbose=False, lora_path=adapter, n_threads=1, n_gpu_layers=0, **cache
    )
    llama.eval(tokens)
    return torch.from_numpy(llama.scores[: len(tokens)].copy())


@torch.no_grad()
@pytest.mark.parametrize("layers", ["all", "1"])
def test_llamacpp_computes_what_an_expert_does(tmp_path, tiny_config, make_model, layers):
    """As an extracted model, and as an adapter of the base."""
    lora_script = Path(SCRIPT).with_name("convert_lora_to_gguf.py")
    if not lora_script.is_file():
        pytest.skip("CONVERT_HF_TO_GGUF: no convert_lora_to_gguf.py beside the converter")
    tokenizer = mistral_tokenizer()
    config = replace(tiny_config, vocab_size=tokenizer.vocab_size, dim=64, hidden_dim=96)
    base = save_model(make_model(config, dtype=torch.float32, std=0.1), tokenizer, tmp_path / "base", template="plain")
    settings = {"moe_layers": (1,)} if layers == "1" else {}
    model = upcycle_model(load_model(base).model, ("python", "java"), "delta", 1, 4, 4, **settings)
    for name, parameter in model.named_parameters():
        if "_delta" in name:
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    save_model(model, tokenizer, tmp_path / "mixture", base=base, template="plain")
    tokens = tokenizer.encode(TEXT)
    expected = model(torch.tensor([tokens]), forced_experts=torch.ones(len(tokens), dtype=torch.int64)).logits[0]
    plain = load_model(base).model(torch.tensor([tokens])).logits[0]
    assert (plain - expected).abs().max() > 0.1
    assert main(["extract", str(tmp_path / "mixture"), str(tmp_path / "java"), "--language", "java"]) == 0
    found = llamacpp_logits(tokens, convert(SCRIPT, tmp_path / "java", tmp_path / "java.gguf"))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert main(["adapters", str(tmp_path / "mixture"), str(tmp_path / "adapters")]) == 0
    adapter = convert(lora_script, tmp_path / "adapters" / "java", tmp_path / "lora.gguf", "--base", base)
    found = llamacpp_logits(tokens, convert(SCRIPT, base, tmp_path / "base.gguf"), adapter)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
