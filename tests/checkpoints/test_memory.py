"""Memory of what streams: less than two tensors of the model, whatever the command computes."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.formats import open_checkpoint
from checkpoints.model_io import save_model
from checkpoints.storage import safetensors_file, shard_writer
from checkpoints.storage.writer import in_dtype
from checkpoints.transforms.merge import collapsed_tensors, expert_shares, merged_tensors, open_any
from moe.config import ModelConfig

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WIDE = ModelConfig(vocab_size=8192, dim=512, n_layers=1, n_heads=8, n_kv_heads=2, hidden_dim=8192, max_seq_len=64)
LARGEST = 8192 * 512 * 2  # bytes of a feed-forward matrix and of the embedding in bf16


def memory(kind: str) -> int:
    """Resident bytes: VmRSS now, VmHWM the most since the last reset."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(kind)) * 1024


def peak_of(job) -> int:
    """Bytes by which the job's peak is above what was resident before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the job would be given what was freed, and is resident already
    before = memory("VmRSS:")
    RESET.write_text("5")
    job()
    return memory("VmHWM:") - before


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A dense model of a few wide matrices in bf16, its delta and full mixtures, and one in int4."""
    from moe.model import Transformer

    root = tmp_path_factory.mktemp("wide")
    save_model(Transformer(WIDE).reset(0).to(torch.bfloat16), None, root / "dense")
    base = str(root / "dense")
    assert main(["upcycle", base, str(root / "delta"), "--languages", "python", "java", "--no-proof"]) == 0
    full = ["--languages", "python", "java", "--expert-form", "full", "--no-proof"]
    assert main(["upcycle", base, str(root / "full"), *full]) == 0
    assert main(["quantize", base, str(root / "int4"), "--no-perplexity"]) == 0
    return root


JOBS = {
    "upcycle": ("upcycle dense OUT --expert-form full --no-proof", LARGEST),
    "merge": ("merge delta OUT --no-proof", LARGEST),
    "collapse full": ("collapse full OUT", LARGEST),
    "collapse delta": ("collapse delta OUT", LARGEST),
    "convert": ("convert dense OUT --dtype float32", 2 * LARGEST),
    "convert int4": ("convert int4 OUT", 2 * LARGEST),
    "quantize": ("quantize dense OUT --no-perplexity", LARGEST),
    "verify": ("verify full", LARGEST),
    "diff": ("diff dense full", LARGEST),
}


def measure(models: Path, out: Path) -> dict[str, tuple[int, int]]:
    """Exit code and peak of each job, in bytes."""
    shard_writer.BUFFER_BYTES = 1 << 20
    safetensors_file.PART_ELEMENTS = 64 << 10
    found = {}
    for name, (words, _) in JOBS.items():
        command, *rest = words.replace("OUT", str(out / name.replace(" ", "-")) + " --force").split()
        places = 2 if name == "diff" else 1
        line = [command, *(str(models / word) for word in rest[:places]), *rest[places:]]
        codes: list[int] = []
        main(line)  # what libraries take at their first use is not counted
        peak = peak_of(lambda line=line, codes=codes: codes.append(main(line)))
        found[name] = (codes[0], peak)
    return found


@pytest.fixture(scope="module")
def measured(models, tmp_path_factory, root):
    """In a process of its own: what other tests left in this one's allocator would count, too."""
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, __file__, str(models), str(out)]
    child = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return json.loads((out / "measured.json").read_text())


@pytest.mark.skipif(not RESET.exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("name", JOBS)
def test_streaming_commands_hold_less_than_a_tensor_beside_their_buffers(measured, name):
    code, peak = measured[name]
    assert code == (1 if name == "diff" else 0)
    assert peak <= JOBS[name][1] + shard_writer.BUFFERS * (1 << 20) + (2 << 20)


def test_parts_are_the_tensor(models, monkeypatch):
    monkeypatch.setattr(safetensors_file, "PART_ELEMENTS", 100_000)
    full, delta = open_checkpoint(models / "full"), open_any(models / "delta")
    dense, int4 = open_checkpoint(models / "dense"), open_checkpoint(models / "int4")
    shares = expert_shares(full.config, {"python": 1, "java": 2})
    tensors = [*dense.tensors.values(), *int4.tensors.values(), *merged_tensors(delta)]
    tensors += [*collapsed_tensors(full, shares, torch.float32), in_dtype(dense.tensors["norm.weight"], torch.float16)]
    for tensor in tensors:
        parts = list(tensor.parts())
        assert all(part.dtype == tensor.dtype and part.numel() <= 100_000 for part in parts)
        assert torch.equal(torch.cat(parts), tensor.read())


if __name__ == "__main__":
    folder, target = map(Path, sys.argv[1:])
    (target / "measured.json").write_text(json.dumps(measure(folder, target)))
