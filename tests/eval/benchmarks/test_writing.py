"""A model's answers: where they end, and runs that continue after a kill; the command from model to table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints.model_io import LoadedModel, save_model
from eval.__main__ import main
from eval.benchmarks import cli, scoring, writing
from eval.benchmarks.prompts import AnswerStream, encode, instruction
from eval.benchmarks.writing import WritingSettings, read_rows, write_answers
from eval.execution import Verdict
from moe.data.prompt import encode_prompt
from moe.errors import UserError
from moe.inference.sampling import GREEDY, Sampling
from moe.tokenizer import train_sentencepiece
from tests.eval.benchmarks.embedded import HUMANEVAL, HUMANEVAL_X, MULTIPL_E, PAIR, problems

ROWS = [{**row, "task_id": f"{row['task_id'].partition('/')[0]}/{n}"} for row in HUMANEVAL_X.values() for n in range(3)]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [row["prompt"] + row["canonical_solution"] + "```python\n```\n" for row in HUMANEVAL_X.values()]
    return train_sentencepiece(texts * 3, 400, None)


@pytest.fixture
def loaded(tokenizer, tiny_config, make_model):
    config = replace(tiny_config, vocab_size=tokenizer.vocab_size, max_seq_len=1024)
    return LoadedModel(make_model(config), config, tokenizer, "plain", Path("tiny"))


def stream(tokenizer, problem, style, text):
    found = AnswerStream(tokenizer, problem, style)
    for token in tokenizer.encode(text):
        found.push(token)
        if found.stopped:
            break
    found.flush()
    return found


@pytest.mark.parametrize(
    ("language", "text", "kept"),
    [
        ("python", "    return 1\n\n    # more\ndef f(", "    return 1\n\n    # more"),
        ("python", "    return 1\nprint(f())", "    return 1"),
        ("java", "\n    return 1; // }\n    }\n    void g() {", "\n    return 1; // }\n    }"),
        ("javascript", "\n  if (x) { y }\n}\nconsole.log(1)", "\n  if (x) { y }\n}"),
        ("cpp", "\n return 1;}}", "\n return 1;}"),
    ],
)
def test_completions_end_where_the_benchmark_says(language, text, kept, tokenizer, tmp_path):
    (problem,) = problems("humaneval-x", [HUMANEVAL_X[language]], tmp_path)
    found = stream(tokenizer, problem, "completion", text)
    assert (found.text.lstrip(" "), found.stopped) == (kept.lstrip(" "), True)


def test_multipl_e_names_its_stop_strings(tokenizer, tmp_path):
    (problem,) = problems("multipl-e", [MULTIPL_E["cpp"]], tmp_path)
    found = stream(tokenizer, problem, "completion", "\n    if (x) {\n    }\n    return 1;\n}\nint main() {")
    assert (found.text, found.stopped) == ("\n    if (x) {\n    }\n    return 1;", True)


def test_chat_answers_end_with_their_first_code_block(tokenizer, tmp_path):
    (problem,) = problems("humaneval-x", [HUMANEVAL_X["python"]], tmp_path)
    found = stream(tokenizer, problem, "instruction", "Yes:\n```python\ndef f():\n    return 1\n```\nprint(1)\n```")
    assert found.stopped and found.text.rstrip("\n`").endswith("return 1")
    assert not stream(tokenizer, problem, "instruction", "def f():\n    return 1\n").stopped


def test_completions_are_plain_text_and_instructions_use_the_template(tokenizer, tmp_path):
    (problem,) = problems("humaneval", [HUMANEVAL], tmp_path)
    text = tokenizer.decode(encode(problem, "completion", tokenizer, "mistral-instruct", "train"))
    assert text.strip() == problem.prompt.strip()
    asked = encode(problem, "instruction", tokenizer, "mistral-instruct", "code-only")
    assert asked == encode_prompt(tokenizer, "mistral-instruct", instruction(problem, "code-only"))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, seed=3)])
def test_a_killed_run_continues_to_the_same_bytes(sampling, loaded, tmp_path, monkeypatch):
    found = problems("humaneval-x", ROWS, tmp_path)
    samples = 1 if sampling.greedy else 3
    settings = WritingSettings("completion", samples, sampling, 12, 4, "train")
    write_answers(loaded, found, settings, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert whole.count(b"\n") == len(found) * samples
    append, written = writing.append_rows, []

    def killed(path, rows):
        written.append(rows)
        if len(written) == 7:
            with path.open("ab") as file:
                file.write(json.dumps(rows[0]).encode()[:20])
            raise KeyboardInterrupt
        append(path, rows)

    monkeypatch.setattr(writing, "append_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        write_answers(loaded, found, settings, tmp_path / "killed.jsonl")
    monkeypatch.setattr(writing, "append_rows", append)
    progress: list[int] = []
    write_answers(loaded, found, settings, tmp_path / "killed.jsonl", lambda done, total: progress.append(done))
    assert progress == list(range(6, len(found) * samples + 1))
    assert (tmp_path / "killed.jsonl").read_bytes() == whole
    write_answers(loaded, found, settings, tmp_path / "killed.jsonl")
    assert (tmp_path / "killed.jsonl").read_bytes() == whole


def test_draws_belong_to_a_problem_and_a_sample(loaded, tmp_path):
    """Neither the other problems nor the batch change an answer (in float64; rounding may, in lower precision)."""
    found = problems("humaneval-x", ROWS, tmp_path)
    settings = WritingSettings("completion", 2, Sampling(0.9, seed=1), 8, 5, "train")
    write_answers(loaded, found, settings, tmp_path / "all.jsonl")
    write_answers(loaded, found[3:5], replace(settings, batch_size=1), tmp_path / "few.jsonl")
    every, few = read_rows(tmp_path / "all.jsonl"), read_rows(tmp_path / "few.jsonl")
    assert len(few) == 4 and all(every[key] == row for key, row in few.items())
    assert len({row["answer"] for row in few.values()}) > 1
    write_answers(loaded, found[3:5], replace(settings, sampling=Sampling(0.9, seed=2)), tmp_path / "other.jsonl")
    assert read_rows(tmp_path / "other.jsonl") != few


def test_prompts_that_do_not_fit_are_named(loaded, tmp_path):
    found = problems("humaneval", [{**HUMANEVAL, "prompt": "x = 1\n" * 2000}], tmp_path)
    with pytest.raises(UserError, match=r"the prompt of .*line 1, HumanEval/7 has \d+ tokens and leaves no room"):
        write_answers(loaded, found, WritingSettings("completion", 1, GREEDY, 8, 1, "train"), tmp_path / "x.jsonl")


@pytest.fixture
def model(loaded, tmp_path):
    return save_model(loaded.model.float(), loaded.tokenizer, tmp_path / "model", template="plain")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def judged(monkeypatch):
    """Code passes when its length is even."""

    def judge_many(jobs, limits, workers):
        for _, code, _ in jobs:
            yield Verdict("passed" if len(code) % 2 == 0 else "failed")

    monkeypatch.setattr(scoring, "judge_many", judge_many)


def run(*words):
    return main(["benchmark", *map(str, words)])


@pytest.mark.parametrize("style", ["completion", "instruction"])
def test_one_command_goes_from_a_model_to_a_table(style, model, data, judged, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["humaneval-x", "--data", data, "--model", model, "--style", style, "--language", "python", "cpp"]
    words += ["--samples", 3, "--temperature", 0.8, "--k", 1, 3, "--max-new-tokens", 6, "--problems", "0-1"]
    assert run(*words) == 0
    shown = capsys.readouterr().out
    assert "pass@1" in shown and "pass@3" in shown and "Python" in shown and "C++" in shown and "Java" not in shown
    (folder,) = (tmp_path / "runs" / "benchmarks").iterdir()
    before = {name: (folder / name).read_bytes() for name in (cli.ANSWERS_FILE, cli.VERDICTS_FILE)}
    results = json.loads((folder / "results.json").read_text())
    rows = [json.loads(line) for line in before[cli.VERDICTS_FILE].splitlines()]
    assert len(rows) == 2 * 2 * 3
    for language, found in results["languages"].items():
        passed = [row["status"] == "passed" for row in rows if row["language"] == language]
        assert found["pass_at_k"]["1"]["mean"] == pytest.approx(sum(passed) / len(passed))
    assert "| Python | 2 |" in (folder / "results.md").read_text()
    assert run(*words) == 0  # the same command continues
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert run("humaneval-x", "--data", data, "--answers", folder / cli.ANSWERS_FILE, "--style", style,
               "--language", "python", "cpp", "--problems", "0-1", "--k", 3, "--output", "again") == 0  # fmt: skip
    again = json.loads((tmp_path / "again" / "results.json").read_text())["languages"]
    assert again["cpp"]["statuses"] == results["languages"]["cpp"]["statuses"]


def test_a_run_of_other_settings_or_weights_is_not_continued(model, data, judged, loaded, make_model, tmp_path, capsys):
    words = ["humaneval-x", "--data", data, "--problems", "0-0", "--max-new-tokens", 4, "--output", tmp_path / "run"]
    assert run(*words, "--model", model) == 0
    other = save_model(make_model(loaded.config, 1).float(), loaded.tokenizer, tmp_path / "other", template="plain")
    for changed in (["--model", model, "--style", "instruction"], ["--model", other], ["--canonical"]):
        with pytest.raises(SystemExit):
            run(*words, *changed)
        assert f"{tmp_path / 'run'} was started with" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(SystemExit):
        run(*words[:-1], tmp_path / "mine", "--canonical")
    assert "is not a benchmark's run" in capsys.readouterr().err


def test_own_solutions_are_scored_without_a_model(data, judged, tmp_path, capsys):
    assert run("humaneval-x", "--data", data, "--canonical", "--output", tmp_path / "run") == 0
    assert "own solutions" in capsys.readouterr().out
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(PAIR))
    assert run("pairs", "--data", pairs, "--canonical", "--output", tmp_path / "pairs") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "m", "--k", "10"], "--k 10 needs as many samples; type --samples 10 or more"),
        (["--model", "m", "--samples", "3"], "at temperature 0 all samples are the same; add --temperature 0.8"),
        (["--canonical", "--problems", "9-3"], "--problems is '9-3'; expected FIRST-LAST, such as 0-19"),
        (["--canonical", "--problems", "x"], "--problems is 'x'"),
        (["--canonical", "--language", "pyhton"], "unknown language 'pyhton' (did you mean 'python'?)"),
        (["--canonical", "--style", "completion"], "--style is for answers"),
        (["--canonical", "--timeout", "0"], "--timeout is 0; it must be greater than 0"),
        (["--canonical", "--k", "0"], "--k is 0"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--answers", "no-such-file.jsonl"], "no-such-file.jsonl: no such file"),
        ([], "one of the arguments --model --answers --canonical is required"),
    ],
)
def test_mistakes_give_one_line(words, message, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run("humaneval-x", "--data", data, *words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_benchmarks_are_named_when_one_is_unknown(data, capsys):
    with pytest.raises(SystemExit):
        run("humanevalx", "--data", data, "--canonical")
    assert "humaneval-x" in capsys.readouterr().err


def test_missing_solutions_are_said(data, tmp_path, capsys):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MULTIPL_E.values()))
    with pytest.raises(SystemExit):
        run("multipl-e", "--data", path, "--canonical", "--output", tmp_path / "run")
    assert "has no solutions; give --model or --answers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
