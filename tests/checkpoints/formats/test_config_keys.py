"""Every key of a config: logits equal to transformers', or a refusal that names the key."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.formats import open_checkpoint
from checkpoints.formats.config_keys import HARMLESS, NEUTRAL, READ, READ_OF_MIXTURES, is_neutral
from checkpoints.model_io import load_model, read_config
from moe.errors import Notice, UserError
from moe.inference.generation import generate_many

KINDS = ("mistral", "llama", "mixtral")
THETA = {"rope_theta": 1e4}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **THETA}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **THETA}
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0, **THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0, **THETA},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 32},
    "llama3-context": LLAMA3,
    "yarn": YARN,
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.3},
    "yarn-one-mscale": {**YARN, "mscale": 0.7},
    "yarn-betas": {**YARN, "beta_fast": 5.0, "beta_slow": 2.0, "truncate": False},
    "yarn-attention": {**YARN, "attention_factor": 1.3},
    "yarn-narrow": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 7.0], "long_factor": [1.0, 1.5, 2.0, 7.0]}
    | {"factor": 4.0, "original_max_position_embeddings": 64, **THETA},
}
# Values of keys whose type alone does not say one that is valid and not neutral; None: no key of a config.json.
VALUES = {
    "vocab_size": 53,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "hidden_act": "gelu",
    "num_experts_per_tok": 1,
    "rope_parameters": SCALINGS["llama3"],
    "sliding_window": 5,
    "architectures": ["SomethingForCausalLM"],
    "dtype": "float32",
    "id2label": {"0": "A", "1": "B"},
    "label2id": {"A": 0, "B": 1},
    "problem_type": "regression",
    "pretraining_tp": 2,
    "model_type": "gemma2",
    "_name_or_path": "somewhere",
    "transformers_version": "4.0.0",
    "pad_token_id": 3,
    "eos_token_id": [5, 6],
}


def tokens(vocab_size: int, length: int = 40) -> torch.Tensor:
    return torch.randint(0, vocab_size, (2, length), generator=torch.Generator().manual_seed(5))


def logits_of_transformers(directory: Path, length: int = 40) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    model.config.return_dict = True  # transformers itself fails without
    with torch.no_grad():
        return model(tokens(model.config.vocab_size, length)).logits


def our_logits(directory: Path, length: int = 40) -> torch.Tensor:
    model = load_model(directory).model
    with torch.no_grad():
        return model(tokens(model.config.vocab_size, length)).logits


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max())))


def change(directory: Path, **changes) -> None:
    path = directory / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "ABSENT"}))


def all_keys() -> list[tuple[str, str]]:
    from transformers import LlamaConfig, MistralConfig, MixtralConfig

    classes = {"mistral": MistralConfig, "llama": LlamaConfig, "mixtral": MixtralConfig}
    keys = [(kind, key) for kind, made in classes.items() for key in made().to_dict()]
    return keys + [(kind, alias) for kind, made in classes.items() for alias in made.attribute_map]


def other_value(key: str, neutral):
    """A valid value of a key that is not its default."""
    if key in VALUES:
        return VALUES[key]
    if isinstance(neutral, bool):
        return not neutral
    if isinstance(neutral, int):
        return neutral + 1
    if isinstance(neutral, float):
        return neutral * 3 if neutral else 0.3
    pytest.fail(f"transformers has a new key {key} (default {neutral!r}); add a value for it here")


@pytest.mark.parametrize(("kind", "key"), all_keys(), ids=str)
def test_every_key_that_transformers_knows_is_honored_or_refused(tmp_path, hf_model, kind, key):
    """The key is set when the weights are made, too, so that sizes fit; then in a file that was made without it."""
    theirs = hf_model(kind)
    neutral = theirs.config.to_dict().get(key, getattr(theirs.config, key, None))
    value = other_value(key, neutral)
    for when in ("made with it", "changed to it"):
        directory = tmp_path / when
        model = theirs
        if when == "made with it" and key not in ("model_type", "transformers_version"):
            eager = {"attn_implementation": "eager"}  # output_attentions needs it
            model = hf_model(kind, **{key: value}, **eager)
        model.save_pretrained(directory)
        change(directory, **{key: value})
        try:
            ours = our_logits(directory)
        except UserError as error:
            named = key in str(error) or "has shape" in str(error) or "missing" in str(error)
            assert named, f"{key} is refused by another name: {error}"
        else:
            assert close(ours, logits_of_transformers(directory)), f"{key} {value!r} is read differently"


def test_lists_of_keys_do_not_overlap():
    lists = (READ, READ_OF_MIXTURES, HARMLESS, set(NEUTRAL))
    assert sum(map(len, lists)) == len(set().union(*lists))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("query_pre_attn_scalar", 256),
        ("partial_rotary_factor", 0.5),
        ("logit_scale", 0.0625),
        ("logits_scaling", 8.0),
        ("embedding_multiplier", 12.0),
        ("residual_multiplier", 0.22),
        ("attention_multiplier", 0.0078125),
        ("use_qk_norm", True),
        ("no_rope_layers", [1, 1]),
        ("rope_interleaved", True),
        ("is_causal", False),
        ("num_experts", 4),
        ("shared_expert_intermediate_size", 32),
        ("pruned_heads", {"0": [1]}),
        ("auto_map", {"AutoModelForCausalLM": "modeling_x.X"}),
        ("per_layer_config", {"0": {"head_dim": 4}}),
        ("a_key_of_tomorrow", 1),
        ("mlp_bias", True),
        ("attention_bias", True),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_other_models_are_refused_by_name(tmp_path, hf_model, kind, key, value):
    hf_model(kind).save_pretrained(tmp_path)
    change(tmp_path, **{key: value})
    if (kind, key) == ("llama", "attention_bias"):
        with pytest.raises(UserError, match=r"q_proj\.bias' is missing"):
            open_checkpoint(tmp_path)
        return
    with pytest.raises(UserError, match=rf"config\.json: {key} is ") as caught:
        open_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_sliding_window_is_harmless_where_there_is_none(tmp_path, hf_model, kind):
    hf_model(kind, sliding_window=None).save_pretrained(tmp_path)
    change(tmp_path, use_sliding_window=False, sliding_window=None)
    assert open_checkpoint(tmp_path).config.sliding_window is None
    others = [{"sliding_window": 8}, {"layer_types": ["sliding_attention"] * 2, "sliding_window": None}]
    others += [{"sliding_window": "ABSENT"}] if kind == "mistral" else []
    for other in others:
        change(tmp_path, layer_types="ABSENT")
        change(tmp_path, **other)
        with pytest.raises(UserError, match=r"use_sliding_window is 'False'"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "a_key_of_tomorrow", "head_dim", "rope_scaling"])
def test_null_is_neutral(tmp_path, hf_model, key):
    hf_model("mistral").save_pretrained(tmp_path)
    expected = our_logits(tmp_path)
    change(tmp_path, **{key: None})
    assert torch.equal(our_logits(tmp_path), expected)
    assert is_neutral("mlp_bias", False) and not is_neutral("mlp_bias", 0) and not is_neutral("logit_scale", True)


@pytest.mark.parametrize("form", ["new", "old", "older", "written"])
@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_scaled_rotary_embeddings_are_those_of_transformers(tmp_path, hf_model, kind, name, form):
    """Longer than the context of 32 tokens, where dynamic scaling begins, and shorter than the context of the rest."""
    context = {"max_position_embeddings": 32 if name == "dynamic" else 64}
    hf_model(kind, rope_parameters=dict(SCALINGS[name]), **context).save_pretrained(tmp_path / "theirs")
    directory = tmp_path / "theirs"
    expected = logits_of_transformers(directory)
    plain = hf_model(kind, rope_parameters={"rope_type": "default", **THETA}, **context)
    with torch.no_grad():
        assert not close(expected, plain(tokens(97)).logits), "the scaling must matter"
    if form in ("old", "older"):
        old = {key: value for key, value in SCALINGS[name].items() if key != "rope_theta"}
        if form == "older":
            old = {"type" if key == "rope_type" else key: value for key, value in old.items()}
        change(directory, rope_parameters="ABSENT", rope_scaling=old, rope_theta=1e4)
    if form == "written":
        assert main(["convert", str(directory), str(tmp_path / "out")]) == 0
        directory = tmp_path / "out"
        assert read_config(directory) == read_config(tmp_path / "theirs")
        assert close(logits_of_transformers(directory), expected)
        change(directory, rope_parameters="ABSENT")  # as versions 4 of transformers read it
        assert close(logits_of_transformers(directory), expected)
    assert close(our_logits(directory), expected)


def test_original_context_beside_the_scaling(tmp_path, hf_model):
    hf_model("llama", rope_parameters=dict(YARN)).save_pretrained(tmp_path)
    change(tmp_path, original_max_position_embeddings=8)
    assert close(our_logits(tmp_path), logits_of_transformers(tmp_path))


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "linear"}, r"rope_parameters\.factor is 'None'"),
        ({"rope_type": "linear", "factor": 0}, r"rope_parameters\.factor is '0'"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 8}, r"rope_parameters\.beta_fast is '8'"),
        ({"rope_type": "default", "factor": 2.0}, r"rope_parameters\.factor is '2.0'"),
        ({"rope_type": "dynamic", "factor": 2.0, "alpha": 1000}, r"rope_parameters\.alpha"),
        ({"rope_type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1}, r"rope_parameters\.llama_4_scaling_beta"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, r"rope_parameters\.partial_rotary_factor is '0.5'"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, r"long_factor"),
        ({"full_attention": {"rope_type": "default"}}, r"rope_parameters\.full_attention"),
        ({"rope_type": ["yarn"]}, r"rope_parameters\.rope_type"),
        ([1], "rope_parameters is"),
    ],
)
def test_rotary_settings_that_are_not_read_are_named(tmp_path, hf_model, rope, message):
    hf_model("llama").save_pretrained(tmp_path)
    change(tmp_path, rope_parameters=rope)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize("kind", ["mistral", "ministral"])
@pytest.mark.parametrize("types", [[SLIDING, FULL, FULL], [FULL, SLIDING, FULL], [FULL] * 3, [SLIDING] * 3], ids=str)
def test_layers_with_and_without_a_window(tmp_path, hf_model, kind, types):
    hf_model("mistral", sliding_window=6, num_hidden_layers=3).save_pretrained(tmp_path / "model")
    change(tmp_path / "model", layer_types=types, model_type=kind)
    expected = logits_of_transformers(tmp_path / "model")
    assert close(our_logits(tmp_path / "model"), expected)
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert close(logits_of_transformers(tmp_path / "out"), expected)
    assert read_config(tmp_path / "out") == read_config(tmp_path / "model")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mistral", {"layer_types": [SLIDING, FULL], "sliding_window": None}, "layer_types is"),
        ("mistral", {"layer_types": [SLIDING]}, "layer_types is"),
        ("mistral", {"layer_types": [SLIDING, "chunked_attention"]}, "layer_types is"),
        ("mistral", {"layer_types": "full_attention"}, "layer_types is"),
        ("mixtral", {"layer_types": [SLIDING, FULL], "sliding_window": 6}, "layer_types is"),
        ("llama", {"layer_types": [SLIDING, FULL]}, "layer_types is"),
        ("llama", {"sliding_window": 6}, "sliding_window is '6'"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
    ],
)
def test_layer_types_that_no_model_has_are_named(tmp_path, hf_model, kind, changes, message):
    hf_model(kind).save_pretrained(tmp_path)
    change(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("padded", [False, True])
def test_generation_through_the_cache_with_mixed_layers_and_scaling(tmp_path, hf_model, padded):
    """Longer than the window, in chunks of one; the tokens are those of a model without a cache."""
    hf_model("mistral", sliding_window=6, num_hidden_layers=3, rope_parameters=dict(YARN)).save_pretrained(tmp_path)
    change(tmp_path, layer_types=[SLIDING, FULL, SLIDING])
    model = load_model(tmp_path, torch.float64).model
    prompts = [tokens(97, 9)[0].tolist(), tokens(97, 14 if padded else 9)[1].tolist()]
    for prompt, found in zip(prompts, generate_many(model, prompts, max_new_tokens=20), strict=True):
        sequence = list(prompt)
        for token in found.tokens:
            with torch.no_grad():
                assert int(model(torch.tensor([sequence])).logits[0, -1].argmax()) == token
            sequence.append(token)


def test_biases_of_llama_travel(tmp_path, hf_model):
    theirs = hf_model("llama", attention_bias=True)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
    theirs.save_pretrained(tmp_path / "model")
    expected = logits_of_transformers(tmp_path / "model")
    assert close(our_logits(tmp_path / "model"), expected)
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    assert close(logits_of_transformers(tmp_path / "out"), expected)
    languages = ["--languages", "python", "java"]
    assert main(["upcycle", str(tmp_path / "model"), str(tmp_path / "moe"), *languages, "--expert-form", "delta"]) == 0
    assert close(our_logits(tmp_path / "moe"), expected)


@pytest.mark.parametrize("settings", [{"attention_bias": True}, {"layer_types": [SLIDING, FULL]}], ids=str)
def test_what_mixtral_cannot_say_is_refused_before_anything_is_written(tmp_path, hf_model, capsys, settings):
    kind = "llama" if "attention_bias" in settings else "mistral"
    hf_model(kind, **(settings if kind == "llama" else {"sliding_window": 6})).save_pretrained(tmp_path / "model")
    change(tmp_path / "model", **settings)
    base, out = str(tmp_path / "model"), str(tmp_path / "moe")
    with pytest.raises(SystemExit) as exit_code:
        raise SystemExit(main(["upcycle", base, out, "--languages", "python", "java", "--expert-form", "full"]))
    said = capsys.readouterr().err
    assert exit_code.value.code == 2 and f"no Mixtral models with {next(iter(settings))}" in said
    assert not Path(out).exists()
    assert main(["upcycle", base, out, "--languages", "python", "java", "--num-experts-per-tok", "1"]) == 0
    with pytest.raises(SystemExit):
        raise SystemExit(main(["merge", out, str(tmp_path / "merged")]))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("difference", ["equal", "one element", "dtype", "one alone"])
def test_tied_in_the_config_and_two_matrices_in_the_file(tmp_path, hf_model, kind, difference):
    from safetensors.torch import load_file, save_file

    hf_model(kind, tie_word_embeddings=True).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    head = stored["model.embed_tokens.weight"].clone()
    if difference == "one element":
        head[-1, -1] += 0.5
    if difference == "dtype":
        head = head.to(torch.bfloat16)
    stored["lm_head.weight"] = head
    if difference == "one alone":
        del stored["model.embed_tokens.weight"]
    save_file(stored, path, {"format": "pt"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        ours = our_logits(tmp_path)
    assert close(ours, logits_of_transformers(tmp_path))
    said = [str(one.message) for one in caught if one.category is Notice and "lm_head" in str(one.message)]
    assert len(said) == (difference in ("one element", "dtype"))


logging.getLogger("transformers").setLevel(logging.ERROR)
