"""Jobs killed at random moments: nothing is lost, every rerun completes, the result is that of an undisturbed run."""

from __future__ import annotations

import random
import time

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.commands.verify import verify_directory
from checkpoints.model_io import save_model
from checkpoints.storage.files import sha256_file
from moe.config import ModelConfig

KILLS = 50  # of running jobs; a job that was done before its kill does not count
TRIES = 8  # runs for each kill that is asked for, at most


def contents(directory) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in directory.iterdir()}


@pytest.fixture
def jobs(tmp_path, make_model):
    """The command line of each job, without its output."""
    config = ModelConfig(vocab_size=97, dim=128, n_layers=3, n_heads=4, n_kv_heads=2, hidden_dim=256, max_seq_len=128)
    base, delta = tmp_path / "base", tmp_path / "delta"
    save_model(make_model(config, dtype=torch.float32), None, base)
    assert main(["upcycle", str(base), str(delta), "--rank", "4", "--no-proof"]) == 0
    return {
        "upcycle": ["upcycle", str(base), "OUT", "--expert-form", "full", "--no-proof", "--max-shard", "400kb"],
        "upcycle delta": ["upcycle", str(base), "OUT", "--rank", "8", "--no-proof"],
        "merge": ["merge", str(delta), "OUT", "--no-proof", "--max-shard", "400kb"],
        "quantize": ["quantize", str(base), "OUT", "--no-perplexity", "--max-shard", "100kb"],
    }


def test_fifty_kills(tmp_path, jobs, run_child, capsys):
    torch.set_num_threads(1)
    generator = random.Random(0)
    each = -(-KILLS // len(jobs))
    killed, shards_left = dict.fromkeys(jobs, 0), 0
    for name, job in jobs.items():
        place = tmp_path / name.replace(" ", "-")
        place.mkdir()

        def command(out, job=job, place=place):
            return [str(place / out) if word == "OUT" else word for word in job]

        assert main(command("undisturbed")) == 0
        expected = contents(place / "undisturbed")
        start = time.perf_counter()
        assert run_child(lambda command=command: main(command("timed"))) == 0
        duration = time.perf_counter() - start
        assert contents(place / "timed") == expected
        out = place / "out"
        for _ in range(TRIES * each):
            before = out.exists()
            line = command("out") + (["--force"] if before else [])
            start = time.perf_counter()
            code = run_child(lambda line=line: main(line), kill_after=generator.uniform(0, duration))
            assert code in (0, -9)
            if before or code == 0 or out.exists():
                assert contents(out) == expected, "the old state or the new one, whole"
            if code == -9:
                killed[name] += 1
                shards_left += (place / ".out.partial" / "job.json").exists()
                if killed[name] == each:
                    break
            else:  # it was done before it was to be killed: the machine is quicker than it was
                duration = min(duration, time.perf_counter() - start)
        last = command("out") + (["--force"] if out.exists() else [])
        assert run_child(lambda last=last: main(last)) == 0
        assert contents(out) == expected
        verify_directory(out)
        assert sorted(p.name for p in place.iterdir()) == ["out", "timed", "undisturbed"]
    assert sum(killed.values()) >= KILLS, f"runs that were killed before they were done: {killed}"
    assert shards_left, "no kill left finished shards for the next run, so reusing them was not tried"
