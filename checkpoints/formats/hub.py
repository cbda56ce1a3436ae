"""Models by their hub id, and folders of a hub's cache (``models--ORG--NAME``)."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from moe.errors import UserError

_HUB_ID = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", re.ASCII)
_SMALL = re.compile(r"[\w.-]+\.(?:json|jinja|md|txt)|tokenizer\.model[\w.]*|LICENSE[\w.]*|NOTICE", re.ASCII)
_WEIGHTS = (  # the first of these that a repository has is downloaded
    re.compile(r"model(?:-\d{5}-of-\d{5})?\.safetensors", re.ASCII),
    re.compile(r"consolidated[\w.-]*\.safetensors", re.ASCII),
)


def is_hub_id(text: str) -> bool:
    """Whether ``text`` names a model as hubs do: ORG/NAME."""
    return _HUB_ID.fullmatch(text) is not None and "--" not in text and ".." not in text


def snapshot(folder: Path) -> Path:
    """The newest snapshot in ``models--ORG--NAME``: the one that ``refs/main`` names, or the only one.

    Raises:
        UserError: there is none, or no way to tell which.
    """
    found = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file():
        named = folder / "snapshots" / main.read_text(encoding="utf-8", errors="replace").strip()
        if named in found:
            return named
    if len(found) == 1:
        return found[0]
    raise UserError(f"{folder} has {len(found)} snapshots and none is named by refs/main; give snapshots/HASH in it")


def from_hub(name: str) -> Path:
    """The directory (or GGUF file) of a hub's model, from its cache or downloaded into it, without files not needed.

    Raises:
        UserError: the library is missing, the hub cannot be reached, or the model has no weights that are read.
    """
    offline = f"on a machine with a network type: hf download {name} --local-dir DIR, and give DIR"
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UserError(
            f"{name} does not exist here; to download it: pip install huggingface_hub; or {offline}"
        ) from None
    try:
        cached = Path(hub.snapshot_download(name, local_files_only=True))
        if found := wanted_files({path.name for path in cached.iterdir()}):
            return _model_in(cached, found)
    except OSError:  # hub.errors.LocalEntryNotFoundError: not in the cache
        pass
    try:
        files = {item.rfilename for item in hub.HfApi().model_info(name).siblings or ()}
        found = wanted_files(files)
        if not found:
            raise UserError(_nothing(name, files))
        return _model_in(Path(hub.snapshot_download(name, allow_patterns=sorted(found))), found)
    except UserError:
        raise
    except Exception as error:  # of the hub's library and of the two HTTP libraries under it
        kind = type(error).__name__
        reasons = {
            "RepositoryNotFoundError": "there is no such model, or it is private: check the name, or: hf auth login",
            "GatedRepoError": "its owner asks for consent: accept on its page, then: hf auth login",
        }
        raise UserError(
            f"{name} is neither a file here nor in the hub's cache; "
            f"{reasons.get(kind, f'the hub cannot be reached ({kind}): {offline}')}"
        ) from None


def wanted_files(files: Collection[str]) -> set[str]:
    """Of a repository's files those that are read; empty without weights in a format that is read."""
    small = {name for name in files if _SMALL.fullmatch(name)}
    for pattern in _WEIGHTS:
        if weights := {name for name in files if pattern.fullmatch(name)}:
            return small | weights
    whole = {name for name in files if name.endswith(".gguf") and "/" not in name}
    return small | whole if len(whole) == 1 else set()


def _model_in(directory: Path, files: Collection[str]) -> Path:
    whole = [name for name in files if name.endswith(".gguf")]
    return directory / whole[0] if whole else directory


def _nothing(name: str, files: Collection[str]) -> str:
    listed = sorted(file for file in files if file.endswith(".gguf"))
    if listed:
        return (
            f"{name} has {len(listed)} GGUF files; download one: hf download {name} {listed[0]} --local-dir DIR, "
            "and give the file"
        )
    kinds = ", ".join(sorted({Path(file).suffix for file in files if Path(file).suffix})) or "nothing"
    return f"{name} has no safetensors or GGUF weights; found {kinds}"
