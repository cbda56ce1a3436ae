"""The parts of the GPU suite that run in a process of its own module: thin callers of the checks and benchmarks.

Each writes what it has after every case, since it may be stopped at any moment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eval.processes import ROOT
from kernels.bench import gpu, gpu_checks, targets, tune
from kernels.bench.shapes import MISTRAL_7B, ModelShape
from kernels.bench.timing import describe
from moe.files import json_bytes, replace_file
from moe.training.interrupt import DelayedInterrupt

WORKERS = 8  # processes that compile and check kernels: a check's time is its compilers'
TOY = ModelShape(vocab_size=1, dim=128, n_layers=1, n_heads=1, n_kv_heads=1, hidden_dim=128)
# seed, learning rate of the deltas: a sweep of one seed, then further seeds at the preset's
SMOLLM2_RUNS = ((0, 5e-4), (0, 2e-3), (0, 1e-3), (1, 5e-4), (2, 5e-4))
MIX = "--epochs 2 --tokens-per-batch 16384 --branch-steps 25 --eval-pairs 100 --save-minutes 0.5".split()
TINY = "--preset tiny --pretrain-steps 2 --branch-steps 1 --mix-steps 1 --eval-pairs 1 --loss-pairs 2".split()


class Setting(NamedTuple):
    """What a part gets: where to write, until when (`time.monotonic`), the device, the suite's arguments."""

    output: Path
    deadline: float
    device: torch.device
    smoke: bool
    quick: bool
    base: str | None
    data: str | None

    def write(self, name: str, value: Any) -> None:
        replace_file(self.output / f"{name}.json", json_bytes(value))


def correctness(setting: Setting) -> Any:
    """Every layer against float64, several cases at once on a GPU."""
    found: dict[str, Any] = {}

    def keep(name: str, result: dict[str, Any]) -> None:
        found[name] = result
        print(f"{name}: {result}", flush=True)
        setting.write("correctness", found)

    if setting.smoke:
        for kind in gpu_checks.KINDS:
            case = gpu_checks.Case(kind, 6, 40, 72, empty=True)
            keep(str(case), _checked(case, setting.device))
        return found
    cases = gpu_checks.cases(setting.quick)
    large = [case for case in cases if case.width >= MISTRAL_7B.dim]  # several at once would not fit
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        work = {pool.submit(_checked, case, setting.device): case for case in cases if case not in large}
        for done in as_completed(work):
            keep(str(work[done]), done.result())
    for case in large:
        keep(str(case), _checked(case, setting.device))
        torch.cuda.empty_cache()
    return found


def _checked(case: gpu_checks.Case, device: torch.device) -> dict[str, Any]:
    """A case's result, or its error: one that fails must not hide the others."""
    try:
        return gpu_checks.correct(case, device)
    except Exception:
        return {"ok": False, "error": traceback.format_exc()[-1500:]}


def graphs(setting: Setting) -> Any:
    """No wait for the GPU, CUDA graphs, ``torch.compile``."""
    toy: Any = {"width": 128, "hidden": 128, "counts": (2,)} if setting.smoke else {}
    checks = [check(setting.device, **toy) for check in (gpu_checks.no_host_synchronization, gpu_checks.cuda_graph)]
    compiled: Any = {"backend": "eager", "kinds": gpu_checks.KINDS[-1:]} if setting.smoke else {}
    checks.append(gpu_checks.full_graph_compile(setting.device, **compiled))
    return _collect(setting, "graphs", checks)


def _collect(setting: Setting, name: str, checks: list[gpu_checks.Results]) -> dict[str, Any]:
    """The checks' results, written after each; a check that breaks costs no other."""
    found: dict[str, Any] = {}
    for check in checks:
        try:
            for case, result in check:
                found[case] = result
                print(f"{case}: {result}", flush=True)
                setting.write(name, found)
                if time.monotonic() > setting.deadline:
                    return {**found, "left_out": f"what follows {case}: no time"}
        except Exception:
            found[f"error {len(found)}"] = {"ok": False, "error": traceback.format_exc()[-1500:]}
            print(traceback.format_exc(), flush=True)
    return found


def sm86_through_the_driver(setting: Setting) -> Any:
    """An A10G's machine code on this card. In smoke mode what of it needs no driver."""
    from kernels.bench import ptx_jit

    if setting.smoke:
        return {"parameters": ptx_jit.declared_parameters(".entry k(.param .u64 a, .param .u32 b)", "k")}
    return _collect(setting, "sm86_through_the_driver", [ptx_jit.check_sm86_kernels(setting.device)])


def benchmark(setting: Setting) -> Any:
    """The expert layers beside their peers, with the targets."""
    from kernels.benchmark import plot

    def keep(result: dict[str, Any]) -> None:
        setting.write("benchmark", {**result, "targets": targets.verdicts(result["rows"])})
        (setting.output / "targets.md").write_text(targets.text(result) + "\n", encoding="utf-8")

    if setting.smoke:
        cases = [gpu.Case(phase, 6) for phase in gpu.PHASES]
        sizes = TOY.dim, TOY.hidden_dim
        result = gpu.run(setting.deadline, setting.device, cases, *sizes, repeats=1, per_case_seconds=0.01, on_row=keep)
    else:
        cases = gpu.QUICK_CASES if setting.quick else gpu.CASES
        result = gpu.run(setting.deadline, setting.device, cases, on_row=keep)
    if not setting.quick:
        plot(result, setting.output / "benchmark.png")
    return {**result, "targets": targets.verdicts(result["rows"]), "ok": not result["failures"]}


def tiles(setting: Setting) -> Any:
    """This card's tile table, and sm_86's derived from the same search."""
    from kernels.gpu.launch import redirected
    from kernels.gpu.tile_tables import ANY, write_table

    card = describe(setting.device)
    logs: dict[str, Any] = {}

    def search(arch: str, derived: str | None, deadline: float, seconds: float, shape: ModelShape, sizes: Any) -> None:
        def keep(table: Any, log: Any) -> None:
            write_table(setting.output / f"{arch}.table.json", arch, table, card["device"])
            logs[arch] = log
            setting.write("tiles", logs)

        tune.tune(deadline, seconds, shape, setting.device.type, derived, sizes, keep)

    if setting.smoke:
        with redirected(tune.fill_with_zeros, "sm_90"):
            search("sm_90", None, setting.deadline, 0.01, TOY, {8: ANY})
        return logs
    now = time.monotonic()
    search(card["arch"], None, now + 0.6 * (setting.deadline - now), 1.5, MISTRAL_7B, tune.SIZES)
    if card["arch"] != "sm_86":
        search("sm_86", "sm_86", setting.deadline, 1.5, MISTRAL_7B, tune.SIZES)
    return logs


def smollm2(setting: Setting) -> Any:
    """Training runs on real pairs, one after another, each continued where an earlier call stopped it."""
    noted = setting.output / "smollm2.json"
    states: dict[str, Any] = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
    states.pop("ok", None)
    good = True
    for seed, rate in SMOLLM2_RUNS[: 1 if setting.smoke else None]:
        name = f"smollm2-lr{rate:g}-seed{seed}"
        if states.get(name) == "finished":
            continue
        new = ["--preset", "smollm2-135m", f"--base={setting.base}", f"--data={setting.data}", "--seed", str(seed)]
        new += ["--branch-lr", str(rate), "--mix-lr", str(2 * rate), *MIX, "--test-sets", "test", "test-standalone"]
        new = ["--runs", str(setting.output), "--name", name, *(TINY if setting.smoke else new)]
        run = setting.output / name
        arguments = ["--resume", str(run)] if (run / "run.json").exists() else new
        with DelayedInterrupt(lambda: None):  # which train.py gets, too: a parent that left at once would kill it
            code = subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT).returncode
            states[name] = "finished" if code == 0 else f"stopped (exit code {code}); the next call continues"
            setting.write("smollm2", states)
        good &= code in (0, 130)  # a run that fails costs no other
        if code == 130 or time.monotonic() > setting.deadline:
            break
    return {**states, "ok": good}


OWN: dict[str, Callable[[Setting], Any]] = {
    "correctness": correctness,
    "graphs": graphs,
    "benchmark": benchmark,
    "tiles": tiles,
    "sm86_through_the_driver": sm86_through_the_driver,
    "smollm2": smollm2,
}


def run_own(name: str, arguments: argparse.Namespace, device: torch.device) -> int:
    """One of `OWN` in this process; its result goes to NAME.json."""
    deadline = time.monotonic() + arguments.seconds
    values = (arguments.smoke, arguments.quick, arguments.base, arguments.data)
    setting = Setting(arguments.output, deadline, device, *values)
    try:
        result = OWN[name](setting)
    except Exception:
        setting.write(f"{name}.error", traceback.format_exc())  # beside what the part had written so far
        traceback.print_exc()
        return 1
    setting.write(name, result)
    return 1 if gpu_checks.failed(result) else 0
