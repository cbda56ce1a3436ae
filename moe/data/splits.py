"""The files of a split: in a folder of its name, in files of its name, or in a dataset that ``datasets`` saved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from moe.data.containers import data_suffix, dataset_files
from moe.errors import UserError, did_you_mean
from moe.languages import LANGUAGES, language_key

File = tuple[str | None, Path]  # the language that its name says, and where it is
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
_ABOUT = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
_SHARD = re.compile(r"[-_.]\d+(?:[-_.]of[-_.]\d+)?$")
_WORDS = re.compile(r"[-_.]")


def data_language(name: str) -> str | None:
    """The language that a data file's name says: ``js.jsonl``, ``python-00000-of-00004.parquet``; None without one."""
    stem = _stem(name)
    if language_key(stem) in LANGUAGES:
        return language_key(stem)
    found = {language_key(word) for word in _WORDS.split(stem)} & LANGUAGES.keys()
    return found.pop() if len(found) == 1 else None


def list_splits(directory: Path) -> dict[str, list[File]]:
    """Every split of a data directory with its files.

    Raises:
        UserError: the directory is missing, or two forms of one split or file are there.
    """
    if not directory.is_dir():
        state = "is not a directory" if directory.exists() else "no such directory"
        hint = f"; put it into DIR/train/{directory.name} and give DIR" if data_suffix(directory.name) else ""
        raise UserError(f"{directory}: {state}; expected a data directory with <split>/<language>.jsonl files{hint}")
    found: dict[str, list[File]] = {}
    forms: dict[str, Path] = {}
    for split, files, form in _candidates(directory):
        if forms.setdefault(split, form) != form:
            raise UserError(f"{directory}: both {forms[split].name} and {form.name} hold {split}; remove one of them")
        found.setdefault(split, []).extend(files)
    for files in found.values():
        _refuse_two_forms([path for _, path in files])
    return found


def find_split(directory: Path, split: str) -> list[File]:
    """The files of one split; raises :class:`UserError`, as for :func:`list_splits`, and where there are none."""
    splits = list_splits(directory)
    if split in splits:
        return splits[split]
    folder = directory / split
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())[:5]
        raise UserError(
            f"{folder}: {'has ' + ', '.join(names) if names else 'is empty'}; expected files of pairs: "
            "LANGUAGE.jsonl, .json or .parquet, plain or packed (.gz, .zst)"
        )
    raise UserError(
        f"{directory}: no split {split!r}{did_you_mean(split, splits)}; splits there: "
        f"{', '.join(sorted(splits)) or 'none'}{_loose(directory)}"
    )


def _candidates(directory: Path) -> Iterator[tuple[str, list[File], Path]]:
    """Splits with files and the form that they are in: a folder, or the directory itself for files named after them."""
    for entry in sorted(directory.iterdir()):
        if split := _split_of(entry.name):
            yield split, [(data_language(entry.name), _regular(entry))], directory
        elif entry.is_dir():
            files = _files(entry)
            by_name = [(_split_of(path.name), language, path) for language, path in files]
            if entry.name == "data" and files and all(split for split, _, _ in by_name):  # as on a hub
                for split, language, path in by_name:
                    yield split or "", [(language, path)], entry
            elif language_key(entry.name) in LANGUAGES:  # LANGUAGE/train.jsonl
                for split, _, path in by_name:
                    if split:
                        yield split, [(language_key(entry.name), path)], directory
            elif files:
                yield entry.name, files, entry


def _files(folder: Path) -> list[File]:
    saved = dataset_files(folder)
    if saved:
        return [(None, path) for path in saved]
    paths = (path for path in sorted(folder.iterdir()) if data_suffix(path.name) and path.name not in _ABOUT)
    return [(data_language(path.name), _regular(path)) for path in paths]


def _regular(path: Path) -> Path:
    """The path of a file; leaving out what only has the name of one would silently train on a part of the data."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no regular file"
        raise UserError(f"{path}: is {what}; expected a data file, as its name says: put one there or rename it")
    return path


def _split_of(name: str) -> str | None:
    """The split in a file's name: ``test-b.jsonl``, ``train-00000-of-00002.parquet``, ``alpaca-train.arrow``."""
    if data_suffix(name) is None or name in _ABOUT:
        return None
    words = _WORDS.split(_SHARD.sub("", _stem(name)))
    start = next((index for index, word in enumerate(words) if word in _SPLITS), None)
    if start is None:
        return None
    language = data_language(name)
    return "-".join(word for word in words[start:] if language is None or language_key(word) != language)


def _stem(name: str) -> str:
    return name.lower().removesuffix(data_suffix(name) or "")


def _refuse_two_forms(paths: list[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        other = seen.setdefault(path.with_name(_stem(path.name)), path)
        if other != path:
            raise UserError(f"{path.parent}: both {other.name} and {path.name} are there; remove one of them")


def _loose(directory: Path) -> str:
    """What to do with files of pairs that lie in the directory itself."""
    if dataset_files(directory):
        return "; it is one dataset without splits: save a DatasetDict with train and test"
    loose = [path.name for path in sorted(directory.iterdir()) if data_suffix(path.name) and path.name not in _ABOUT]
    return f"; {loose[0]} lies beside them: put it into train/" if loose else ""
