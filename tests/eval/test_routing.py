"""``eval routing``: what it measures of mixtures, of lone experts and of dense models, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from checkpoints.model_io import save_model
from eval.__main__ import main
from eval.routing import SWITCHED, tokens_to_switch
from moe.config import ModelConfig
from moe.data.prompt import encode_example, instruction_for
from moe.model import Transformer
from moe.tokenizer import train_sentencepiece

CODE = {"python": "def one(x):\n    return 1\n", "cpp": "int one(int x) { return 1; }\n"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece([*CODE.values(), "Write a Python function. Return one."] * 20, 400, None)


@pytest.fixture
def call(tokenizer, tmp_path, capsys):
    """Measures a model with experts for these languages on the data in ``tmp_path``; exit code and output."""
    (tmp_path / "test").mkdir()
    for language, code in CODE.items():
        row = {"language": language, "text": "Return one.", "code": code}
        (tmp_path / "test" / f"{language}.jsonl").write_text(json.dumps(row) + "\n")

    def run(experts: tuple[str, ...], *flags: str, context: int = 160) -> tuple[int, str, str]:
        sizes = {"vocab_size": tokenizer.vocab_size, "dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2}
        some = {"num_experts": len(experts), "num_experts_per_tok": 1, "expert_languages": experts} if experts else {}
        model = Transformer(ModelConfig(**sizes, hidden_dim=48, max_seq_len=context, **some)).reset(0, std=0.2)
        save_model(model, tokenizer, tmp_path / "model", template="plain", force=True)
        line = ["routing", "--model", str(tmp_path / "model"), "--data", str(tmp_path), "--device", "cpu", *flags]
        try:
            code = main(line)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return code, *capsys.readouterr()

    return run


def numbers(path) -> dict:
    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_short_answers_and_lone_experts_are_measured_for_what_they_have(call, tmp_path):
    out = tmp_path / "out.json"
    code, text, _ = call(("python", "cpp"), "--output", str(out))
    found = numbers(out)
    change = found["change, named"]
    assert code == 0 and 8 <= len(change["own_share_by_token"]) < 128 and change["loss"] > 0
    assert {"named", "unnamed", "misnamed", "forced"} < set(found) and found["forced"]["own_share"]["cpp"] == 1
    code, text, _ = call(("cpp",), "--output", str(out))
    assert code == 0 and set(numbers(out)) == {"model", "seed", "named", "unnamed", "forced"} and "second" not in text
    code, text, _ = call((), "--languages", "python", "cpp", "--output", str(out))
    assert code == 0 and numbers(out)["misnamed"]["own_share"] == {} and "second language" in text


def test_mistakes_are_found_before_anything_is_shown(call, tokenizer, tmp_path):
    lengths = [
        len(encode_example(tokenizer, "plain", instruction_for("Return one.", said), code)[0])
        for said in (None, *CODE)
        for code in CODE.values()
    ]
    few, half = min(lengths) - 1, max(lengths)
    assert half // 2 < min(lengths), "what fits the context does not fit half of it"
    for experts, flags, context, message in (
        ((), ("--languages", "cpp", "cpp"), 160, "--languages names one twice: cpp cpp; give each once"),
        (("python", "cpp"), (), few, f"none of 1 python pairs fits into {few} tokens; give more or shorter ones"),
        (("python", "cpp"), (), half, f"none of 1 python pairs fits into {half // 2} tokens; give more or"),
        (("python",), ("--output", str(tmp_path / "none" / "x.json")), 160, "does not exist; create it first"),
        (("python",), ("--pairs", "0"), 160, "--pairs is 0, expected at least 1"),
    ):
        code, out, err = call(experts, *flags, context=context)
        assert code == 2 and out == "" and message in err, (flags, err)


def test_the_first_of_steady_tokens_after_a_change():
    assert tokens_to_switch(torch.tensor([0.0, 0.0, *[1.0] * 20])) == 2
    assert tokens_to_switch(torch.tensor([1.0, 1.0])) == 0, "of an answer that is shorter than what is looked at"
    assert tokens_to_switch(torch.full((20,), SWITCHED - 0.01)) is None
