"""Reading a tokenizer from a model directory or a file."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe.errors import Notice, UserError
from moe.tokenizer import sentencepiece_model as proto
from moe.tokenizer.base import Tokenizer
from moe.tokenizer.classes import class_pipeline, tokenizer_class
from moe.tokenizer.fast import JsonTokenizer
from moe.tokenizer.files import (
    JSON_FILE,
    MODEL_FILE,
    read_add_bos,
    read_added,
    read_roles,
    read_special_names,
    read_text_tokens,
    reads_without_prefix,
    refuse_changes,
)
from moe.tokenizer.spm import SentencePieceTokenizer

VERSIONED_MODEL = re.compile(r".*\.model(?:\.v\d+)?(?:m\d+)?")


def load_tokenizer(path: str | Path, rows: int | None = None) -> Tokenizer:
    """Loads a sentencepiece model or a ``tokenizer.json``.

    Of both in a directory, ``tokenizer.model`` is read if they hold the same tokens, as ``tokenizer.json`` may have
    been derived from it; if they differ, the one that fits, with a :class:`Notice`. Added tokens without a row in the
    embedding are left out, with a :class:`Notice`.

    Args:
        path: a model directory or one of the files; the files beside it that name special tokens are read too
        rows: of the model's embedding, where it is known

    Raises:
        UserError: there is no tokenizer, or one that cannot give code back as it was.
    """
    path = Path(path)
    file = _find(path, rows) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected {MODEL_FILE} or {JSON_FILE}")
    folder = file.parent
    roles, added = read_roles(folder), read_added(folder)
    add_bos = read_add_bos(folder)
    if add_bos is None and tokenizer_class(folder) == "CodeLlamaTokenizer":
        add_bos = True
    refuse_changes(folder)
    if VERSIONED_MODEL.fullmatch(file.name):
        if rows is not None:
            added = _with_rows(added, rows, folder, roles)
        bare = reads_without_prefix(folder)
        data = proto.without_dummy_prefix(_read(file)) if bare else _read(file)
        tokenizer: Tokenizer = SentencePieceTokenizer(data, added, roles, add_bos is not False, source=file)
        if path.is_dir() and not bare and (folder / JSON_FILE).is_file() and _same_tokens(folder):
            tokenizer.pipeline = class_pipeline(_text(folder / JSON_FILE), folder)
        return tokenizer
    if file.suffix == ".json":
        content = class_pipeline(_completed(_text(file), added, rows, file, roles), folder)
        return JsonTokenizer(content, roles, add_bos, source=file)
    raise UserError(f"{file}: not a tokenizer file; expected {MODEL_FILE} or {JSON_FILE}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error


def _text(file: Path) -> str:
    try:
        return _read(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (byte {error.start + 1}); expected a tokenizer.json") from error


def _find(directory: Path, rows: int | None) -> Path:
    both = [directory / name for name in (MODEL_FILE, JSON_FILE) if (directory / name).is_file()]
    if len(both) == 2:
        return _fitting(directory, rows)
    if both:
        return both[0]
    models = sorted(file for file in directory.iterdir() if file.is_file() and VERSIONED_MODEL.fullmatch(file.name))
    if len(models) == 1:
        return models[0]
    there = ", ".join(sorted(entry.name for entry in directory.iterdir())[:8]) or "nothing"
    raise UserError(f"{directory}: no tokenizer in it; expected {MODEL_FILE} or {JSON_FILE}, found {there}")


def _names(directory: Path) -> tuple[dict[int, str], dict[int, str]] | None:
    """The tokens by id of ``tokenizer.model`` and ``tokenizer.json``, each with those that the files beside them add.

    None where one cannot be read; what is wrong with it is said when it is loaded.
    """
    added = read_added(directory)
    try:
        pieces = proto.parse_model(_read(directory / MODEL_FILE)).pieces
        spec = json.loads(_text(directory / JSON_FILE))
        fast = {int(index): str(name) for name, index in spec["model"]["vocab"].items()}
        fast |= {int(token["id"]): str(token["content"]) for token in spec["added_tokens"] or ()}
    except (UserError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    fast |= {index: name for name, index in added.items() if index not in fast and name not in fast.values()}
    model = {index: piece.text for index, piece in enumerate(pieces)} | {index: name for name, index in added.items()}
    return {index: name for index, name in model.items() if name}, {i: name for i, name in fast.items() if name}


def _same_tokens(directory: Path) -> bool:
    found = _names(directory)
    return found is not None and found[0] == found[1]


def _fitting(directory: Path, rows: int | None) -> Path:
    """Of a directory's two tokenizer files, the one that its config and the embedding fit."""
    found = _names(directory)
    if found is None or found[0] == found[1]:
        return directory / MODEL_FILE
    end, added = read_roles(directory).get("eos"), read_added(directory)
    ranks = {}
    for name, tokens in zip((MODEL_FILE, JSON_FILE), found):
        count = max(tokens) + 1
        spare = count if rows is None else -abs(rows - count)  # without an embedding, the longer one
        stated = sum(tokens.get(index) == one for one, index in added.items())
        fits = (end is None or end in tokens.values(), rows is None or count <= rows)
        ranks[name] = (*fits, spare, stated, name == JSON_FILE)
    chosen = max(ranks, key=lambda name: ranks[name])
    first = next(index for index in sorted({*found[0], *found[1]}) if found[0].get(index) != found[1].get(index))
    reason = "transformers reads it" if chosen == JSON_FILE else "it has the added tokens that the config names"
    if rows is not None and ranks[JSON_FILE][:3] != ranks[MODEL_FILE][:3]:
        reason = f"it fits the embedding of {rows} rows" + ("" if end is None else f" and the end token {end!r}")
    said = " and ".join(f"{name} ({max(tokens) + 1} tokens)" for name, tokens in zip((MODEL_FILE, JSON_FILE), found))
    warnings.warn(
        f"{directory}: {said} disagree, first at id {first} ({found[0].get(first)!r} and {found[1].get(first)!r}); "
        f"{chosen} is read: {reason}",
        Notice,
        stacklevel=2,
    )
    return directory / chosen


def _with_rows(added: Mapping[str, int], rows: int, folder: Path, roles: Mapping[str, str]) -> dict[str, int]:
    """The added tokens that have a row in the embedding; a :class:`Notice` names the others."""
    beyond = {name: index for name, index in added.items() if index >= rows}
    for role in ("bos", "eos"):
        if roles.get(role) in beyond:
            name = roles[role]
            raise UserError(
                f"{folder}: the {'begin' if role == 'bos' else 'end'} token {name!r} is added as id {beyond[name]}, "
                f"but the embedding has {rows} rows; take weights and tokenizer from the same model"
            )
    _say_left_out(beyond, rows, folder)
    return {name: index for name, index in added.items() if name not in beyond}


def _say_left_out(beyond: Mapping[str, int], rows: int, folder: Path) -> None:
    if beyond:
        listed = ", ".join(f"{name!r} (id {index})" for name, index in sorted(beyond.items(), key=lambda x: x[1])[:5])
        more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        warnings.warn(
            f"{folder}: the tokenizer adds {listed}{more}, for which the embedding of {rows} rows has none; left out, "
            "as nothing needs them",
            Notice,
            stacklevel=3,
        )


def _completed(content: str, added: Mapping[str, int], rows: int | None, file: Path, roles: Mapping[str, str]) -> str:
    """A ``tokenizer.json`` with the tokens that the files beside it add, and without added tokens that have no row."""
    try:
        spec = json.loads(content)
        listed: list[dict[str, Any]] = list(spec["added_tokens"] or ())
        vocab = spec["model"]["vocab"]
        taken = set(_ids(vocab)) | {int(token["id"]) for token in listed}
        known = {token["content"] for token in listed}
        added = {name: vocab[name] for name in read_special_names(file.parent) if name in vocab} | dict(added)
        new = {
            n: i for n, i in added.items() if n not in known and (vocab.get(n) == i if n in vocab else i not in taken)
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return content  # the loader says what is wrong
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    text = read_text_tokens(file.parent)
    listed += [
        {"id": index, "content": name, "special": name not in text, **flags}
        for name, index in sorted(new.items(), key=lambda x: x[1])
    ]
    kept = listed
    if rows is not None and not any(index >= rows for index in _ids(vocab)):
        left = _with_rows({token["content"]: int(token["id"]) for token in listed}, rows, file.parent, roles)
        kept = [token for token in listed if token["content"] in left]
    if not new and len(kept) == len(listed):
        return content
    return json.dumps({**spec, "added_tokens": kept}, ensure_ascii=False)


def _ids(vocab: object) -> Iterable[int]:
    """The ids of a vocabulary that is a map (BPE)."""
    return map(int, vocab.values()) if isinstance(vocab, dict) else ()
