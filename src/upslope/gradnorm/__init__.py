"""Exact per-sample gradient norms of any PyTorch network. Needs torch alone."""

from upslope.gradnorm.egl import ExpectedLength, expected_gradient_length
from upslope.gradnorm.engine import gradient_norms
from upslope.gradnorm.explain import Explanation, Use, explain
from upslope.gradnorm.hutchinson import Estimate, estimated_rms_length
from upslope.gradnorm.inner import gradient_inner_products
from upslope.gradnorm.losses import entropy, entropy_over, expected, label_free, supervised
from upslope.gradnorm.parameters import select
from upslope.gradnorm.sketch import Sketches, gradient_sketches
from upslope.gradnorm.trace.microbatches import samples_that_fit

__all__ = [
    "Estimate",
    "ExpectedLength",
    "Explanation",
    "Sketches",
    "Use",
    "entropy",
    "entropy_over",
    "estimated_rms_length",
    "expected",
    "expected_gradient_length",
    "explain",
    "gradient_inner_products",
    "gradient_norms",
    "gradient_sketches",
    "label_free",
    "samples_that_fit",
    "select",
    "supervised",
]
