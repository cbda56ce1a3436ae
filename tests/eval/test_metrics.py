"""What is written of each training step, and what is shown."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from eval.__main__ import main
from eval.reporting.display import SETTLED, StageDisplay, routing_faults
from eval.reporting.metrics import METRICS_FILE, SAMPLES_FILE, MetricsWriter, check_tracker, read_metrics
from eval.reporting.record import RunRecord
from eval.reporting.summary import worse_than_base
from moe.errors import UserError
from moe.training.progress import StepReport
from moe.training.samples import Sample
from tests.eval.run_files import write_run

LANGUAGES = ("python", "cpp")
OWN = torch.tensor([[[8.0, 2.0], [1.0, 9.0]], [[5.0, 5.0], [5.0, 5.0]]])  # of two routers, [R, G, E]


def report(step: int, stage: str = "mix", **changes) -> StepReport:
    table = OWN.sum(0)
    plain = StepReport(stage, step, 100, 1.5, (1.0, 2.0), 1.1, 0.2, 1e-3, 0.5, 1000, 0.5, table / table.sum(-1, True))
    return replace(plain, routers=OWN, flops_per_token=3e6, memory=2**29, **changes)


def test_a_row_holds_every_measurement(tmp_path):
    metrics = MetricsWriter(tmp_path, LANGUAGES, matmul_rate=2e10)
    metrics.write(replace(report(1, "branch"), routing=None, routers=None))
    metrics.write(report(1, validation=(2.0, 3.0), all_skipped=4))
    metrics.close()
    with (tmp_path / METRICS_FILE).open() as file:
        branch, mix = csv.DictReader(file)
    assert branch["share_cpp_to_cpp"] == "" == branch["bits_router_0"] and branch["validation_loss"] == ""
    assert (mix["stage"], mix["step"], mix["loss"], mix["loss_cpp"]) == ("mix", "1", "1.5", "2")
    assert (mix["validation_loss"], mix["validation_loss_python"], mix["skipped_steps"]) == ("2.5", "2", "4")
    assert float(mix["tokens_per_second"]) == 2000 and float(mix["mfu"]) == pytest.approx(3e6 * 2000 / 2e10)
    assert mix["memory_gib"] == "0.5" and float(mix["share_python_to_cpp"]) == pytest.approx(0.35)
    assert float(mix["bits_router_0"]) == pytest.approx(0.3973, abs=1e-3) and float(mix["bits_router_1"]) == 0


@pytest.mark.parametrize(
    "junk", ["mix,x,nonsense", "mix,9,1.0", "\0\0\0", "\x85\u2028", "a" * 200_000, '"', "mix,2," + "," * 40, ""]
)
def test_a_bad_row_is_dropped_and_steps_are_there_once(tmp_path, junk):
    metrics = MetricsWriter(tmp_path, LANGUAGES)
    for step in (1, 2, 3):
        metrics.write(report(step))
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(junk.encode() + b"\n\xff\xfe")
    again = MetricsWriter(tmp_path, LANGUAGES)
    again.resume("mix", 2)
    again.write(report(3))
    again.write(report(1, "adapter"))
    rows = read_metrics(tmp_path / METRICS_FILE)
    assert [(row["stage"], row["step"]) for row in rows] == [("mix", "1"), ("mix", "2"), ("mix", "3"), ("adapter", "1")]
    assert all(row["bits_router_1"] == "0" for row in rows)


def test_a_file_that_is_no_table_starts_anew(tmp_path):
    for content in (b"", b"\xff\xfe", b"stage\n"):
        (tmp_path / METRICS_FILE).write_bytes(content)
        MetricsWriter(tmp_path, LANGUAGES).resume("mix", 0)
        assert read_metrics(tmp_path / METRICS_FILE) == []


def test_samples_are_there_once_after_a_resume(tmp_path, monkeypatch):
    texts = []
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_text", lambda self, *row: texts.append(row))
    samples = tuple(Sample(x, f"Write {x}\u2028", f"caf\u00e9 {x}\n") for x in LANGUAGES)
    metrics = MetricsWriter(tmp_path, LANGUAGES)
    metrics.resume("branch", 0)
    metrics.write(report(2, "branch", samples=samples))
    metrics.resume("mix", 0)
    for step in (1, 2, 3, 4):
        metrics.write(report(step, samples=samples if step % 2 == 0 else ()))
    assert [row[0] for row in texts[:2]] == ["branch/samples/python", "branch/samples/cpp"] and len(texts) == 6
    assert "caf\u00e9 cpp" in texts[-1][1] and texts[-1][2] == 4
    with (tmp_path / SAMPLES_FILE).open("ab") as file:
        file.write(b'5\n{"stage": "mix"}\n{"stage": "mix", "st')
    again = MetricsWriter(tmp_path, LANGUAGES)
    again.resume("mix", 3)
    again.write(report(4, samples=samples))
    rows = [json.loads(line) for line in (tmp_path / SAMPLES_FILE).read_text("utf-8").split("\n")[:-1]]
    assert [(x["stage"], x["step"]) for x in rows[::2]] == [("branch", 2), ("mix", 2), ("mix", 4)]
    assert [x["text"] for x in rows] == ["caf\u00e9 python\n", "caf\u00e9 cpp\n"] * 3


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for done in (0, 2):
        metrics = MetricsWriter(tmp_path, LANGUAGES)
        for stage in ("branch", "mix") if done == 0 else ("mix",):
            metrics.resume(stage, done)
            for step in range(done + 1, 5):
                metrics.write(replace(report(step, stage), loss=float(10 * done + step)))
        metrics.close()
    for stage, losses in {"branch": [1, 2, 3, 4], "mix": [1, 2, 23, 24]}.items():
        found = events.EventAccumulator(str(tmp_path / "tensorboard" / stage)).Reload().Scalars(f"{stage}/loss")
        assert [(x.step, x.value) for x in found] == list(enumerate(losses, 1))


def test_trackers_get_the_same_numbers(tmp_path, monkeypatch):
    calls = []
    fake = SimpleNamespace(
        init=lambda **k: calls.append(k), log=lambda row: calls.append(row), finish=lambda: calls.append("finish")
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    metrics = MetricsWriter(tmp_path / "a run", LANGUAGES, tracker=check_tracker("trackio"))
    metrics.write(report(7, samples=(Sample("cpp", "Add.", "x"),)))
    metrics.close()
    assert calls[2] == {"mix/samples/cpp": "x", "mix/step": 7}
    assert calls[0] == {"project": "language-experts", "name": "a run"} and calls[-1] == "finish"
    assert calls[1]["mix/step"] == 7 and calls[1]["mix/loss_cpp"] == 2.0
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        check_tracker("wandb")


def shown(*reports: StepReport) -> str:
    out = io.StringIO()
    display = StageDisplay(Console(file=out, width=300), LANGUAGES, "mix", 100)
    for step in reports:
        display.update(step)
    return out.getvalue()


def test_skipped_steps_and_validation_are_shown():
    text = shown(report(1, validation=(2.0, 3.0)), report(100, skipped="the loss is not finite", all_skipped=3))
    assert "warning: mix, step 100 skipped, the loss is not finite (3 so far)" in text and "validation 2.500" in text


def test_a_starving_expert_and_a_collapsed_router_are_said_once():
    good, starved, collapsed = (torch.tensor(x) for x in ([[0.9, 0.1], [0.1, 0.9]], [[0.95, 0.05]] * 2, [[1.0, 0]] * 2))
    assert not routing_faults(good, LANGUAGES)
    assert routing_faults(torch.tensor([[0.85, 0.15], [float("nan")] * 2]), LANGUAGES) == []
    wide = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.01, 0.97, 0.01, 0.01]])
    assert [fault.split(",")[0] for fault in routing_faults(wide, LANGUAGES)] == [
        "expert 2 starves",
        "expert 3 starves",
    ]
    assert "all languages to one expert" in routing_faults(starved, LANGUAGES)[0]
    steps = [replace(report(step), routing=collapsed) for step in range(1, SETTLED + 30)]
    assert shown(*steps).count("all languages to one expert") == 1
    assert "warning" not in shown(*steps[: SETTLED - 1]), "a router may start anywhere"


def test_a_mixture_that_is_worse_than_its_base_is_said():
    def results(base, mixture):
        return {
            f"scores of {name}": {"scores": {"test": {"python": {"loss": loss}, "cpp": {"loss": loss + 1}}}}
            for name, loss in (("base", base), ("mixture", mixture))
        }

    assert worse_than_base(results(5.3, 5.2)) == "" == worse_than_base(results(5.3, 5.3))
    assert "held-out loss 7.800, the base's is 5.800" in worse_than_base(results(5.3, 7.3))


def test_curves_of_a_run_that_goes_on(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "results.json").unlink()
    (run / METRICS_FILE).unlink(missing_ok=True)
    assert exit_code(["plot", str(run)]) == 2 and "no training step yet" in capsys.readouterr().err
    metrics = MetricsWriter(run, LANGUAGES)
    for step in range(1, 9):
        metrics.write(report(step, validation=(2.0, 3.0) if step % 4 == 0 else None))
    assert exit_code(["plot", str(run)]) == 0
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert RunRecord(run, finished=False).stages()["mix"].validation == [(4, 2.5), (8, 2.5)]
    (tmp_path / "x.png").write_text("")
    assert exit_code(["plot", str(run), "--output", str(tmp_path / "x.png")]) == 2


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stopped:
        return int(stopped.code or 0)
