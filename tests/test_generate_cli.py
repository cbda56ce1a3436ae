"""``generate.py`` as a user meets it: what it prints, what it writes, and what it says about mistakes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import pytest

import generate
from checkpoints.answers_file import AnswersFile
from checkpoints.model_io import save_model
from moe.config import ModelConfig
from moe.errors import UserError
from moe.tokenizer import train_sentencepiece

PROMPT = "Return the sum of all even numbers in a list."


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of runs: an older and a newer finished one with experts, and one that is not finished."""
    from moe.model import Transformer

    folder = tmp_path_factory.mktemp("runs")
    tokenizer = train_sentencepiece([PROMPT, "def total(xs):\n    return sum(xs)\n"] * 20, 400, None)
    sizes = {"vocab_size": tokenizer.vocab_size, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
    config = ModelConfig(**sizes, hidden_dim=48, max_seq_len=160, num_experts=2, expert_languages=("python", "cpp"))
    for age, name in enumerate(("newer", "older")):
        model = Transformer(config).reset(age, std=0.2)
        save_model(model, tokenizer, folder / name / "model", template="plain")
        when = 1_700_000_000 - age
        os.utime(folder / name / "model" / "config.json", (when, when))
    dense = replace(config, num_experts=0, expert_languages=())
    save_model(
        Transformer(dense).reset(2, std=0.2), tokenizer, folder.parent / f"{folder.name}-dense", template="plain"
    )
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "run.json").write_text("{}")
    return folder


@pytest.fixture
def call(runs, capsys, monkeypatch):
    """Runs the command in this process with the test's runs; gives exit code, stdout and stderr."""

    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setenv("COLUMNS", "120")
        place = [] if "--model" in arguments or "--runs" in arguments else ["--runs", str(runs)]
        try:
            code = generate.command([*arguments, *place, "--device", "cpu", "--dtype", "float32"])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def test_one_prompt_with_the_newest_run(call, runs):
    code, out, err = call(PROMPT, "--language", "python", "--max-new-tokens", "20")
    assert code == 0 and out.endswith("\n") and len(out) > 5
    assert f"model {runs / 'newer' / 'model'} (the newest run" in err
    assert "weights in float32" in err and "20 written" in err and "tokens/s" in err and "cut off" in err
    again = call(PROMPT, "--language", "python", "--max-new-tokens", "20", "--model", str(runs / "newer" / "model"))
    assert again[1] == out and "the newest run" not in again[2]
    assert call(PROMPT, "--language", "cpp", "--max-new-tokens", "20")[1] != out
    assert call(PROMPT, "--max-new-tokens", "20")[1] != out


def test_sampling_flags(call):
    def drawn(*flags: str) -> str:
        return call(PROMPT, "--max-new-tokens", "16", *flags)[1]

    hot = ("--temperature", "1.5")
    assert drawn(*hot, "--seed", "1") == drawn(*hot, "--seed", "1") != drawn(*hot, "--seed", "2")
    assert drawn(*hot, "--top-k", "1") == drawn() == drawn(*hot, "--top-p", "1e-9")
    assert "at temperature 0 --top-k, --top-p, --min-p and --seed do nothing" in call("a", "--min-p", "0.1")[2]


def test_stop_strings(call):
    whole = call(PROMPT, "--max-new-tokens", "30")[1]
    stop = whole[4:6]
    code, out, err = call(PROMPT, "--max-new-tokens", "30", "--stop", "not in it", "--stop", stop)
    assert code == 0 and out.rstrip("\n") == whole[: whole.index(stop)].rstrip("\n") and "cut off" not in err


def test_routing_is_shown(call, runs):
    code, out, err = call(PROMPT, "--max-new-tokens", "5", "--show-routing")
    assert out == call(PROMPT, "--max-new-tokens", "5")[1]
    assert code == 0 and "python" in err and "cpp" in err and "all" in err and "%" in err
    model = str(runs.parent / f"{runs.name}-dense")
    dense = call(PROMPT, "--max-new-tokens", "5", "--show-routing", "--model", model, "--base", model)
    assert dense[0] == 0 and "no experts" in dense[2] and "--base does nothing" in dense[2]
    assert "none for java" in call(PROMPT, "--max-new-tokens", "1", "--language", "java")[2]


def test_the_router_is_told_what_to_do(call, tmp_path):
    short = (PROMPT, "--max-new-tokens", "12", "--language", "cpp")
    free, forced = call(*short), call(*short, "--routing", "forced")
    assert "the router decided for " in free[2] and "forced to cpp" in forced[2] and free[1] != forced[1]
    assert forced[1] == call(*short, "--experts", "1")[1] == call(*short, "--experts", "cpp,1")[1]
    assert call(*short, "--experts", "0,1")[1] == free[1]
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"text": PROMPT, "language": "cpp"}))
    flags = ("--prompts", str(prompts), "--max-new-tokens", "12", "--routing", "forced")
    assert json.loads(call(*flags)[1])["answer"].rstrip("\n") == forced[1].rstrip("\n")


def test_json_and_trace(call, tmp_path):
    page = tmp_path / "trace.html"
    code, out, err = call(PROMPT, "--max-new-tokens", "5", "--json", "--trace", str(page))
    row = json.loads(out)
    assert code == 0 and row["tokens"] == 5 and set(row["routing"]) == {"python", "cpp"} and f"wrote {page}" in err
    assert row["answer"].rstrip("\n") == call(PROMPT, "--max-new-tokens", "5")[1].rstrip("\n")
    before = page.read_bytes()
    assert before.startswith(b"<!doctype html>")
    assert "exists; give another" in call(PROMPT, "--trace", str(page))[2] and page.read_bytes() == before
    other = str(tmp_path / "chat.html")
    said = f"/trace {other}\n{PROMPT}\nagain\n/trace {other}\n/trace {other}\n"
    code, out, err = call("--max-new-tokens", "5", stdin=said)
    assert code == 0 and "no answer to trace yet" in err and f"wrote {other}" in err and "give another name" in err


def test_prompts_from_a_file(call, tmp_path):
    rows = [
        {"text": PROMPT, "language": "python", "id": "a"},
        {"text": "Sort a list.", "language": "cpp", "id": "b"},
        {"text": "Say hello.", "language": None},
    ]
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--prompts", str(prompts), "--max-new-tokens", "12", "--batch-size", "2", "--batch-invariant")
    code, out, err = call(*flags, "--output", str(output))
    assert code == 0 and out == "" and "wrote 3 answers" in err and "36 written" in err and "warning" not in err
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(a["id"], a["language"], a["text"]) for a in answers] == [
        (r.get("id"), r["language"], r["text"]) for r in rows
    ]
    assert [set(a) for a in answers] == [
        {"id", "language", "text", "answer", "finished", "prompt_tokens", "tokens"} for _ in rows
    ]
    for row, answer in zip(rows, answers):
        language = ("--language", row["language"]) if row["language"] else ()
        alone = call(row["text"], *language, "--max-new-tokens", "12")[1]
        assert alone.rstrip("\n") == answer["answer"].rstrip("\n")
    err = call(*flags, "--batch-size", "33")[2]
    assert "warning: --batch-invariant answers at most 32 prompts of this model at once, not 33" in err
    code, out, err = call(*flags, "--show-routing")
    routed = [json.loads(line) for line in out.splitlines()]
    assert [{k: v for k, v in r.items() if k != "routing"} for r in routed] == answers
    assert all(
        set(r["routing"]) == {"python", "cpp"} and sum(r["routing"].values()) == pytest.approx(1) for r in routed
    )

    before = output.read_bytes()
    code, out, err = call(*flags, "--output", f"{tmp_path}/./prompts.jsonl", "--force")
    assert code == 2 and "is where the prompts are read from" in err and prompts.read_text().count("\n") == 3
    code, out, err = call(*flags, "--output", str(output))
    assert code == 2 and "exists; give another --output or --force" in err and output.read_bytes() == before
    assert call(*flags, "--output", str(output), "--temperature", "2", "--force")[0] == 0
    assert output.read_bytes() != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answers.jsonl", "prompts.jsonl"]


@pytest.mark.parametrize("answered", [0, 2])
def test_ctrl_c_keeps_the_answers_so_far(call, runs, tmp_path, monkeypatch, answered):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("Return one.\nReturn two.\nReturn three.\n")
    flags = ["--prompts", str(prompts), "--output", str(out), "--batch-size", "1", "--max-new-tokens", "4"]
    assert call(*flags, "--show-routing")[0] == 0
    rows = out.read_text()
    out.unlink()
    add = AnswersFile.add

    def stopped(self, number, row):
        if number == answered:
            raise KeyboardInterrupt
        add(self, number, row)

    monkeypatch.setattr(AnswersFile, "add", stopped)
    code, _, err = call(*flags, "--show-routing")
    assert code == 130 and f"stopped with {answered} of 3 prompts answered" in err
    assert "the same command continues" in err and out.read_text().count("\n") == answered
    monkeypatch.setattr(AnswersFile, "add", add)
    code, _, err = call(*flags)
    assert code == 2 and "begun with other prompts, settings" in err
    times = {file: file.stat().st_mtime_ns for file in runs.rglob("config.json")}
    for shift in (1, 0):  # weights written anew, and as they were
        for file, time_ns in times.items():
            os.utime(file, ns=(time_ns + shift, time_ns + shift))
        code, _, err = call(*flags, "--show-routing")
        assert code == 2 * shift and ("settings or another model" in err) == bool(shift)
    assert code == 0 and out.read_text() == rows and (f"continuing: {answered} of 3" in err) == bool(answered)


def test_a_killed_run_keeps_its_answers_and_continues(call, runs, tmp_path, root):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("".join(f"Return {n}.\n" for n in range(60)))
    flags = ["--prompts", str(prompts), "--output", str(out), "--runs", str(runs)]
    flags += ["--max-new-tokens", "8", "--batch-size", "2"]
    command = [sys.executable, "generate.py", *flags, "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out.exists() and out.stat().st_size):
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
    assert 0 < len(kept) < 60
    code, _, err = call(*flags)
    assert code == 0 and f"continuing: {len(kept)} of 60" in err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == [f"Return {n}." for n in range(60)]
    assert all({k: v for k, v in row.items() if k != "number"} == rows[row["number"]] for row in kept)


def test_a_prompt_that_is_too_long_is_reported_and_the_others_answered(call, tmp_path):
    prompts, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    prompts.write_text("Return one.\n" + "a b " * 100 + "\nReturn two.\n")
    flags = ("--prompts", str(prompts), "--output", str(out), "--max-new-tokens", "4")
    code, _, err = call(*flags)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert code == 1 and "1 of 3 prompts were not answered" in err
    assert ["error" in row for row in rows] == [False, True, False] and "leaves no room" in rows[1]["error"]
    assert call(*flags, "--truncate", "--force")[0] == 0
    assert all("answer" in json.loads(line) for line in out.read_text().splitlines())


def test_several_samples(call, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("Return one.\nReturn two.\n")
    flags = ("--temperature", "1.5", "--max-new-tokens", "6", "-n", "3")
    rows = [json.loads(line) for line in call("--prompts", str(prompts), *flags)[1].splitlines()]
    assert [(row["text"], row["sample"]) for row in rows] == [
        (text, n) for text in ("Return one.", "Return two.") for n in range(3)
    ]
    assert len({row["answer"] for row in rows}) == 6
    code, out, err = call("Return one.", *flags)
    assert code == 0 and "answer 3 of 3" in err
    assert all(row["answer"].rstrip("\n") in out for row in rows[:3])
    assert "are equal" in call("a", "-n", "2", "--max-new-tokens", "1")[2]


def test_drafts_write_the_same(call):
    plain = call(PROMPT, "--max-new-tokens", "40")
    drafted = call(PROMPT, "--max-new-tokens", "40", "--draft", "4")
    assert drafted[1] == plain[1]


def test_the_template_is_the_models_unless_one_is_given(call, runs, tmp_path):
    code, out, err = call(PROMPT, "--max-new-tokens", "12")
    assert code == 0 and "template" not in err
    assert call(PROMPT, "--max-new-tokens", "12", "--template", "plain")[1] == out
    other = call(PROMPT, "--max-new-tokens", "12", "--template", "mistral-instruct")
    assert other[0] == 0 and other[1] != out and "template" not in other[2]
    nameless = shutil.copytree(runs / "newer" / "model", tmp_path / "nameless")
    (nameless / "prompt_template.json").unlink()
    config = json.loads((nameless / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (nameless / "tokenizer_config.json").write_text(json.dumps(config))
    code, out, err = call(PROMPT, "--max-new-tokens", "12", "--model", str(nameless))
    (line,) = [line for line in err.splitlines() if "prompt template" in line]
    assert line.startswith("warning: ") and "'mistral-instruct' is a guess" in line and "--template NAME" in line
    assert code == 0 and out == other[1]


def test_a_chat(call):
    code, out, err = call("--max-new-tokens", "6", stdin=f"/language cpp\n{PROMPT}\n/nope\n/quit\n")
    assert code == 0 and "language: cpp" in err and "unknown command '/nope'" in err
    assert out == call(PROMPT, "--language", "cpp", "--max-new-tokens", "6")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "the prompt is empty"),
        (("  ", "--language", "python"), "the prompt is empty"),
        (("a", "--language", "pyton"), "unknown language 'pyton' (did you mean 'python'?)"),
        (("a", "--model", "nowhere"), "nowhere"),
        (
            ("a", "--runs", "nowhere"),
            "found no run in nowhere; type: python train.py, or name a model with --model DIR",
        ),
        (("a", "--temperature", "-1"), "temperature is -1.0, expected 0"),
        (("a", "--top-p", "0"), "top_p is 0.0"),
        (("a", "--top-p", "1.5"), "top_p is 1.5"),
        (("a", "--top-k", "-2"), "top_k is -2"),
        (("a", "--top-k", "x"), "argument --top-k: invalid int value: 'x'"),
        (("a", "--max-new-tokens", "0"), "--max-new-tokens is 0, expected at least 1"),
        (("a", "--stop", ""), "a stop string is empty"),
        (("a", "--min-p", "2"), "min_p is 2.0"),
        (("a", "--repetition-penalty", "0"), "repetition_penalty is 0.0"),
        (("a", "-n", "0"), "--samples is 0"),
        (("a", "--draft", "-1"), "--draft is -1"),
        (("a", "--draft", "2", "--batch-invariant"), "--batch-invariant is for answers without --draft"),
        (("a", "--stop-at", "function"), "needs --language NAME"),
        (("a", "--suffix", "b"), "no tokens to fill a gap with"),
        (("--suffix", "b"), "--suffix is for a prompt"),
        (("a", "--temprature", "1"), "did you mean '--temperature'?"),
        (("a b " * 100,), "tokens and leaves no room in the model's context of 160 tokens"),
        (("a", "--output", "x.jsonl"), "--output is for --prompts FILE"),
        (("a", "--batch-size", "3"), "--batch-size is for --prompts FILE"),
        (("a", "--batch-size", "0"), "--batch-size is for --prompts FILE"),
        (("a", "--model", ""), "--model is empty"),
        (("a", "--routing", "forced"), "routing is 'forced' without a language"),
        (("a", "--routing", "forced", "--language", "java"), "no expert is for java; experts: python, cpp"),
        (("a", "--routing", "force"), "invalid choice: 'force'"),
        (("a", "--experts", "0,2"), "unknown expert '2'; experts: 0 (python), 1 (cpp)"),
        (("a", "--experts", ""), "unknown expert ''"),
        (("a", "--serve", "0"), "of a prompt, --prompts FILE and --serve PORT, two were given"),
        (("--serve", "-1"), "the port is -1"),
        (("--serve", "0", "--json"), "--json is for a prompt or a chat"),
        (("--trace", "x.html"), "--trace is for one answer to a prompt (in a chat, type /trace FILE)"),
        (("a", "--trace", "no/x.html"), "no does not exist"),
        (("a", "--runs", ""), "--runs is empty"),
        (("a", "--template", "chatlm"), "unknown prompt template 'chatlm' (did you mean 'chatml'?)"),
        (("a", "--prompts", "x.jsonl"), "expected one of them"),
        (("--prompts", "x.jsonl"), "x.jsonl: no such file"),
        (("a", "--runs", "x", "--model", "y"), "not allowed with argument"),
    ],
)
def test_mistakes(call, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    last = err.splitlines()[-1]
    assert code == 2 and out == "" and last.startswith("error: ") and message in last
    assert "Traceback" not in err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "flags", "message"),
    [
        ('{"text": "a"}', (), "line 2: lacks the key 'language'"),
        ('{"language": "cpp"}', (), "line 2: lacks the key 'text'"),
        ('{"text": "a", "language": "cpp"}', ("--batch-size", "0"), "--batch-size is 0"),
    ],
)
def test_mistakes_in_a_file_write_nothing(call, tmp_path, line, flags, message):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"text": "a", "language": "cpp"}\n' + line)
    code, out, err = call("--prompts", str(prompts), "--output", str(tmp_path / "out.jsonl"), *flags)
    assert code == 2 and out == "" and message in err.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_debug_shows_the_trace(call):
    with pytest.raises(UserError, match="the prompt is empty"):
        call("", "--debug")


def test_a_run_stands_for_its_model(call, runs, tmp_path):
    model = runs / "newer" / "model"
    (runs / "newer" / "run.json").write_text("{}")
    code, _, err = call(PROMPT, "--max-new-tokens", "4", "--model", str(runs / "newer"))
    assert code == 0 and f"model {model}" in err
    code, _, err = call("a", "--model", str(runs / "unfinished"))
    assert code == 2 and f"not finished; continue it with: python train.py --resume {runs / 'unfinished'}" in err


@pytest.mark.slow
def test_a_server_ends_cleanly(runs, root):
    pytest.importorskip("uvicorn", reason="starlette or uvicorn is not installed")
    flags = ["--runs", str(runs), "--device", "cpu", "--dtype", "float32", "--serve", "0"]
    process = subprocess.Popen([sys.executable, "generate.py", *flags], cwd=root, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stderr if line.startswith("serving"))
    url = re.search(r"http://127\.0\.0\.1:\d+/v1", line)[0]
    body = json.dumps({"prompt": "def", "max_tokens": 3}).encode()
    asked = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] <= 3
    process.send_signal(signal.SIGTERM)
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 0 and err == "stopped\n" and "'newer'" in line


def test_a_reader_that_goes_away(runs, root):
    """``python generate.py ... | head -c 1`` ends without a trace."""
    flags = ["--runs", str(runs), "--max-new-tokens", "120", "--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(
        [sys.executable, "generate.py", PROMPT, *flags], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0 and "Traceback" not in err and "BrokenPipe" not in err
