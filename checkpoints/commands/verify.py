"""``verify``: checks a model directory against its manifest, and its tensors against its config."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from checkpoints.commands.common import add_verify_argument
from checkpoints.formats import Checkpoint, open_checkpoint
from checkpoints.formats.delta import find_base, is_delta, open_delta, read_delta_config
from checkpoints.formats.dense_layers import REMEDY
from checkpoints.formats.peft import ADAPTER_CONFIG, open_adapter
from checkpoints.model_io import load_model
from checkpoints.progress import byte_progress
from checkpoints.second_opinion import compare_with_transformers
from checkpoints.storage.files import directory_bytes, format_bytes, inside, sha256_file
from checkpoints.storage.manifest import MANIFEST, crc32, damaged_tensor, manifest_files
from checkpoints.storage.safetensors_file import SafetensorsFile
from checkpoints.storage.shard_writer import Progress
from moe.errors import UserError
from moe.files import json_bytes, replace_file

_EXPERT = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.\d+\.(.+)", re.ASCII)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("verify", help="check every file's SHA-256 and every tensor's shape")
    parser.add_argument("directory", type=Path, help="a model directory")
    parser.add_argument("--write", action="store_true", help="write the manifest of a directory that has none")
    add_verify_argument(parser)
    parser.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    directory = arguments.directory
    if not directory.is_dir():
        found = "is a file" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {found}; give a model directory")
    if arguments.write and not (directory / MANIFEST).exists():
        check_structure(directory)
        with byte_progress(directory_bytes(directory), "hash") as progress:
            manifest = build_manifest(directory, progress)
        replace_file(directory / MANIFEST, json_bytes(manifest))
        print(f"wrote {directory / MANIFEST} with {len(manifest['files'])} files")
        return 0
    if not arguments.verify_with or (directory / MANIFEST).exists():  # another program needs no manifest
        with byte_progress(directory_bytes(directory), "verify") as progress:
            total = verify_directory(directory, progress)
        size = format_bytes(total)
        print(f"{directory} is complete: {size}; all files match the manifest, all tensors match the config")
    if not arguments.verify_with:
        return 0
    if is_delta(directory):
        raise UserError(f"{directory} has delta experts, which no other program reads; verify its base, or merge it")
    loaded = load_model(directory)
    agreement = compare_with_transformers(loaded.model, open_checkpoint(directory), loaded.tokenizer)
    print(agreement.describe())
    return 0 if agreement.holds else 1


def verify_directory(directory: Path, progress: Progress = lambda count: None) -> int:
    """Checks every file of the manifest, then the tensors against the config; returns the bytes checked.

    Raises:
        UserError: for the first file that is missing, of another size, or changed (naming the tensor where it can).
    """
    total = 0
    for name, entry in manifest_files(directory).items():
        path = inside(directory, name, directory / MANIFEST)
        if not path.is_file():
            raise UserError(f"{path} is missing; the manifest names it: copy it again")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise UserError(f"{path} has {size} bytes, the manifest says {entry['bytes']}; copy it again")
        if sha256_file(path, progress) != entry["sha256"]:
            where = damaged_tensor(path, entry.get("crc32"))
            raise UserError(f"{path} does not have the SHA-256 of the manifest{where}; copy it again")
        total += size
    check_structure(directory)
    return total + sum(
        verify_directory(path.parent, progress) for path in sorted(directory.glob(f"*/{ADAPTER_CONFIG}"))
    )


def check_structure(directory: Path) -> None:
    """Opens a directory as a model, which checks names, shapes and dtypes.

    For delta experts it checks the base too, and for a mixture with dense layers that their copies are equal. Adapters
    are checked without their base.
    """
    if is_delta(directory):
        find_base(directory, read_delta_config(directory)[1], thorough=True)
        open_delta(directory)
    elif (directory / ADAPTER_CONFIG).is_file():
        open_adapter(directory)
    elif not any(directory.glob(f"*/{ADAPTER_CONFIG}")):
        checkpoint = open_checkpoint(directory)
        if checkpoint.config.moe_layers is not None:
            _check_copies(checkpoint)


def _check_copies(checkpoint: Checkpoint) -> None:
    first: dict[tuple[str, str], str] = {}
    for path in checkpoint.weight_files:
        for name, tensor in SafetensorsFile(path).tensors.items():
            match = _EXPERT.fullmatch(name)
            if match is None or int(match[1]) in checkpoint.config.sparse_layers:
                continue
            checksum = crc32(tensor)
            if first.setdefault((match[1], match[2]), checksum) != checksum:
                raise UserError(
                    f"{path}: tensor {name!r} is not the same for all experts, but moe_layers in config.json says that "
                    f"layer {match[1]} is dense; {REMEDY}"
                )


def build_manifest(directory: Path, progress: Progress = lambda count: None) -> dict[str, Any]:
    """Builds the manifest of a directory that has none: bytes and SHA-256 of each file, CRC-32 of each tensor."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.iterdir()):
        if not path.is_file() or path.name == MANIFEST or path.name.startswith("."):
            continue
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path, progress)}
        if path.suffix == ".safetensors":
            tensors = SafetensorsFile(path).tensors
            entries[path.name]["crc32"] = {name: crc32(tensor) for name, tensor in tensors.items()}
    return {"format_version": 1, "files": entries}
