"""How a problem is put to a model, and where its answer ends: completion style and instruction style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eval.answer_code import is_complete
from eval.benchmarks.problems import Problem
from eval.benchmarks.source import function_end, prompt_parts
from moe.data.prompt import encode_prompt, instruction_for
from moe.errors import UserError
from moe.inference.answers import TextStream
from moe.languages import get_language
from moe.tokenizer import Tokenizer

Style = Literal["completion", "instruction"]
STYLES: tuple[Style, ...] = ("completion", "instruction")
FENCE = "```"


def check_style(style: Style, problems: Sequence[Problem]) -> None:
    """Raises :class:`UserError` when ``problems`` cannot be asked in ``style``."""
    if style == "completion" and (bare := next((p for p in problems if not p.prompt), None)) is not None:
        raise UserError(f"{bare.where}: has no signature to complete; type --style instruction")


def instruction(problem: Problem, ask: str) -> str:
    """The problem as an instruction: its description, and the signature where the prompt has one.

    Args:
        ask: as in :func:`moe.data.prompt.instruction_for`.
    """
    text = problem.description
    if not text:
        parts = prompt_parts(problem.prompt, problem.language)
        signature = f"class {parts.class_name} {{\n{parts.signature}" if parts.class_name else parts.signature
        fence = get_language(problem.language).fences[0]
        text = f"{parts.description}\nIt starts like this:\n{FENCE}{fence}\n{signature}\n{FENCE}"
    return instruction_for(text, problem.language, ask)


def encode(problem: Problem, style: Style, tokenizer: Tokenizer, template: str, ask: str) -> list[int]:
    """The ids that the model continues.

    A completion continues the prompt as plain text. White space at the prompt's end is left to the model: tokenizers
    join a line break with the indent after it.
    """
    if style == "instruction":
        return encode_prompt(tokenizer, template, instruction(problem, ask))
    begin = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    return [*begin, *tokenizer.encode(problem.prompt.rstrip())]


class AnswerStream(TextStream):
    """The text of one answer, up to where the benchmark ends it.

    Completions end before a stop string, or with the brace that closes the function; instructions' answers with their
    code block.
    """

    def __init__(self, tokenizer: Tokenizer, problem: Problem, style: Style):
        is_completion = style == "completion"
        super().__init__(tokenizer, (problem.stop or ()) if is_completion else ())
        self._ends_with_brace = is_completion and problem.stop is None
        self._ends_with_block = not is_completion
        self._language = problem.language

    def push(self, token: int) -> str:
        shown = super().push(token)
        if self._ends_with_brace and "}" in shown:
            end = function_end(self.text)
            if end is not None:
                self.text, self.stopped = self.text[:end], True
        if self._ends_with_block:
            self.stopped = is_complete(self.text, self._language)
        return shown
