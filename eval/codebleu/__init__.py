"""CodeBLEU (Ren et al. 2020): n-gram, keyword-weighted n-gram, syntax and dataflow match of code."""

from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.languages import LANGUAGES
from eval.codebleu.score import EQUAL_WEIGHTS, CodeBLEUScore, codebleu

__all__ = ["EQUAL_WEIGHTS", "LANGUAGES", "CodeBLEUError", "CodeBLEUScore", "codebleu"]
