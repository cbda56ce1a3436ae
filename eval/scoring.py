"""Scores a model's greedy answers to held-out descriptions by CodeBLEU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.answer_code import answer_code, is_complete
from moe.data.pairs import Pair
from moe.data.prompt import encode_prompt, instruction_for, stop_ids
from moe.data.rows import Row
from moe.files import Journal, write_json_lines
from moe.inference.generation import Generation, generate_many
from moe.languages import get_language
from moe.model import Transformer
from moe.tokenizer import Tokenizer

PARTS = ("codebleu", "ngram_match_score", "weighted_ngram_match_score", "syntax_match_score", "dataflow_match_score")


@dataclass(frozen=True)
class ScoredAnswer:
    """A held-out pair with the code of the model's answer, in one row; ``raw`` is the answer as written."""

    row: Row
    raw: str
    finished: str

    @property
    def code(self) -> str:
        return self.row.answer or ""


@dataclass(frozen=True)
class Score:
    """CodeBLEU of one language's answers and its four parts, each in [0, 1]; ``answers`` is how many there were."""

    codebleu: float
    ngram_match_score: float
    weighted_ngram_match_score: float
    syntax_match_score: float
    dataflow_match_score: float
    answers: int


@dataclass(frozen=True)
class AnswerSettings:
    """How to generate answers: ``code_only`` asks an untrained chat model for code and extracts its code block."""

    max_new_tokens: int
    batch_size: int
    code_only: bool = False


def write_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    template: str,
    pairs: Mapping[str, Sequence[Pair]],
    settings: AnswerSettings,
    on_progress: Callable[[int, int], None] | None = None,
    journal: Path | None = None,
) -> dict[str, list[ScoredAnswer]]:
    """Greedy answers for all pairs of all languages, batched together; ``on_progress`` gets (done, total).

    A prompt that leaves no room in the context has an empty answer. Each answer is noted in ``journal`` when it is
    done; a later call with the same prompts goes on behind the batches that are whole, and gives the same answers.
    """
    flat = [pair for items in pairs.values() for pair in items]
    takes_code = settings.code_only and can_score()  # without a parser score-answers does it
    ask = "code-only" if settings.code_only else "train"
    prompts = [encode_prompt(tokenizer, template, instruction_for(pair.text, pair.language, ask)) for pair in flat]
    noted = Journal(journal, {"prompts": prompts, **asdict(settings)})
    known = {row["place"]: Generation(row["tokens"], row["finished"], len(prompts[row["place"]])) for row in noted.rows}
    stop = _BlockStop(tokenizer, [pair.language for pair in flat]) if takes_code else None
    room = model.config.max_seq_len
    generations = {place: Generation([], "length", len(ids)) for place, ids in enumerate(prompts) if len(ids) >= room}
    order = sorted(set(range(len(prompts))) - generations.keys(), key=lambda place: (-len(prompts[place]), place))
    done = len(generations)
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]

        def ends(row: int, token: int, batch: list[int] = batch) -> bool:
            return stop is not None and stop(batch[row], token)

        def finished(row: int, answer: Generation, batch: list[int] = batch) -> None:
            nonlocal done
            done += 1
            if batch[row] not in known:
                noted.add({"place": batch[row], "tokens": answer.tokens, "finished": answer.finished})
            if on_progress is not None:
                on_progress(done, len(flat))

        if all(place in known for place in batch):
            generations |= {place: known[place] for place in batch}
            done += len(batch)
            continue
        found = generate_many(
            model,
            [prompts[place] for place in batch],
            max_new_tokens=settings.max_new_tokens,
            stop_ids=stop_ids(tokenizer, template),
            on_token=ends,
            on_progress=finished,
        )
        generations |= zip(batch, found)
    answers: dict[str, list[ScoredAnswer]] = {language: [] for language in pairs}
    keys = [language for language, items in pairs.items() for _ in items]
    for place, (key, pair) in enumerate(zip(keys, flat, strict=True)):
        generation = generations[place]
        raw = tokenizer.decode(generation.tokens)
        code = answer_code(raw, pair.language).strip("\r\n") if takes_code else raw.strip()
        name = pair.id or f"{key}-{len(answers[key])}"
        row = Row(name, pair.language, pair.text, (pair.code,), pair.tests, code)
        answers[key].append(ScoredAnswer(row, raw, generation.finished))
    return answers


class _BlockStop:
    """Ends a chat answer when its code block closes: scoring drops the prose after it."""

    def __init__(self, tokenizer: Tokenizer, languages: Sequence[str]):
        self.languages = languages
        self.streams = [tokenizer.stream() for _ in languages]
        self.texts = [""] * len(languages)

    def __call__(self, place: int, token: int) -> bool:
        self.texts[place] += self.streams[place].push(token)
        return is_complete(self.texts[place], self.languages[place])


def can_score() -> bool:
    """Whether CodeBLEU's parser is here; without it answers are written and ``score-answers`` scores them later."""
    return importlib.util.find_spec("tree_sitter") is not None


def score_rows(rows: Sequence[Row], language: str) -> Score:
    """Corpus CodeBLEU (mode ``reference``) of a language's answers."""
    from eval.codebleu import codebleu

    result = codebleu([row.references for row in rows], [row.answer or "" for row in rows], language)
    return Score(**{part: getattr(result, part) for part in PARTS}, answers=len(rows))


def score_each(rows: Sequence[Row], language: str) -> list[dict[str, Any]]:
    """CodeBLEU and its parts of each answer of a language."""
    from eval.codebleu import codebleu_each

    found = codebleu_each([row.references for row in rows], [row.answer or "" for row in rows], language)
    return [score.as_dict() for score in found]


def score_answers(answers: Mapping[str, Sequence[ScoredAnswer]]) -> dict[str, Score]:
    """Corpus CodeBLEU (mode ``reference``) per language."""
    return {language: score_rows([a.row for a in items], language) for language, items in answers.items()}


def save_answers(answers: Mapping[str, Sequence[ScoredAnswer]], path: Path) -> None:
    """Writes answers as rows (:mod:`moe.data.rows`) with the CodeBLEU of each, where it can be computed here."""
    rows: list[dict[str, Any]] = []
    for language, items in answers.items():
        scores = score_each([a.row for a in items], language) if can_score() else [{}] * len(items)
        for answer, score in zip(items, scores, strict=True):
            raw = {} if answer.raw.strip() == answer.code else {"raw": answer.raw}
            rows.append({**answer.row.to_json(), **raw, "finished": answer.finished, **score})
    write_json_lines(path, rows)


def language_names(languages: Sequence[str]) -> list[str]:
    """Names in prose, for table heads."""
    return [get_language(language).name for language in languages]
