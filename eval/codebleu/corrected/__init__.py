"""Mode ``corrected``: CodeBLEU as its paper means it."""

from eval.codebleu.corrected.scorer import CorrectedScorer, corrected_score

__all__ = ["CorrectedScorer", "corrected_score"]
