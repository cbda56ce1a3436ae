"""Synthetic text-to-code tasks: a description, solutions in four languages and executable tests for each problem.

The embedded default of this project trains on them, so it needs no data set. The package is a data set in the shape of
code and stands apart from the model: only the names below are imported from outside it.

Families of small tasks over numbers, strings, lists, maps and matrices (``families/``) combine known parts (``parts``:
predicates, transforms, aggregates ...) into blueprints (``family``); ``generate`` draws pairs from them by seed, each
with test cases that ``eval.execution`` runs. A hash of a problem's family and parameters
alone decides whether it belongs to train, validation or test, so no rewording of a held-out problem, in any language,
is ever in the training split.
"""

from moe.data.synthetic.family import SPLITS, TASK_LANGUAGES
from moe.data.synthetic.generate import generate_pairs

__all__ = ["SPLITS", "TASK_LANGUAGES", "generate_pairs"]
