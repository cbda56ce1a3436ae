"""The files of a tokenizer in a model directory, as transformers names and lays them out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe.errors import UserError
from moe.files import json_bytes
from moe.tokenizer.base import SpecialTokens

MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
ROLES = ("bos", "eos", "pad", "unk")


def tokenizer_config(names: Mapping[int, str], roles: SpecialTokens, added: Mapping[int, str]) -> dict[str, Any]:
    """The content of tokenizer_config.json: the tokens with a role, and control tokens that are ``added`` by id."""
    ids = {"bos": roles.bos, "eos": roles.eos, "pad": roles.pad, "unk": roles.unk}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": names[index] for role, index in ids.items() if index is not None and index in names},
        "add_bos_token": roles.add_bos and roles.bos is not None,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    if added:
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        config["added_tokens_decoder"] = {str(index): {"content": name, **flags} for index, name in added.items()}
    return config


def tokenizer_files(
    pipeline: Mapping[str, Any] | str, config: Mapping[str, Any], chat_template: str | None
) -> dict[str, bytes]:
    """``tokenizer.json`` (its content or its text), the config with the chat template, and the special tokens."""
    special = {key: value for key, value in config.items() if key in {f"{role}_token" for role in ROLES}}
    if chat_template is not None:
        config = {**config, "chat_template": chat_template}
    if not isinstance(pipeline, str):
        pipeline = json.dumps(pipeline, ensure_ascii=False)
    return {JSON_FILE: pipeline.encode(), CONFIG_FILE: json_bytes(config), SPECIAL_FILE: json_bytes(special)}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a JSON {type(content).__name__}; expected an object")
    return content


def read_roles(directory: Path) -> dict[str, str]:
    """Reads which control tokens have a role (``bos``, ``eos``, ``pad``, ``unk``), by name, from a model directory."""
    roles: dict[str, str] = {}
    for name in (SPECIAL_FILE, CONFIG_FILE):  # the config is what transformers reads, so it wins
        content = read_json(directory / name)
        for role in ROLES:
            token = content.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                roles[role] = token
    return roles


def read_added(directory: Path) -> dict[str, int]:
    """Reads the tokens that a model directory adds to its ``tokenizer.model``, by name."""
    added: dict[str, int] = {}
    for name, index in read_json(directory / ADDED_FILE).items():
        added[name] = _token_id(index, directory / ADDED_FILE)
    listed = read_json(directory / CONFIG_FILE).get("added_tokens_decoder")
    for index, token in (listed if isinstance(listed, dict) else {}).items():
        content = token.get("content") if isinstance(token, dict) else token
        added[str(content)] = _token_id(index, directory / CONFIG_FILE)
    return added


def read_text_tokens(directory: Path) -> set[str]:
    """Reads which of the tokens that the config adds stand for text: those that it does not call special."""
    listed = read_json(directory / CONFIG_FILE).get("added_tokens_decoder")
    tokens = listed.values() if isinstance(listed, dict) else ()
    return {str(token.get("content")) for token in tokens if isinstance(token, dict) and token.get("special") is False}


def reads_without_prefix(directory: Path) -> bool:
    """Whether the config takes away the space that a Llama tokenizer puts before each text."""
    config = read_json(directory / CONFIG_FILE)
    kind = str(config.get("tokenizer_class"))
    return kind in ("LlamaTokenizer", "LlamaTokenizerFast") and config.get("add_prefix_space") is False


def read_special_names(directory: Path) -> set[str]:
    """Reads the names of all tokens that transformers takes as special: roles, and lists of further ones."""
    names: set[object] = set()
    for file in (SPECIAL_FILE, CONFIG_FILE):
        content = read_json(directory / file)
        extra: list[object] = [value for key, value in content.items() if key.endswith("_token")]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = content.get(key)
            extra += listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else ()
        names.update(token.get("content") if isinstance(token, dict) else token for token in extra)
    return {name for name in names if isinstance(name, str)}  # add_bos_token and its kin are true or false


def refuse_changes(directory: Path) -> None:
    """Raises :class:`UserError` for settings that change ids and are not read."""
    config = read_json(directory / CONFIG_FILE)
    auto = config.get("auto_map")
    if isinstance(auto, dict) and any(auto.get("AutoTokenizer") or ()):
        raise UserError(
            f"{directory / CONFIG_FILE}: auto_map names code of the model's own for its tokenizer; take this key out "
            "to read the tokenizer's files without it"
        )
    if config.get("split_special_tokens"):
        raise UserError(
            f"{directory / CONFIG_FILE}: split_special_tokens is true, so that the control tokens of a chat would be "
            "text; expected false"
        )


def missing_role(role: str, name: str, source: str | Path) -> str:
    """The message for a token with a role that the vocabulary, or the embedding, lacks."""
    what = {"bos": "begin", "eos": "end", "unk": "unknown"}[role]
    return (
        f"{source}: {CONFIG_FILE} names {name!r} as the {what} token, which the vocabulary lacks; take the tokenizer's "
        "files from the same model, or correct that name"
    )


def read_chat_tokens(directory: Path) -> tuple[tuple[str, str], ...]:
    """Reads the tokens that a chat template may use by name (``bos_token``, ``eos_token`` ...)."""
    found = {}
    for name in (SPECIAL_FILE, CONFIG_FILE):
        content = read_json(directory / name)
        extra = content.get("extra_special_tokens")  # names of the model's own, such as image_token
        for key, token in [*content.items(), *(extra.items() if isinstance(extra, dict) else ())]:
            token = token.get("content") if isinstance(token, dict) else token
            if key.endswith("_token") and isinstance(token, str):
                found[key] = token
    return tuple(sorted(found.items()))


def read_add_bos(directory: Path) -> bool | None:
    """Reads whether the begin token stands before each text; None when the directory does not say."""
    value = read_json(directory / CONFIG_FILE).get("add_bos_token")
    return value if isinstance(value, bool) else None


def _token_id(value: object, path: Path) -> int:
    if not str(value).isascii() or not str(value).isdigit() or int(str(value)) >= 1 << 24:
        raise UserError(f"{path}: {value!r} stands where the id of an added token was expected")
    return int(str(value))
