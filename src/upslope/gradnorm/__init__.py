"""Exact per-sample gradient norms of any PyTorch network. Needs torch alone."""

from upslope.gradnorm.engine import gradient_norms, select
from upslope.gradnorm.losses import entropy, expected, supervised

__all__ = ["entropy", "expected", "gradient_norms", "select", "supervised"]
