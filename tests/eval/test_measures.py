"""Held-out loss, routing counts and mutual information."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from eval.reporting.display import StageDisplay
from eval.reporting.tables import loss_table, routing_table, score_rows, score_table
from eval.specialization import RoutingCounter, mutual_information
from moe.data.packing import Example, make_batch
from moe.training.held_out_loss import held_out_loss, single_language_batches
from moe.training.progress import StepReport
from moe.training.trainer import batch_losses, forward_batch


def language_examples(language: int, count: int) -> list[Example]:
    generator = torch.Generator().manual_seed(language)
    lengths = torch.randint(4, 20, (count,), generator=generator).tolist()
    return [Example(tuple(torch.randint(0, 97, (n,), generator=generator).tolist()), 2, language) for n in lengths]


@pytest.fixture
def mixture(tiny_config, make_model):
    return make_model(replace(tiny_config, num_experts=2), dtype=torch.float32)


@pytest.mark.parametrize("forced", [False, True])
def test_held_out_loss_is_the_mean_over_response_tokens(mixture, forced):
    examples = {"python": language_examples(0, 7), "cpp": language_examples(1, 5)}
    result = held_out_loss(mixture, examples, tokens_per_batch=32, forced=forced)
    for language, items in examples.items():
        with torch.no_grad():
            losses = torch.cat(
                [batch_losses(mixture, forward_batch(mixture, b, forced), b) for b in map(make_batch, zip(items))]
            )
        assert result[language].loss == pytest.approx(losses.mean().item(), rel=1e-5)
        assert result[language].tokens == losses.numel()
        assert result[language].examples == len(items)
        for nats, item in zip(result[language].nats, items, strict=True):  # in the order of the examples
            batch = make_batch([item])
            with torch.no_grad():
                alone = batch_losses(mixture, forward_batch(mixture, batch, forced), batch)
            assert nats == pytest.approx(alone.sum().item(), rel=1e-4)


def test_every_example_is_in_one_batch():
    items = language_examples(0, 30)
    batches = single_language_batches(items, 40)
    assert sorted(len(e.tokens) for e in items) == sorted(n for b in batches for n in b.documents)
    assert all(b.tokens.shape[1] <= 40 for b in batches)


@pytest.mark.parametrize(
    ("counts", "bits"),
    [
        ([[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [0, 0, 0, 10]], 2.0),
        ([[5, 5], [5, 5]], 0.0),
        ([[1000, 0], [0, 3]], 1.0),  # languages weigh the same, however many tokens they have
        ([[3, 1], [1, 3]], 1.0 - (-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))),
    ],
)
def test_mutual_information(counts, bits):
    assert mutual_information(torch.tensor(counts)) == pytest.approx(bits, abs=1e-9)


def test_routing_counter_counts_response_tokens_per_language(mixture):
    examples = {"python": language_examples(0, 20), "cpp": language_examples(1, 20)}
    counter = RoutingCounter(2, 2, 2)
    result = held_out_loss(mixture, examples, 64, counter)
    tokens = [result[x].tokens for x in examples]
    for first, weights in zip(counter.first, counter.weights):
        assert first.sum(1).tolist() == tokens
        assert weights.sum(1).tolist() == pytest.approx(tokens, rel=1e-5)  # each token's gates sum to 1
    found = counter.specialization()
    assert all(sum(row) == pytest.approx(1.0) for row in found.table)
    assert len(found.information) == len(found.shuffled) == len(found.layers) == 2
    whole = sum(counter.weights)
    assert found.table == [(row / row.sum()).tolist() for row in whole]
    for layer, weights in zip(found.layers, counter.weights):
        assert layer == [(row / row.sum()).tolist() for row in weights]


def test_experts_forced_by_language_carry_all_the_information(mixture):
    """A router that knows the language: one bit for two languages, and next to nothing with shuffled labels."""
    counter = RoutingCounter(2, 2, 2)
    for language in (0, 1):
        batch = make_batch(language_examples(language, 200))
        counter(batch, forward_batch(mixture, batch, forced=True))
    found = counter.specialization()
    assert found.information == pytest.approx([1.0, 1.0])
    assert max(found.shuffled) < 0.05


def test_tables_show_ratios_and_every_language():
    score = {
        "codebleu": 0.2,
        "ngram_match_score": 0.1,
        "weighted_ngram_match_score": 0.1,
        "syntax_match_score": 0.3,
        "dataflow_match_score": 0.3,
        "answers": 5,
        "loss": 1.5,
    }
    better = {**score, "codebleu": 0.5}
    results = {"test": {"base": {"python": score, "cpp": score}, "mixture": {"python": better, "cpp": better}}}
    table = score_table(results, "test", ["python", "cpp"])
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["Python", "C++", "mean"] and cells[-1] == ["2.50"] * 3
    assert len(loss_table(results, "test", ["python", "cpp"]).rows) == 2
    assert len(routing_table([[0.5, 0.5], [0.1, 0.9]], ["python", "cpp"], "x").rows) == 2


def test_pass_at_1_stands_beside_codebleu_where_tests_were_run():
    def scores(codebleu, **tests):
        return {"codebleu": codebleu, "loss": 1.0, **tests}

    base = {"python": scores(0.1, tested=4, passed=0), "cpp": scores(0.2, tested=0, passed=0), "go": scores(0.0)}
    mixture = {"python": scores(0.3, tested=4, passed=3), "cpp": scores(0.4, tested=2, passed=1), "go": scores(0.5)}
    python, cpp, go, mean = score_rows({"base": base, "mixture": mixture}, ["python", "cpp", "go"])
    assert python == {"language": "Python", "CodeBLEU": "0.100 → 0.300", "ratio": "3.00", "pass@1": "0.00 → 0.75"}
    assert cpp["pass@1"] == "- → 0.50" and go["pass@1"] == "- → -" and go["ratio"] == "-"
    assert mean["pass@1"] == "0.00 → 0.62", "over the languages that were tested"
    table = score_table({"test": {"base": base, "mixture": mixture}}, "test", ["python", "cpp", "go"])
    assert table.title == "CodeBLEU and pass@1 on held-out pairs (test)" and table.caption == "base → mixture"


def test_a_language_that_misses_in_a_step_keeps_its_routing(capsys):
    """The live table averages over the steps in which a language had tokens, and says nothing before the first."""
    console = Console(force_terminal=False, width=200)
    nan = float("nan")
    display = StageDisplay(console, ["python", "cpp"], "mix", 3)
    steps = [[0.5, 0.5], [nan, nan]], [[nan, nan], [0.2, 0.8]], [[nan, nan], [0.2, 0.8]]
    for step, shares in enumerate(steps, start=1):
        report = StepReport("mix", step, 3, 1.0, (1.0, None), 1.0, 0.1, 1e-3, 1.0, 64, 0.1, torch.tensor(shares))
        display.update(report)
        if step == 1:
            assert display._routing[0].tolist() == [0.5, 0.5] and display._routing[1].isnan().all()
    assert "to own expert 50% 80%" in capsys.readouterr().out
    assert routing_table([[0.5, 0.5], [nan, nan]], ["python", "cpp"], "x").columns[1]._cells[1] == "-"


def test_progress_fits_into_80_columns():
    """Counts, times, speed and every language's loss are all there where a terminal is narrow."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, legacy_windows=False, color_system=None)
    languages = ["python", "java", "javascript", "cpp"]
    with StageDisplay(console, languages, "pretrain", 2200) as display:
        losses = (1.5, 1.25, 2.0, 1.75)
        routing = torch.full((4, 4), 0.25)
        display.update(StepReport("pretrain", 1000, 2200, 1.625, losses, 1.0, 0.1, 1e-3, 1.0, 4096, 0.25, routing))
    shown = out.getvalue()
    assert "pretrain" in shown and "1000/2200" in shown and "left, 16,384 tokens/s" in shown
    assert "loss 1.625 (python 1.500 java 1.250 javascript 2.000 cpp 1.750)" in shown and "…" not in shown
