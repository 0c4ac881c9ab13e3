"""Exact per-sample gradient norms of any PyTorch network. Needs torch alone."""

from upslope.gradnorm.egl import ExpectedLength, expected_gradient_length
from upslope.gradnorm.engine import gradient_norms, select
from upslope.gradnorm.explain import Explanation, Use, explain
from upslope.gradnorm.losses import entropy, expected, supervised

__all__ = [
    "ExpectedLength",
    "Explanation",
    "Use",
    "entropy",
    "expected",
    "expected_gradient_length",
    "explain",
    "gradient_norms",
    "select",
    "supervised",
]
