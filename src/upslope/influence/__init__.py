"""Influence of training samples on the test loss, and the bounds that follow. Needs torch alone.

>>> curvature = Curvature(model, train, "label", dtype=torch.float64)      # H of Eq. 1
>>> solver = ConjugateGradients(damping=5e-4)                              # H + 5e-4 I
>>> influence_on_test_loss(curvature, test, candidates, solver=solver)    # Eq. 2, one per candidate
>>> bounds(curvature, earlier_model, test, candidates, "entropy", solver=solver)   # Figure 3
"""

from upslope.influence.bounds import Bounds, bounds
from upslope.influence.ekfac import EKFAC
from upslope.influence.influence import Influence, influence_on_test_loss
from upslope.influence.leave_one_out import LeaveOneOut, leave_one_out
from upslope.influence.losses import entropy_loss, expected_loss, label_loss
from upslope.influence.products import Curvature
from upslope.influence.solvers import ConjugateGradients, Lissa, Solution, Solver

__all__ = [
    "EKFAC",
    "Bounds",
    "ConjugateGradients",
    "Curvature",
    "Influence",
    "LeaveOneOut",
    "Lissa",
    "Solution",
    "Solver",
    "bounds",
    "entropy_loss",
    "expected_loss",
    "influence_on_test_loss",
    "label_loss",
    "leave_one_out",
]
