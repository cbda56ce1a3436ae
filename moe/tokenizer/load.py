"""Reading a tokenizer from a model directory or a file."""

from __future__ import annotations

import re
from pathlib import Path

from moe.errors import UserError
from moe.tokenizer.base import Tokenizer
from moe.tokenizer.fast import JsonTokenizer
from moe.tokenizer.files import JSON_FILE, MODEL_FILE, read_add_bos, read_added, read_roles
from moe.tokenizer.spm import SentencePieceTokenizer

VERSIONED_MODEL = re.compile(r".*\.model(?:\.v\d+)?(?:m\d+)?")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a sentencepiece model or a ``tokenizer.json``.

    Args:
        path: a model directory (its ``tokenizer.model`` is preferred, as ``tokenizer.json`` may have been derived from
            it) or one of the files; the files beside it that name special tokens are read too

    Raises:
        UserError: there is no tokenizer, or one that cannot give code back as it was.
    """
    path = Path(path)
    file = _find(path) if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected {MODEL_FILE} or {JSON_FILE}")
    roles = read_roles(file.parent)
    add_bos = read_add_bos(file.parent)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    if VERSIONED_MODEL.fullmatch(file.name):
        added = read_added(file.parent)
        return SentencePieceTokenizer(data, added, roles, add_bos is not False, source=file)
    if file.suffix == ".json":
        try:
            return JsonTokenizer(data.decode("utf-8"), roles, add_bos, source=file)
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 (byte {error.start + 1}); expected a tokenizer.json") from error
    raise UserError(f"{file}: not a tokenizer file; expected {MODEL_FILE} or {JSON_FILE}")


def _find(directory: Path) -> Path:
    for name in (MODEL_FILE, JSON_FILE):
        if (directory / name).is_file():
            return directory / name
    models = sorted(file for file in directory.iterdir() if file.is_file() and VERSIONED_MODEL.fullmatch(file.name))
    if len(models) == 1:
        return models[0]
    there = ", ".join(sorted(entry.name for entry in directory.iterdir())[:8]) or "nothing"
    raise UserError(f"{directory}: no tokenizer in it; expected {MODEL_FILE} or {JSON_FILE}, found {there}")
