"""What a person types and sees: lines, costs, expert shares, notices, files that cannot be written."""

from __future__ import annotations

import io
import warnings

import pytest
from rich.console import Console

from checkpoints.cli import ArgumentParser, check_output_file, run
from checkpoints.terminal import costs, expert_share_table, line_reader
from moe.config import ModelConfig
from moe.errors import Notice, UserError
from moe.inference.answers import Answer
from moe.inference.routing_stats import RoutingShares


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_from_a_pipe_or_a_terminal(monkeypatch):
    read = line_reader(io.StringIO("one\n\ntwo"))
    assert [read("> ") for _ in range(4)] == ["one\n", "\n", "two", None]
    typed = iter(["one", EOFError()])
    prompts = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        line = next(typed)
        if isinstance(line, EOFError):
            raise line
        return line

    monkeypatch.setattr("builtins.input", answer)
    read = line_reader(Terminal())
    assert [read("cpp> "), read("?> ")] == ["one", None] and prompts == ["cpp> ", "?> "]


def test_costs_in_one_line():
    done, cut = Answer("a", "stop", 10, 4, 1.0), Answer("b", "length", 20, 6, 2.0)
    assert costs([done], 2.0) == "10 tokens read, 4 written in 2.0 s: 2.0 tokens/s"
    assert costs([cut], 2.0).endswith(
        "; the answer was cut off at the length limit (--max-new-tokens, or the model's context)"
    )
    assert "; 1 of 2 answers were cut off" in costs([done, cut], 2.0)


def test_expert_shares_as_a_table():
    sizes = {"vocab_size": 9, "dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "hidden_dim": 8}
    config = ModelConfig(**sizes, num_experts=2, expert_languages=("python", "cpp"))
    shares = RoutingShares(config, 1)
    shares.gates[0] = shares.gates.new_tensor([[3.0, 1.0], [0.0, 4.0]])
    out = io.StringIO()
    Console(file=out, width=60).print(expert_share_table(shares))
    rows = [line.split("│")[1:-1] for line in out.getvalue().splitlines() if "%" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["all", "38%", "62%"],
        ["0", "75%", "25%"],
        ["1", "0%", "100%"],
    ]


def test_a_notice_is_one_line_on_stderr_and_other_warnings_are_as_usual(capsys):
    def main(arguments) -> None:
        for _ in range(2):
            warnings.warn("look here", Notice, stacklevel=1)

    def other(arguments) -> None:
        warnings.warn("as usual", UserWarning, stacklevel=1)

    assert run(ArgumentParser(prog="x"), main, []) == 0
    assert capsys.readouterr() == ("", "warning: look here\n")
    with pytest.warns(UserWarning, match="as usual"):
        run(ArgumentParser(prog="x"), other, [])


def test_output_files(tmp_path):
    path = tmp_path / "out.jsonl"
    assert check_output_file(path) == path
    path.write_text("{}")
    with pytest.raises(UserError, match="exists; give another --output or --force"):
        check_output_file(path)
    assert check_output_file(path, force=True) == path
    with pytest.raises(UserError, match="is a directory"):
        check_output_file(tmp_path, force=True)
    with pytest.raises(UserError, match="mkdir -p"):
        check_output_file(tmp_path / "none" / "out.jsonl")
