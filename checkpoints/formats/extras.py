"""The small files of a model directory: tokenizer, prompt template, generation config, license, model card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.config_json import read_config_json
from checkpoints.storage.files import read_json_object
from moe.data.prompt import TEMPLATE_FILE, check_template, choose_template, save_template, stop_ids
from moe.errors import UserError
from moe.tokenizer import Tokenizer, check_fits, load_tokenizer, tokenizer_from_gguf

GENERATION_FILE = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tekken.json",
)
CARRIED_FILES = (*TOKENIZER_FILES, TEMPLATE_FILE, GENERATION_FILE, "LICENSE", "LICENSE.txt", "NOTICE")


def carried_files(directory: Path) -> dict[str, bytes | Path]:
    """The small files of a model directory that are kept when its weights are rewritten."""
    return {name: directory / name for name in CARRIED_FILES if (directory / name).is_file()}


def tokenizer_files(tokenizer: Tokenizer, template: str | None) -> dict[str, bytes]:
    """The files of a tokenizer by name, with the chat template that transformers needs for the same prompts."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tokenizer.save(directory)
        if template is not None:
            save_template(directory, template, tokenizer)
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def token_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The special token ids that configs of transformers name."""
    if tokenizer is None:
        return {}
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def generation_config(tokenizer: Tokenizer, template: str | None) -> dict[str, Any]:
    """A ``generation_config.json``: greedy, with the tokenizer's special ids and all that end an answer."""
    ends = sorted(stop_ids(tokenizer, template)) if template is not None else [tokenizer.eos_id]
    return {**token_ids(tokenizer), "eos_token_id": ends[0] if len(ends) == 1 else ends, "do_sample": False}


def checkpoint_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer beside the weights (in a GGUF file, inside it); None when there is none."""
    if checkpoint.format == "gguf":
        if "tokenizer.ggml.tokens" not in checkpoint.settings:
            return None
        return tokenizer_from_gguf(checkpoint.settings)
    if any((checkpoint.directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return load_tokenizer(checkpoint.directory)
    versions = sorted(checkpoint.directory.glob("tokenizer.model.v*"))  # as in Mistral's own directories
    return load_tokenizer(versions[-1]) if versions else None


def require_fit(tokenizer: Tokenizer, vocab_size: int, source: Path) -> None:
    """Raises :class:`UserError` naming ``source`` when the tokenizer does not fit this vocabulary size."""
    try:
        check_fits(tokenizer, vocab_size)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _chat_template(directory: Path, settings: Mapping[str, Any]) -> str:
    if isinstance(settings.get("tokenizer.chat_template"), str):
        return settings["tokenizer.chat_template"]
    if (directory / "chat_template.jinja").is_file():
        return (directory / "chat_template.jinja").read_text(errors="replace")
    if (directory / "tokenizer_config.json").is_file():
        return str(read_json_object(directory / "tokenizer_config.json").get("chat_template", ""))
    return ""


def template_name(directory: Path, settings: Mapping[str, Any], tokenizer: Tokenizer | None) -> str:
    """The prompt template of a model: as stored with it, else told by its chat template or its control tokens.

    Raises:
        UserError: a template is stored that does not exist.
    """
    path = directory / TEMPLATE_FILE
    if path.is_file():
        try:
            return check_template(read_json_object(path).get("template"))
        except UserError as error:
            raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    chat = _chat_template(directory, settings)
    if "<|im_start|>" in chat:
        return "chatml"
    if "[INST]" in chat:
        return "mistral-instruct"
    return choose_template(tokenizer) if tokenizer is not None else "plain"


def original_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Special token ids from the checkpoint's config, for directories whose tokenizer is not loaded."""
    if checkpoint.format != "huggingface":
        return {}
    _, settings = read_config_json(checkpoint.directory / "config.json")
    return {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in settings}
