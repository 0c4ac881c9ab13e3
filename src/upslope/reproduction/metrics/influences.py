"""Influence on the test loss by Eq. 3, and the terms of Figure 3; the metrics call it.

How Table 2 is understood here. Eq. 3 adds sum_j I_loss(x, x_j) to the test loss when x is left
out, so the K samples that it selects are those with the largest *signed* sum: leaving out a sample
with a large negative sum would lower the test loss. The absolute value enters in Eq. 4. L_test and
1/n are the same for every x and do not move the order. The paper "temporarily observes" the label
of each x for Eq. 3, which is `scheme="label"`; Eq. 5 "is the data selection criterion used in our
algorithm", which is `scheme_norms`. Two things in the paper do not fit this, so both ends are here
in every loss, and a report should say which it took:

- Table 1 finds 677 of the samples chosen by entropy among the 2500 of largest label norm in cycle
  0, where Table 2 finds 2290 of those that Eq. 5 selects among those of Eq. 3. If Eq. 5 is by
  entropy in both, at most 677 + (2500 - 2290) = 887 of the Eq. 3 set have large label norms. It is
  likelier that Table 2 has the same loss at both ends.
- Eq. 3 is at T^(c+1), Table 2 has seven columns and Tables 4 and 5 say that T^(c+1) is not there
  yet after the last one. Table 2 is then either at T^c, or with one more model trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from upslope.errors import InfluenceError
from upslope.gradnorm import entropy_over, expected
from upslope.influence import Bounds, ConjugateGradients, Curvature, Influence, Solver, bounds
from upslope.influence.influence import inner_products, inverse_test_gradient
from upslope.influence.losses import LossFunction
from upslope.reproduction.metrics.norms import Scheme
from upslope.reproduction.metrics.sample_batches import Labelled, SampleBatches, Unlabelled
from upslope.tasks.base import Task

MakeSolver = Callable[[Curvature, float], Solver]
"""From a curvature and a damping to the solver of (C + damping I) x = b."""

TOLERANCE = 1e-3
"""Where conjugate gradients stop by default: ||b - (C + damping I) x|| <= TOLERANCE ||b||."""
MOST_ITERATIONS = 200
"""Steps after which they stop in any case; the residual is reported."""


def influences(
    model: nn.Module,
    task: Task,
    train: Labelled,
    test: Labelled,
    candidates: Unlabelled,
    scheme: Literal["label"] | Scheme,
    *,
    damping: float,
    device: torch.device,
    batch_size: int,
    solver: MakeSolver | None = None,
    dtype: torch.dtype | None = None,
) -> Influence:
    """Compute the term that Eq. 3 adds to the total test loss where a candidate is left out.

    model: T' of Eq. 3, at which all gradients are taken. train: what it was trained on. H is the
        Gauss-Newton matrix of the training criterion over it, plus `damping` times the identity:
        positive definite, as Eq. 4 assumes and as the Hessian of a network is not.
    test: its gradient is that of the training criterion at the test labels.
    scheme: the loss of the candidates. "label" reads their labels from the data set, as the paper
        does for Table 2.
    damping: positive. Weight decay w in training adds w to H: count it in.
    solver: conjugate gradients to `TOLERANCE` by default; `solve.residual` says how well it did.
    dtype: torch.float64 to compute in it; None for the type of the model.

    Returns: the influence of each candidate as `values`, (m,), and how the system was solved.

    Raises:
        DataError: a sample cannot be read or, for "label", has no label.
        InfluenceError: `damping` is not positive, the scheme is unknown, a list of samples is
            empty, or what is computed is not finite.
    """
    return influences_by_loss(
        model,
        task,
        train,
        test,
        candidates,
        (scheme,),
        damping=damping,
        device=device,
        batch_size=batch_size,
        solver=solver,
        dtype=dtype,
    )[scheme]


def influences_by_loss(
    model: nn.Module,
    task: Task,
    train: Labelled,
    test: Labelled,
    candidates: Unlabelled,
    schemes: Sequence[str],
    *,
    damping: float,
    device: torch.device,
    batch_size: int,
    solver: MakeSolver | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Influence]:
    """Compute `influences` for several losses of the candidates from one linear solve.

    schemes: the losses. They share the solve, since the test gradient is that of the label in all.
    Other arguments and errors: as `influences`.

    Returns: scheme -> the influences.
    """
    losses = _losses(task)
    if without_loss := [scheme for scheme in schemes if scheme not in losses]:
        raise InfluenceError(
            f"Expected `scheme` to be one of {list(losses)} but got {without_loss[0]!r}."
        )
    dataset, indices = candidates
    targets = dataset.targets(indices) if "label" in schemes else None
    samples = SampleBatches(task, dataset, indices, targets, device, batch_size, "candidates")
    curvature, solve = _solvable(model, task, train, damping, device, batch_size, solver, dtype)
    tests = SampleBatches(task, *test, device, batch_size, "test")
    solution, count = inverse_test_gradient(curvature, tests, losses["label"], solve)
    influence = {}
    for scheme in schemes:
        values = inner_products(curvature.network, samples, losses[scheme], solution.vector)
        influences = values.cpu() / curvature.samples
        influence[scheme] = Influence(influences, solution, curvature.samples, count)
    return influence


def figure_3_terms(
    previous_model: nn.Module,
    model: nn.Module,
    task: Task,
    train: Labelled,
    test: Labelled,
    candidates: Unlabelled,
    scheme: Scheme,
    *,
    damping: float,
    device: torch.device,
    batch_size: int,
    solver: MakeSolver | None = None,
    dtype: torch.dtype | None = None,
) -> Bounds:
    """Compute the four terms of Figure 3 for every candidate, (m,) each, by `influence.bounds`.

    previous_model, model: T of cycle c, and T' of cycle c + 1, which was trained on `train`. The
    gradients of the test samples and of the candidates are both of the loss that `scheme` names,
    as the paper has it ("all L"); no label of either is used. The L in H is the training criterion,
    for influence is a statement about the minimum of what was minimised, and the entropy's
    Gauss-Newton matrix is not positive definite. Other arguments and errors: as `influences`.

    Raises:
        InfluenceError: also where Target <= Approx-1 <= Approx-2 fails beyond rounding.
    """
    losses = _losses(task)
    if scheme not in ("entropy", "expected"):
        raise InfluenceError(f'Expected `scheme` to be "entropy" or "expected" but got {scheme!r}.')
    curvature, solve = _solvable(model, task, train, damping, device, batch_size, solver, dtype)
    tests = SampleBatches(task, *test, device, batch_size, "test")
    samples = SampleBatches(task, *candidates, None, device, batch_size, "candidates")
    return bounds(curvature, previous_model, tests, samples, losses[scheme], solver=solve)


def _losses(task: Task) -> dict[str, LossFunction]:
    """Return the per-sample losses: of the training, of Eq. 7 and of Eq. 6."""
    expected_loss, entropy_loss = expected(dim=1), entropy_over(1)
    return {
        "label": task.losses,
        "entropy": lambda outputs, _targets: entropy_loss(task.logits(outputs)),
        "expected": lambda outputs, _targets: expected_loss(task.logits(outputs)),
    }


def _solvable(
    model: nn.Module,
    task: Task,
    train: Labelled,
    damping: float,
    device: torch.device,
    batch_size: int,
    solver: MakeSolver | None,
    dtype: torch.dtype | None,
) -> tuple[Curvature, Solver]:
    """Return H over the training samples, and the solver of (H + damping I) x = b."""
    if not damping > 0:
        raise InfluenceError(
            f"Expected `damping` above 0 but got {damping}: the Gauss-Newton matrix of fewer "
            "samples than parameters has no inverse. Take the weight decay of the training, or "
            "0.01."
        )
    data = SampleBatches(task, *train, device, batch_size, "train")
    curvature = Curvature(model, data, task.losses, kind="gauss-newton", dtype=dtype)
    return curvature, (solver or _conjugate_gradients)(curvature, damping)


def _conjugate_gradients(_curvature: Curvature, damping: float) -> Solver:
    return ConjugateGradients(damping, tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS)
