"""``tokenizer_class``: transformers 5 builds the tokenizers of some classes itself, whatever ``tokenizer.json`` says.

Such a class takes the vocabulary from the file and splits text in its own way. It is read as transformers reads it;
for Mistral and Mixtral models transformers ignores the class.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe.errors import Notice, UserError
from moe.files import json_bytes
from moe.tokenizer.base import SPACE
from moe.tokenizer.files import CONFIG_FILE, JSON_FILE, read_json
from moe.tokenizer.pipeline import BYTE_LEVEL, QWEN2_WORDS, split_words

PLAIN_CLASS = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is
_IGNORING = ("mistral", "ministral", "mixtral")  # model types
_METASPACE = ("LlamaTokenizer", "CodeLlamaTokenizer")
_BYTE_LEVEL = ("GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer")
# Other classes of transformers 5 that build their own pipeline.
OTHERS = set(
    """
    Albert Bart Barthez Bert BigBird Blenderbot CLIP Camembert Cohere DPRContextEncoder DPRQuestionEncoder DPRReader
    Deberta DebertaV2 DistilBert Esmc Funnel Gemma Herbert Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Luke MBart MBart50
    MLuke MPNet MarkupLM MobileBert Nllb Nougat OpenAIGPT Pegasus Qwen3_5 Reformer RemBert RoFormer Roberta SeamlessM4T
    Siglip2 Splinter SqueezeBert T5 Tipsv2 Udop VideoPrism Whisper XGLM XLMRoberta XLNet
    """.split()
)


def tokenizer_class(directory: Path) -> str | None:
    """The class that decides how text is split, without "Fast"; None where ``tokenizer.json`` does."""
    model = read_json(directory / "config.json")
    kind = read_json(directory / CONFIG_FILE).get("tokenizer_class") or model.get("tokenizer_class")
    if not isinstance(kind, str) or model.get("model_type") in _IGNORING:
        return None
    kind = kind.removesuffix("Fast")
    return kind if kind in (*_METASPACE, *_BYTE_LEVEL) or kind.removesuffix("Tokenizer") in OTHERS else None


def class_pipeline(content: str, directory: Path) -> str:
    """The text of ``tokenizer.json`` with the split of the class that the directory names; the same where it agrees.

    Raises:
        UserError: a class that is not read, or that does not fit the vocabulary.
    """
    kind, config = tokenizer_class(directory), read_json(directory / CONFIG_FILE)
    if kind is None:
        return content
    try:
        spec = json.loads(content)
        byte_level = '"ByteLevel"' in json.dumps(spec.get("pre_tokenizer"))
    except (ValueError, AttributeError, RecursionError):
        return content  # the loader says what is wrong
    if kind == "LlamaTokenizer" and byte_level:
        return content
    if kind not in (_BYTE_LEVEL if byte_level else _METASPACE):
        what = "byte-level" if byte_level else "of SentencePiece's kind"
        raise UserError(
            f"{directory}: tokenizer_class is {kind!r}, with which transformers does not follow {JSON_FILE} ({what}); "
            f"write {PLAIN_CLASS} there if {JSON_FILE} is what the model was trained with"
        )
    prefix = config.get("add_prefix_space")
    if kind in _METASPACE:
        scheme = "never" if prefix is False else "first"
        if scheme == "first" and kind == "LlamaTokenizer" and config.get("legacy"):
            scheme = "always"
        step = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
        return json.dumps({**spec, "normalizer": None, "pre_tokenizer": step}, ensure_ascii=False)
    own: dict[str, Any] = {**BYTE_LEVEL, "add_prefix_space": bool(prefix), "use_regex": True}
    if kind == "Qwen2Tokenizer":
        own = split_words(QWEN2_WORDS)
        own["pretokenizers"][-1] = {**BYTE_LEVEL, "add_prefix_space": bool(prefix)}
    if _steps(own) == _steps(spec["pre_tokenizer"]):
        return content
    warnings.warn(
        f"{directory}: tokenizer_class {kind!r} splits text into other words than {JSON_FILE}; its words are used, as "
        f"transformers 5 does (write {PLAIN_CLASS} there to follow {JSON_FILE})",
        Notice,
        stacklevel=2,
    )
    return json.dumps({**spec, "pre_tokenizer": own}, ensure_ascii=False)


def _steps(step: Mapping[str, Any]) -> list[Any]:
    """What decides about the split, without the offsets."""
    if step["type"] == "Sequence":
        return [one for inner in step["pretokenizers"] for one in _steps(inner)]
    keys = ("type", "pattern", "behavior", "invert", "individual_digits")
    found = {key: step.get(key) for key in keys}
    if step["type"] == "ByteLevel":
        found |= {"prefix": step.get("add_prefix_space", True), "words": step.get("use_regex", True)}
    return [found]


def settled_files(directory: Path, files: Mapping[str, bytes | Path]) -> dict[str, bytes | Path]:
    """Files of a tokenizer for a model of another type, under which transformers would not look at its class."""
    if tokenizer_class(directory) is None or JSON_FILE not in files:
        return dict(files)
    settings = json.loads(_read(files.get(CONFIG_FILE, b"{}")))
    if settings.get("tokenizer_class") == PLAIN_CLASS:  # written by this project
        return dict(files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)  # it was said when the tokenizer was read
        content = class_pipeline(_read(files[JSON_FILE]).decode(), directory)
    written = json_bytes({**settings, "tokenizer_class": PLAIN_CLASS})
    return {**files, JSON_FILE: content.encode(), CONFIG_FILE: written}


def _read(file: bytes | Path) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()
