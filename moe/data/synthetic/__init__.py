"""Text-to-code tasks made up by rules: a description, solutions in four languages and test cases for each problem.

No data set is needed for the embedded default of this project: families of small tasks over numbers, strings, lists,
maps and matrices are combined from known parts (predicates, transforms, aggregates, directions ...). Which of train,
validation and test a problem belongs to is decided by a hash of its family and parameters alone, so no rewording of a
held-out problem, in any language, is ever in the training split.
"""

from moe.data.synthetic.family import LANGUAGES, SPLITS, Case, Family, Part, Signature
from moe.data.synthetic.generate import Problem, families, generate_pairs, generate_problems
from moe.data.synthetic.program import entry_point, render_program, render_suite

__all__ = [
    "LANGUAGES",
    "SPLITS",
    "Case",
    "Family",
    "Part",
    "Problem",
    "Signature",
    "entry_point",
    "families",
    "generate_pairs",
    "generate_problems",
    "render_program",
    "render_suite",
]
