"""Mode ``corrected``: CodeBLEU as its paper describes it, with known faults fixed."""

from eval.codebleu.corrected.scorer import CorrectedScorer, corrected_score

__all__ = ["CorrectedScorer", "corrected_score"]
