"""Explanations: what of the reference a hypothesis lacks, and where."""

from eval.codebleu.explain.explanation import Explanation, Missed, explain

__all__ = ["Explanation", "Missed", "explain"]
