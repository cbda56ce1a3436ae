"""``python -m kernels.benchmark``: the expert layers of this package against others, on the machine at hand.

On a CPU: float32 against transformers' Mixtral block. On a GPU: bf16 and int4 against every installed baseline, after a
correctness check of each. Prints a table, writes JSON and a plot. ``--tune FILE`` instead measures tiles and writes a
table for the card.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kernels.version import __version__


def plot(result: dict[str, Any], path: Path) -> bool:
    """Milliseconds against tokens, ours and every baseline, one panel a phase; False where matplotlib is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return False
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if row.get("routing", "uniform") == "uniform":
            name = row.get("shape") or f"top-{row['top_k']}"
            panels.setdefault((name, row["phase"]), []).append(row)
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4), squeeze=False)
    for axis, ((shape, phase), rows) in zip(axes[0], panels.items()):
        rows = sorted(rows, key=lambda row: row["tokens"])
        for name in dict.fromkeys(name for row in rows for name in row["ms"]):
            points = [(row["tokens"], row["ms"][name]) for row in rows if name in row["ms"]]
            axis.plot(*zip(*points), marker="o", linewidth=2.5 if name == "ours" else 1, label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=f"{shape}\n{phase}")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def cannot_write(path: Path, folder: bool) -> str | None:
    """Why results cannot be written to ``path``, None if they can; makes the folder. Asked before minutes of work."""
    if str(path) == ".":  # what an empty argument becomes
        return "an empty name or the current folder is no place for results"
    try:
        (path if folder else path.parent).mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return f"{path if folder else path.parent}: expected a folder, found a file"
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not folder and path.is_dir():
        return f"{path}: expected a file's name, found a folder"
    if not os.access(path if folder else path.parent, os.W_OK):
        return f"{path}: no permission to write there"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and measures; the exit code: 1 where a result is wrong, 2 for mistakes."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.benchmark", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"language-experts {__version__}")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="what to measure")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder for the JSON and the plot")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of each measurement")
    parser.add_argument(
        "--threads", type=int, help="CPU threads; with 1 CPU time is measured, which suits busy machines"
    )
    parser.add_argument(
        "--malloc", choices=("keep", "default"), default="keep",
        help="on a CPU, for all that is measured: keep freed memory, as train.py does, or the C library's default",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=8.0, help="time for a GPU's cases; the targets' come first")
    parser.add_argument("--quick", action="store_true", help="on a GPU, only the cases that targets are about")
    parser.add_argument("--tune", type=Path, metavar="FILE", help="measure tiles on this GPU and write its table")
    args = parser.parse_args(argv)
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if args.device == "auto" else args.device
    if (device == "cuda" or args.tune) and not cuda:
        print("error: no GPU that torch can use was found; run with --device cpu", file=sys.stderr)
        return 2
    if args.threads is not None and args.threads < 1:
        print(f"error: --threads: expected at least 1, got {args.threads}", file=sys.stderr)
        return 2
    if args.repeats < 1:
        print(f"error: --repeats: expected at least 1, got {args.repeats}", file=sys.stderr)
        return 2
    if device == "cpu" and not args.tune and importlib.util.find_spec("transformers") is None:
        print("error: the CPU benchmark compares with transformers; pip install transformers", file=sys.stderr)
        return 2
    problem = cannot_write(args.tune, folder=False) if args.tune else cannot_write(args.output, folder=True)
    if problem:
        print(f"error: {problem}; name another one with {'--tune' if args.tune else '--output'}", file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * args.minutes
    if args.tune:
        from kernels.bench.timing import describe
        from kernels.bench.tune import tune
        from kernels.gpu.tile_tables import write_table

        card = describe(torch.device("cuda", 0))
        table, log = tune(deadline)
        write_table(args.tune, card["arch"], table, card["device"])
        print(f"{len(log)} measurements; wrote {args.tune}; use it with KERNELS_TUNING_TABLE={args.tune}")
        return 0
    if device == "cpu":
        from kernels.bench import cpu as benchmark_cpu
        from kernels.cpu.malloc import keep_freed_memory

        if args.threads:
            torch.set_num_threads(args.threads)
        kept = args.malloc == "keep" and keep_freed_memory(torch.device("cpu"))
        print(f"freed memory is {'kept' if kept else 'given back to the system'}, for all alike")
        result = benchmark_cpu.run(args.repeats)
        print(benchmark_cpu.table(result))
    else:
        from kernels.bench import gpu as benchmark_gpu

        cases = benchmark_gpu.TARGET_CASES if args.quick else benchmark_gpu.CASES
        result = benchmark_gpu.run(deadline, torch.device("cuda", 0), cases, repeats=args.repeats)
    (args.output / f"{device}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, args.output / f"{device}.png")
    print(f"wrote {args.output}/{device}.json")
    wrong = [row for row in result["rows"] if not row.get("correct", True)]
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
