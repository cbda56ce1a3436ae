"""CodeBLEU (Ren et al. 2020): n-gram, keyword-weighted n-gram, syntax and dataflow match of source code."""

from eval.codebleu.compat import calc_codebleu
from eval.codebleu.counts import EQUAL_WEIGHTS, CodeBLEUScore
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.languages import LANGUAGES
from eval.codebleu.score import codebleu, codebleu_each

__all__ = ["EQUAL_WEIGHTS", "LANGUAGES", "CodeBLEUError", "CodeBLEUScore", "calc_codebleu", "codebleu", "codebleu_each"]
