"""A finished run as it is on disk: settings, scores, answers, losses and training steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.model_card import RESULTS_FILE, RUN_FILE
from checkpoints.storage.files import read_json_object
from eval.reporting.metrics import METRICS_FILE, read_metrics
from moe.errors import UserError
from moe.files import read_json_lines

ADAPTER, FULL_FINE_TUNE = "dense adapter", "full fine-tune"
MODELS = ("base", ADAPTER, "mixture")  # in the order of tables
STAGES = {"base": ("pretrain",), ADAPTER: ("adapter",), "mixture": ("branch", "mix", "preferences", "tests")}


def title(model: str, expert_form: Any) -> str:
    """What a reader is shown: the baseline beside full experts is no adapter, but the dense model trained."""
    return FULL_FINE_TUNE if model == ADAPTER and expert_form == "full" else model


@dataclass
class StageSteps:
    """The steps of one training stage: numbers and losses, tokens and seconds of all, (step, validation loss)."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    validation: list[tuple[int, float]] = field(default_factory=list)


class RunRecord:
    """What a run left in its directory.

    Args:
        finished: refuse a run without scores; else ``models`` and ``splits`` may be empty.

    Raises:
        UserError: the directory is no run, or has no scores yet.
    """

    def __init__(self, path: Path, finished: bool = True):
        if not (path / RUN_FILE).is_file():
            raise UserError(f"{path} is not a run: it has no {RUN_FILE}; expected a directory created by train.py")
        self.path, self.name = path, path.resolve().name
        self.settings = read_json_object(path / RUN_FILE)
        self.config: dict[str, Any] = self.settings.get("config", {})
        known = isinstance(self.config, dict) and isinstance(self.config.get("seed"), int)
        if not known or not isinstance(self.config.get("languages"), list):
            raise UserError(f"{path / RUN_FILE} has no settings under 'config'; expected what train.py writes")
        self.results = read_json_object(path / RESULTS_FILE) if (path / RESULTS_FILE).is_file() else {}
        entries = {name: self.results.get(f"scores of {name}") for name in MODELS}
        self.models = [name for name, x in entries.items() if isinstance(x, dict) and isinstance(x.get("scores"), dict)]
        if finished and not any(name != "base" for name in self.models):
            raise UserError(f"the run {path} is not finished: no trained model has scores; continue it with --resume")
        self.languages: list[str] = list(self.config["languages"])
        self.splits: list[str] = list(self._scores(self.models[-1])) if self.models else []

    @property
    def is_scored(self) -> bool:
        """Whether all answers have a CodeBLEU; a machine without its parser leaves them to ``score-answers``."""
        scores = (self._scores(model) for model in self.models)
        return all(
            "codebleu" in score for found in scores for languages in found.values() for score in languages.values()
        )

    def title(self, model: str) -> str:
        """What tables call a model (:func:`title`)."""
        return title(model, self.config.get("expert_form"))

    def titled(self, models: Mapping[str, Any]) -> dict[str, Any]:
        """Values by model under the titles that tables show."""
        return {self.title(model): value for model, value in models.items()}

    def answers_path(self, model: str, split: str) -> Path:
        """Where the answers of a model lie."""
        return self.path / "answers" / f"{model.replace(' ', '-')}-{split}.jsonl"

    def _scores(self, model: str) -> dict[str, Any]:
        return self.results[f"scores of {model}"]["scores"]

    def scores(self, split: str) -> dict[str, dict[str, dict[str, Any]]]:
        """model -> language -> CodeBLEU, parts, loss and so on, with ``tested`` and ``passed`` where tests were run."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for model in self.models:
            tests = self.results.get(f"tests of {model}", {}).get(split, {})
            found[model] = {x: {**score, **tests.get(x, {})} for x, score in self._scores(model)[split].items()}
        return found

    def cost(self, model: str) -> dict[str, Any]:
        """Sizes of a model, by the fields of :class:`eval.cost.Cost`; empty in runs of earlier versions."""
        return self.results[f"scores of {model}"].get("cost", {})

    @property
    def routing(self) -> dict[str, Any] | None:
        """The mixture's routing, by the fields of :class:`eval.specialization.Specialization`."""
        return self.results.get("scores of mixture", {}).get("specialization")

    def answers(self, model: str, split: str) -> list[dict[str, Any]]:
        """The scored answers, as rows."""
        return self._rows("answers", model, split)

    def losses(self, model: str, split: str) -> list[dict[str, Any]]:
        """The loss of each pair: ``id``, ``language``, ``nats``, ``tokens``; empty in runs of earlier versions."""
        return self._rows("losses", model, split)

    def _rows(self, folder: str, model: str, split: str) -> list[dict[str, Any]]:
        path = self.path / folder / f"{model.replace(' ', '-')}-{split}.jsonl"
        return [row for _, row in read_json_lines(path, "a scored row")] if path.is_file() else []

    def stages(self) -> dict[str, StageSteps]:
        """The training stages that made steps, in their order."""
        found: dict[str, StageSteps] = {}
        for row in read_metrics(self.path / METRICS_FILE):
            stage = found.setdefault(row["stage"], StageSteps())
            stage.steps.append(int(row["step"]))
            stage.losses.append(float(row["loss"]))
            stage.tokens += int(row["tokens"])
            stage.seconds += float(row["seconds"])
            if row.get("validation_loss"):
                stage.validation.append((int(row["step"]), float(row["validation_loss"])))
        return found
