"""What is written goes through llama.cpp's converter, where there is one, and comes back with the same logits.

    CONVERT_HF_TO_GGUF=PATH/TO/convert_hf_to_gguf.py python -m pytest tests/checkpoints/formats/test_llamacpp.py

The script is in llama.cpp's repository, and in the source distribution of llama-cpp-python (vendor/llama.cpp).
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

SCRIPT = os.environ.get("CONVERT_HF_TO_GGUF", "")


@pytest.mark.skipif(not SCRIPT, reason="CONVERT_HF_TO_GGUF does not name llama.cpp's converter")
@pytest.mark.parametrize(("form", "layers"), [("dense", ""), ("full", "all"), ("full", "1")])
@pytest.mark.parametrize("template", ["plain", "mistral-instruct"])
def test_the_converter_takes_what_is_written(tmp_path, tiny_config, make_model, form, layers, template):
    mistral_common = pytest.importorskip("mistral_common")
    from moe.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1")
    config = replace(tiny_config, vocab_size=tokenizer.vocab_size)
    save_model(make_model(config, dtype=torch.float32), tokenizer, tmp_path / "dense", template=template)
    if form == "full":
        flags = ["--expert-form", "full", "--moe-layers", layers, "--no-proof"]
        assert main(["upcycle", str(tmp_path / "dense"), str(tmp_path / "full"), *flags]) == 0
    command = [sys.executable, SCRIPT, str(tmp_path / form), "--outfile", str(tmp_path / "a.gguf"), "--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True)
    ours, back = load_model(tmp_path / form), load_model(tmp_path / "a.gguf")
    assert back.template == ours.template == template and back.config.num_experts == ours.config.num_experts
    text = "def add(a, b):\n\treturn a + b  # é\n"
    assert back.tokenizer.encode(text) == ours.tokenizer.encode(text)
    tokens = torch.tensor([ours.tokenizer.encode(text)])
    with torch.no_grad():
        assert torch.equal(back.model(tokens).logits, ours.model(tokens).logits)
