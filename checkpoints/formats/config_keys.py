"""The keys of a ``config.json``: which are read, which change nothing, and which are refused by name.

An unknown key may change what the model computes, so it is an error unless it is empty. docs/checkpoints.md has the
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe.errors import UserError

# Read by :func:`checkpoints.formats.config_json.parse_config`.
READ = set(
    """
    model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim hidden_act rms_norm_eps rope_theta rope_scaling rope_parameters original_max_position_embeddings
    max_position_embeddings tie_word_embeddings layer_types sliding_window attention_bias eos_token_id
    quantization_config
    """.split()
)
READ_OF_MIXTURES = set(
    """
    num_local_experts num_experts_per_tok router_aux_loss_coef router_z_loss_coef expert_languages moe_layers
    router_context router_half_life router_layers
    """.split()
)
# Settings of training, of classification heads, of output formats and of other programs: no logit depends on them.
HARMLESS = set(
    """
    architectures transformers_version torch_dtype dtype _name_or_path _commit_hash use_cache return_dict
    output_hidden_states output_attentions output_router_logits output_scores return_dict_in_generate
    initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop hidden_dropout_prob
    attention_probs_dropout_prob classifier_dropout router_jitter_noise pretraining_tp neftune_noise_alpha
    gradient_checkpointing chunk_size_feed_forward torchscript use_bfloat16 tf_legacy_loss is_decoder
    bos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
    _attn_implementation _attn_implementation_autoset attn_implementation _experts_implementation
    _flash_attn_2_enabled use_flash_attn use_flash_attention use_flash_attention_2 flash_attention
    unsloth_version unsloth_fixed model_name model_max_length tokenizer_model_max_length tokenizer_padding_side
    max_sequence_length transformers.js_config is_llama_config
    max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    """.split()
)
# Known keys of other models, with the values at which they change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("mlp_bias", "use_bias", "bias", "qkv_bias", "add_qkv_bias", "attention_out_bias"), (False,)),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm", "rope_interleaved", "use_mrope", "alibi"), (False,)),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder", "parallel_attn"), (False,)),
    **dict.fromkeys(("use_sliding_window", "is_causal", "use_rope", "norm_topk_prob"), (True,)),
    **dict.fromkeys(("partial_rotary_factor", "logit_scale", "logits_scaling", "routed_scaling_factor"), (1,)),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "rope_ratio"), (1,)),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "first_k_dense_replace"), (0,)),
    "hidden_activation": ("silu", "swish"),
    "scoring_func": ("softmax",),
}
# What generation_config.json may ask for that changes even greedy text, and its neutral values.
GENERATION: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "num_beams"), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "penalty_alpha"), (0,)),
    **dict.fromkeys(("stop_strings", "force_words_ids", "constraints", "forced_decoder_ids", "dola_layers"), ()),
    "token_healing": (False,),
    "watermarking_config": (),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), ()),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    "min_new_tokens": (0,),
}


def is_neutral(key: str, value: Any, known: Mapping[str, tuple[Any, ...]] = NEUTRAL) -> bool:
    """Whether a key that is not read leaves the model as it is at this value."""
    empty = value is None or (isinstance(value, str | list | dict) and not value)
    return empty or any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in known.get(key, ()))


def refuse_unknown(settings: Mapping[str, Any], source: Path, mixture: bool) -> None:
    """Raises :class:`UserError` naming the first key that may change what the model computes and is not read."""
    read = READ | READ_OF_MIXTURES if mixture else READ
    for key, value in settings.items():
        if key == "auto_map" and settings.get("model_type") == "context_mixtral":
            continue  # our own code, which is written beside such a model
        if key == "use_sliding_window" and value is False and not _slides(settings):
            continue  # as Qwen2's configs say it
        if key not in read and key not in HARMLESS and not is_neutral(key, value):
            raise UserError(f"{source}: {key} is {str(value)[:80]!r}; {expected(key)}")


def _slides(settings: Mapping[str, Any]) -> bool:
    """Whether attention has a window by the other keys; Mistral's has one of 4,096 tokens where nothing is said."""
    window = settings.get("sliding_window", 4096 if settings.get("model_type") == "mistral" else None)
    return window is not None or "sliding_attention" in (settings.get("layer_types") or ())


def expected(key: str) -> str:
    """What a refused key should be, for the message."""
    if key == "auto_map":
        return "expected no code of the model's own; take this key out to read the model as its model_type says"
    neutral = NEUTRAL.get(key)
    if neutral:
        return f"expected {' or '.join(map(str, neutral))} or nothing: models with this key are unsupported"
    return (
        "this key is unknown and may change what the model computes; if it does not, take it out of the file "
        "(docs/checkpoints.md lists the keys that are read)"
    )


def ignored_generation(settings: Mapping[str, Any]) -> list[str]:
    """The settings of a ``generation_config.json`` that would change greedy text, which is written without them."""
    return [f"{key} {settings[key]}" for key in GENERATION if not is_neutral(key, settings.get(key), GENERATION)]
