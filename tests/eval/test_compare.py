"""Comparing runs: scores over seeds, intervals of differences, and runs that must not be compared."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval.__main__ import main
from eval.bootstrap import METRICS, Sample, bootstrap, corpus_codebleu, ratio
from eval.codebleu import codebleu
from eval.codebleu.score import borrowed_scorer, count_each
from eval.compare import compare_runs, read_runs, recipes
from moe.errors import UserError
from tests.eval.run_files import FINGERPRINTS, write_run


def compared(*paths, **options):
    return compare_runs(read_runs(paths), **options)


def rows(found, first, second, metric):
    differences = found["splits"]["test"]["differences"]
    chosen = [x for x in differences if (x["first"], x["second"], x["metric"]) == (first, second, metric)]
    return {x["language"]: x for x in chosen}


def test_scores_are_those_of_the_runs_and_differences_have_their_sign(tmp_path):
    paths = [write_run(tmp_path / f"seed{seed}", seed) for seed in (0, 1, 2)]
    found = compared(*paths)
    values = found["splits"]["test"]["values"]
    assert list(values) == ["base", "dense adapter", "mixture"]
    runs = [json.loads((path / "results.json").read_text()) for path in paths]
    for model, metrics in values.items():
        for metric, key in (("loss", "loss"), ("CodeBLEU", "codebleu")):
            for language in ("python", "cpp"):
                wanted = [run[f"scores of {model}"]["scores"]["test"][language][key] for run in runs]
                assert metrics[metric][language]["mean"] == pytest.approx(np.mean(wanted))
                assert metrics[metric][language]["deviation"] == pytest.approx(np.std(wanted, ddof=1))
        passed = [run[f"tests of {model}"]["test"]["cpp"]["passed"] / 12 for run in runs]
        assert metrics["pass@1"]["cpp"]["mean"] == pytest.approx(np.mean(passed))
    for second in ("dense adapter", "base"):
        loss, bleu = rows(found, "mixture", second, "loss"), rows(found, "mixture", second, "CodeBLEU")
        assert list(loss) == ["python", "cpp", "mean"]
        assert loss["mean"]["difference"] == pytest.approx(
            values["mixture"]["loss"]["mean"]["mean"] - values[second]["loss"]["mean"]["mean"]
        )
        for row in (*loss.values(), *bleu.values()):
            assert row["low"] <= row["difference"] <= row["high"] and row["runs"] == 3
        assert loss["mean"]["high"] < 0 and loss["python"]["pairs"] == 36
    assert rows(found, "mixture", "base", "CodeBLEU")["mean"]["low"] > 0


def test_pairing_takes_the_pairs_difficulty_out():
    """Losses differ far more between pairs than between models: paired intervals are narrow, and hold the truth."""
    draw = np.random.default_rng(0)
    hard = draw.uniform(1, 100, 200)
    keys = tuple(range(200))
    tokens = np.full(200, 10.0)
    first = {"python": Sample(keys, np.stack([hard - 1 + draw.normal(0, 0.1, 200), tokens], 1))}
    second = {"python": Sample(keys[::-1], np.stack([hard, tokens], 1)[::-1])}  # in another order
    row = bootstrap("loss", [(first, second)], ["python"], 1000, 0)["python"]
    assert row.low < -0.1 < row.high and row.high - row.low < 0.01
    assert row.difference == pytest.approx(-0.1, abs=0.005)


def test_intervals_of_the_mean_have_their_coverage():
    """95% intervals of a difference that is known hold it about 95 times in 100, over pairs and over runs."""
    draw = np.random.default_rng(1)
    for runs, spread, least in ((1, 0.0, 88), (8, 0.5, 82)):
        held = 0
        for _ in range(100):
            measured = []
            for _ in range(runs):
                offset = draw.normal(0.3, spread)
                ones = np.ones(50)
                a = Sample(tuple(range(50)), np.stack([draw.normal(offset, 1, 50), ones], 1))
                b = Sample(tuple(range(50)), np.stack([np.zeros(50), ones], 1))
                measured.append(({"python": a}, {"python": b}))
            row = bootstrap("loss", measured, ["python"], 300, 0)["python"]
            held += row.low <= 0.3 <= row.high
        assert held >= least


def test_seeds_that_disagree_widen_the_interval():
    def run(difference):
        values = np.stack([np.full(40, difference), np.ones(40)], 1)
        return {"python": Sample(tuple(range(40)), values)}, {"python": Sample(tuple(range(40)), values * [0, 1])}

    same = bootstrap("loss", [run(-1.0)] * 3, ["python"], 500, 0)["python"]
    apart = bootstrap("loss", [run(x) for x in (-2.0, -1.0, 0.0)], ["python"], 500, 0)["python"]
    assert same.low == same.high == -1.0
    assert apart.difference == -1.0 and apart.low < -1.5 and apart.high > -0.5


def test_languages_with_the_same_pairs_are_drawn_together():
    """A mean over languages whose pairs are the same problems varies as one problem, not as independent ones."""
    values = np.stack([np.random.default_rng(0).normal(0, 1, 60), np.ones(60)], 1)
    zero = values * [0, 1]

    def both(keys):
        first = {x: Sample(tuple(k), values) for x, k in zip(("python", "cpp"), keys)}
        return first, {x: Sample(sample.keys, zero) for x, sample in first.items()}

    def width(keys):
        row = bootstrap("loss", [both(keys)], ["python", "cpp"], 2000, 0)["mean"]
        return row.high - row.low

    together, apart = width([range(60), range(60)]), width([range(60), range(60, 120)])
    assert apart < 0.85 * together


def test_resampled_codebleu_is_the_corpus_score():
    texts = ["x = a + 1", "y = b", "for i in a:\n    print(i)"]
    references = ["x = a + 2", "y = c", "for j in b:\n    print(j)"]
    with borrowed_scorer("python", "reference") as scorer:
        counts = np.array(count_each(references, texts, scorer))
    sums = np.array([[1, 1, 1], [2, 0, 1]]) @ counts
    wanted = [codebleu(references, texts, "python"), codebleu(
        [references[0], references[0], references[2]], [texts[0], texts[0], texts[2]], "python")]  # fmt: skip
    assert corpus_codebleu(sums).tolist() == pytest.approx([x.codebleu for x in wanted], abs=1e-12)
    assert METRICS["pass@1"] is ratio and ratio(np.array([[3.0, 4.0]])).tolist() == [0.75]


def test_a_mixture_is_compared_with_an_adapter_of_another_run(tmp_path):
    """Runs that trained one of the two each: pairs of one seed are matched by id, whatever their order."""
    both = write_run(tmp_path / "both", models={"base": 0.2, "dense adapter": 0.5, "mixture": 0.8})
    apart = [
        write_run(tmp_path / "mixture", models={"base": 0.2, "mixture": 0.8}, baseline=False),
        write_run(tmp_path / "adapter", models={"base": 0.2, "dense adapter": 0.5}),
    ]
    wanted, found = compared(both), compared(*apart)
    for metric in ("loss", "CodeBLEU", "pass@1"):
        assert rows(found, "mixture", "dense adapter", metric) == rows(wanted, "mixture", "dense adapter", metric)
    path = apart[1] / "losses" / "dense-adapter-test.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    again = rows(compared(*apart), "mixture", "dense adapter", "loss")
    assert again["mean"]["difference"] == pytest.approx(
        rows(wanted, "mixture", "dense adapter", "loss")["mean"]["difference"]
    )


def test_recipes_are_told_apart_by_their_settings(tmp_path):
    paths = [write_run(tmp_path / f"a{seed}", seed) for seed in (0, 1)]
    paths += [write_run(tmp_path / f"b{seed}", seed, {"base": 0.2, "mixture": 0.9}, expert_rank=32) for seed in (0, 1)]
    found = compared(*paths)
    assert [row["runs"] for row in found["recipes"]] == ["a0, a1", "b0, b1"]
    assert [row["settings"] for row in found["recipes"]] == ["expert_rank = 16", "expert_rank = 32"]
    assert rows(found, "mixture 2", "mixture 1", "loss")["mean"]["high"] < 0
    assert rows(found, "mixture 2", "dense adapter 1", "loss"), "a recipe without an adapter is held against another's"
    assert len(recipes(read_runs(paths[:2]))) == 1
    with pytest.raises(UserError, match="repeats the settings and the seed 0 of another run"):
        compared(paths[0], write_run(tmp_path / "copy", 0))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"training data": "x"}, "training data"),
        ({"test sets": {"test": "x"}}, "test sets"),
        ({"base": "x", "tokenizer": "y"}, "base, tokenizer"),
    ],
)
def test_runs_of_different_data_are_refused_without_being_told(tmp_path, changed, named, capsys):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", 1, fingerprints={**FINGERPRINTS, **changed})]
    arguments = ["compare", *map(str, paths)]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and not out and err.count("\n") == 1
    assert f"differ in {named}; compare runs of the same data, test sets and base, or add --allow-different" in err
    assert main([*arguments, "--allow-different"]) == 0
    out, err = capsys.readouterr()
    assert f"warning: {paths[0]} and {paths[1]} differ in {named}" in err and "test: differences" in out
    same = [write_run(tmp_path / f"{name}0", fingerprints={**FINGERPRINTS, **extra}) for name, extra in
            (("a", {}), ("b", changed))]  # fmt: skip
    found = compared(*same, allow_different=True)
    across = rows(found, "mixture 2", "mixture 1", "loss")
    assert bool(across) == ("test sets" not in changed), "other pairs are not paired, whatever their ids"


def test_older_runs_and_other_languages(tmp_path):
    old = write_run(tmp_path / "old", 1, fingerprints=None)
    other = write_run(tmp_path / "other", 2, languages=("python",))
    new = write_run(tmp_path / "new")
    with pytest.raises(UserError, match=r"old has no fingerprints \(of an earlier version\)"):
        compared(new, old)
    with pytest.raises(UserError, match="differ in languages"):
        compared(new, other)
    found = compared(new, other, allow_different=True)
    assert set(rows(found, "mixture 1", "base 1", "loss")) == {"python", "mean"}
    for name in ("losses", "answers"):
        for path in (old / name).iterdir():
            path.unlink()
    assert compared(old)["splits"]["test"]["differences"] == [], "nothing by pairs, no interval"


def test_tables_and_json(tmp_path, capsys):
    paths = [str(write_run(tmp_path / f"seed{seed}", seed)) for seed in (0, 1)]
    assert main(["compare", *paths, "--json", "--resamples", "200"]) == 0
    found = json.loads(capsys.readouterr().out)
    numbers = found["splits"]["test"]
    assert set(numbers["values"]["mixture"]["loss"]["mean"]["seeds"]) == {"0", "1"}
    assert numbers["costs"][2] == {
        "model": "mixture", "parameters": "1.353 M", "trained": "0", "active per token": "1.353 M",
        "FLOPs per token": "4.000 M", "steps": "10", "tokens": "1.000 k", "seconds": "5, 5",
    }  # fmt: skip
    assert main(["compare", *paths]) == 0
    out = capsys.readouterr().out
    value = numbers["values"]["mixture"]["CodeBLEU"]["python"]
    assert f"{value['mean']:.3f} ± {value['deviation']:.3f}" in out and "drawing 2 seeds, then pairs" in out
    assert main(["compare", paths[0]]) == 0
    assert "one seed: without the spread of seeds" in capsys.readouterr().out


def test_mistakes_get_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    unfinished = write_run(tmp_path / "unfinished", models={"base": 0.5})
    damaged = {name: write_run(tmp_path / name) for name in ("settings", "results")}
    (damaged["settings"] / "run.json").write_text('{"config": {"languages": 5, "seed": "0"}}')
    (damaged["results"] / "results.json").write_text('{"scores of base": 1, "scores of mixture": {"scores": []}}')
    for arguments, message in (
        ([tmp_path], "is not a run"),
        ([run, run], "a run is named twice"),
        ([unfinished], "is not finished: no trained model has scores"),
        ([run, "--split", "dev"], "not every run has the test set 'dev'; all have: test"),
        ([run, "--resamples", "10"], "--resamples is 10, expected 100 to 1,000,000"),
        ([run, "--resamples", str(10**13)], "expected 100 to 1,000,000"),
        ([damaged["settings"]], "has no settings under 'config'"),
        ([damaged["results"]], "is not finished: no trained model has scores"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", *map(str, arguments)])
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and message in err and err.count("\n") == 1
