"""Eq. 3 for every candidate, and the four terms of Figure 3: `theory` says what they are for."""

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
from upslope.reproduction.theory_data import Batches, Labelled, Unlabelled
from upslope.tasks.base import Task

Scheme = Literal["entropy", "expected"]
MakeSolver = Callable[[Curvature, float], Solver]
"""From a curvature and a damping to the solver of (C + damping I) x = b."""

TOLERANCE = 1e-3
"""Of the conjugate gradients: ||b - (C + damping I) x|| <= TOLERANCE ||b||."""
MOST_ITERATIONS = 200


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
    """The term that Eq. 3 adds to the total test loss where a candidate is left out; (m,) `values`.

    model: T' of Eq. 3, at which all gradients are taken. train: what it was trained on. H is the
        Gauss-Newton matrix of the training criterion over it, plus `damping` times the identity:
        positive definite, as Eq. 4 assumes and as the Hessian of a network is not.
    test: its gradient is that of the training criterion at the test labels.
    scheme: the loss of the candidates. "label" reads their labels from the data set, as the paper
        does for Table 2.
    damping: positive. Weight decay w in training adds w to H: count it in.
    solver: conjugate gradients to `TOLERANCE` by default; `solve.residual` says how well it did.
    dtype: torch.float64 to compute so; the type of the model otherwise.

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
    """`influences` for several losses of the candidates, from one solve: they share the test's."""
    losses = _losses(task)
    if unknown := [scheme for scheme in schemes if scheme not in losses]:
        raise InfluenceError(
            f"Expected `scheme` to be one of {list(losses)} but got {unknown[0]!r}."
        )
    dataset, indices = candidates
    known = dataset.targets(indices) if "label" in schemes else None
    chosen = Batches(task, dataset, indices, known, device, batch_size, "candidates")
    curvature, solve = _solvable(model, task, train, damping, device, batch_size, solver, dtype)
    tested = Batches(task, *test, device, batch_size, "test")
    solution, count = inverse_test_gradient(curvature, tested, losses["label"], solve)
    found = {}
    for scheme in schemes:
        values = inner_products(curvature.network, chosen, losses[scheme], solution.vector)
        scaled = values.cpu() / curvature.samples
        found[scheme] = Influence(scaled, solution, curvature.samples, count)
    return found


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
    """The four terms of Figure 3 for every candidate, (m,) each: `upslope.influence.bounds`.

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
    tested = Batches(task, *test, device, batch_size, "test")
    chosen = Batches(task, *candidates, None, device, batch_size, "candidates")
    return bounds(curvature, previous_model, tested, chosen, losses[scheme], solver=solve)


def _losses(task: Task) -> dict[str, LossFunction]:
    """Of outputs and targets, (n,): what the model was trained with, Eq. 7 and Eq. 6."""
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
    """H over the training samples, and what solves with H + damping I."""
    if not damping > 0:
        raise InfluenceError(
            f"Expected `damping` above 0 but got {damping}: the Gauss-Newton matrix of fewer "
            "samples than parameters has no inverse. Take the weight decay of the training, or "
            "0.01."
        )
    data = Batches(task, *train, device, batch_size, "train")
    curvature = Curvature(model, data, task.losses, kind="gauss-newton", dtype=dtype)
    return curvature, (solver or _conjugate_gradients)(curvature, damping)


def _conjugate_gradients(_curvature: Curvature, damping: float) -> Solver:
    return ConjugateGradients(damping, tolerance=TOLERANCE, max_iterations=MOST_ITERATIONS)
