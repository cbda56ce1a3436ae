"""The small files of a model directory: tokenizer, prompt template, generation config, license, model card."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.config_json import MODELING_FILE, read_config_json
from checkpoints.formats.config_keys import ignored_generation
from checkpoints.storage.files import read_json_object
from moe.config import ModelConfig
from moe.data.chat_template import TEMPLATE_FILE, chat_template, guess_template, named_template
from moe.data.prompt import OWN, check_template, choose_template, stop_ids
from moe.data.rendering import CHATML, unusable
from moe.errors import Notice, UserError
from moe.files import json_bytes
from moe.tokenizer import OwnChat, Tokenizer, check_fits, load_tokenizer, tokenizer_from_gguf
from moe.tokenizer.files import read_chat_tokens

GENERATION_FILE = "generation_config.json"
TOKENIZER_CONFIG, CHAT_FILE = "tokenizer_config.json", "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    CHAT_FILE,
    "tekken.json",
)
CARRIED_FILES = (*TOKENIZER_FILES, TEMPLATE_FILE, GENERATION_FILE, "LICENSE", "LICENSE.txt", "NOTICE")


def carried_files(directory: Path) -> dict[str, Path]:
    """The small files of a model directory that are kept when its weights are rewritten."""
    return {name: directory / name for name in CARRIED_FILES if (directory / name).is_file()}


def code_files(config: ModelConfig) -> dict[str, Path]:
    """The code that transformers needs for a model with full experts: some where routers see context, else none."""
    needed = config.is_moe and not config.is_mixtral
    return {MODELING_FILE: Path(__file__).with_name(MODELING_FILE)} if needed else {}


def tokenizer_files(tokenizer: Tokenizer, template: str | None) -> dict[str, bytes]:
    """The files of a tokenizer by name, with the chat template that gives other programs the same prompts."""
    return tokenizer.files(None if template is None else chat_template(tokenizer, template))


def with_chat_template(files: Mapping[str, Path], tokenizer: Tokenizer, template: str) -> Mapping[str, bytes | Path]:
    """Carried files with the chat template of ``template``; files that already name it stay as they are."""
    config = read_json_object(files[TOKENIZER_CONFIG]) if TOKENIZER_CONFIG in files else {}
    chat = _text(files[CHAT_FILE]) if CHAT_FILE in files else _default(config.get("chat_template"))
    if named_template(chat) == template or (template == OWN and tokenizer.chat and tokenizer.chat.source == chat):
        return files
    others = {name: file for name, file in files.items() if name != CHAT_FILE}
    return {**others, TOKENIZER_CONFIG: json_bytes({**config, "chat_template": chat_template(tokenizer, template)})}


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
    known = stop_ids(tokenizer, template) if template is not None else {tokenizer.eos_id, *tokenizer.end_ids}
    ends = sorted(known)
    return {**token_ids(tokenizer), "eos_token_id": ends[0] if len(ends) == 1 else ends, "do_sample": False}


def checkpoint_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer beside the weights (in a GGUF file, inside it); None when there is none."""
    rows, directory = checkpoint.config.vocab_size, checkpoint.directory
    if checkpoint.format == "gguf":
        if "tokenizer.ggml.tokens" not in checkpoint.settings:
            return None
        if (penalty := checkpoint.settings.get("general.sampling.penalty_repeat", 1)) not in (0, 1):
            asked = f"asks for general.sampling.penalty_repeat {penalty:g}"
            warnings.warn(f"{checkpoint.directory} {asked}; answers are written without", Notice, stacklevel=2)
        return tokenizer_from_gguf(checkpoint.settings, rows)
    if any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        tokenizer = load_tokenizer(directory, rows)
    elif versions := sorted(directory.glob("tokenizer.model.v*")):  # as in Mistral's own directories
        tokenizer = load_tokenizer(versions[-1], rows)
    else:
        return None
    tokenizer.end_ids = _end_ids(directory, tokenizer)
    if chat := _chat_template(directory):
        tokenizer.chat = OwnChat(chat, read_chat_tokens(directory))
    return tokenizer


def _end_ids(directory: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """The end tokens that config.json and generation_config.json name; says what else the latter asks for in vain."""
    found: set[int] = set()
    for name in ("config.json", GENERATION_FILE):
        settings = read_json_object(directory / name) if (directory / name).is_file() else {}
        ends = settings.get("eos_token_id")
        for index in ends if isinstance(ends, list) else [] if ends is None else [ends]:
            if not isinstance(index, int) or isinstance(index, bool) or index < 0:
                raise UserError(f"{directory / name}: eos_token_id is {str(ends)[:80]!r}; expected token ids")
            found.add(index)
        # transformers looks into config.json where there is no generation_config.json.
        decides = name == GENERATION_FILE or not (directory / GENERATION_FILE).is_file()
        if decides and (ignored := ignored_generation(settings)):
            warnings.warn(
                f"{directory / name} asks for {', '.join(ignored)}; answers are written without", Notice, stacklevel=2
            )
    for index in sorted(found - set(tokenizer.special_tokens.values())):
        if index < tokenizer.vocab_size and (text := tokenizer.decode([index])):
            warnings.warn(
                f"{directory}: eos_token_id names {index}, the text {text!r}: answers stop there", Notice, stacklevel=2
            )
    return frozenset(found)


def require_fit(tokenizer: Tokenizer, vocab_size: int, source: Path) -> None:
    """Raises :class:`UserError` naming ``source`` when the tokenizer does not fit this vocabulary size."""
    try:
        check_fits(tokenizer, vocab_size)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def find_template(
    model: Path,
    places: Sequence[tuple[Path, Mapping[str, Any]]],
    tokenizer: Tokenizer | None,
    require_own: bool = False,
) -> str:
    """The prompt template that a model names, or its own chat template, else a guess, announced by a :class:`Notice`.

    Args:
        model: what the user named, for the notice.
        places: directories in which the template may be named, each with the settings of the checkpoint in it; the
            first that names one decides.
        require_own: whether the model's own chat template has to be usable where it has one.

    Raises:
        UserError: a template is stored that does not exist, or cannot be used.
    """
    chats = []
    for directory, settings in places:
        embedded = settings.get("tokenizer.chat_template")  # in GGUF files
        chat = embedded if isinstance(embedded, str) else _chat_template(directory)
        stored = None if embedded and named_template(chat) else _stored_template(directory / TEMPLATE_FILE)
        if found := stored or named_template(chat):
            if found == OWN and tokenizer is not None and (trouble := unusable(tokenizer)):
                raise UserError(f"{directory}: its own chat template cannot be used: {trouble}; give --template NAME")
            return found
        chats.append(chat)
    name, reason = guess_template(next(filter(None, chats), ""), tokenizer)
    trouble = None
    if tokenizer is not None and tokenizer.chat is not None:
        trouble = unusable(tokenizer)
        if trouble is None:
            return OWN
        if require_own:
            raise UserError(f"{model}: its own chat template cannot be used: {trouble}; give --template NAME instead")
    if tokenizer is None:  # nobody can prompt it
        return name
    shown = repr(name)
    if name == "chatml" and choose_template(tokenizer) == name:  # whose system message is SmolLM2's alone
        name, shown, tokenizer.chat = OWN, "ChatML without a system message", OwnChat(CHATML)
    said = "does not name its prompt template" if trouble is None else f"cannot use its own chat template ({trouble})"
    said = f"{model} {said}; {shown} is a guess from {reason}"
    warnings.warn(f"{said}; set it with --template NAME (generate.py, convert, upcycle)", Notice, stacklevel=1)
    return name


def _stored_template(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return check_template(read_json_object(path).get("template"))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _chat_template(directory: Path) -> str:
    if (directory / CHAT_FILE).is_file():
        return _text(directory / CHAT_FILE)
    path = directory / TOKENIZER_CONFIG
    return _default(read_json_object(path).get("chat_template")) if path.is_file() else ""


def _default(chat: object) -> str:
    """A chat template as text; of several named ones, an object or a list of ``{"name": ..., "template": ...}``, the
    default."""
    if isinstance(chat, dict):
        chat = chat.get("default")
    if isinstance(chat, list):
        chat = next((x.get("template") for x in chat if isinstance(x, dict) and x.get("name") == "default"), "")
    return chat if isinstance(chat, str) else ""


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def original_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """Special token ids from the checkpoint's config, for directories whose tokenizer is not loaded."""
    if checkpoint.format != "huggingface":
        return {}
    _, settings = read_config_json(checkpoint.directory / "config.json")
    return {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in settings}
