"""The influence of every candidate on the total test loss (paper: Eq. 1-3), after Koh and Liang.

    sum_j I_loss(x, x_j) = (1/n) sum_j grad L(f(x_j))^T H^-1 grad L(f(x))                    Eq. 2

over the test samples j, with H the mean curvature of the n training samples. It estimates by how
much the *sum* of the test losses grows if x is removed from the training set (Eq. 3): positive for
a sample that helps, negative for one that harms.

    s = H^-1 sum_j grad L(f(x_j))          one solve for all candidates
    <s, grad L(f(x))> / n                  one forward-mode pass per batch, no per-sample gradient
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from upslope.autodiff import differentiating_twice
from upslope.errors import InfluenceError
from upslope.influence.losses import LossFunction, loss_named
from upslope.influence.network import Batches, Network, naming
from upslope.influence.products import Curvature
from upslope.influence.solvers import Solution, Solver


@dataclass(frozen=True)
class Influence:
    """values: (m,), Eq. 2 for each candidate, in the unit of the loss.

    solve: s = H^-1 sum_j grad L(x_j) in `solve.vector`, its residual, and whether it converged.
    samples: n, the number of training samples; test_samples: the number of terms in the sum over j.
    """

    values: Tensor = field(repr=False)
    solve: Solution
    samples: int
    test_samples: int


def influence_on_test_loss(
    curvature: Curvature,
    test: Batches,
    candidates: Batches,
    loss: str | LossFunction | None = None,
    *,
    solver: Solver,
) -> Influence:
    """Return the influence of every candidate on the sum of the test losses (Eq. 2).

    curvature: H; it also says the model, the parameters and the type to compute in.
    test, candidates: batches (inputs, targets). The paper lets the candidates' labels be seen here.
    loss: L of the test samples and the candidates; that of the curvature by default.
    solver: `ConjugateGradients(damping=...)`, `Lissa(...)`, or `EKFAC(curvature).solver(damping)`.
        A solve that ends at an iteration limit is used as it is: look at `solve.residual`.

    Raises:
        InfluenceError: the solver met negative curvature or diverged, so that H^-1 is not defined;
            or values are not finite.
    """
    network = curvature.network
    loss_function = network.loss if loss is None else loss_named(loss)
    solve, test_samples = inverse_test_gradient(curvature, test, loss_function, solver)
    values = inner_products(network, candidates, loss_function, solve.vector) / curvature.samples
    return Influence(values, solve, curvature.samples, test_samples)


def inverse_test_gradient(
    curvature: Curvature, test: Batches, loss: LossFunction, solver: Solver
) -> tuple[Solution, int]:
    """Return (s = H^-1 sum_j grad L(x_j), the number of test samples).

    Raises:
        InfluenceError: see `influence_on_test_loss`.
    """
    total, test_samples = curvature.network.gradient_sum(test, loss, "test")
    solve = solver(curvature, total)
    if solve.status in ("negative curvature", "diverged"):
        raise InfluenceError(
            f"Expected a positive definite {curvature.kind} but the solver reports "
            f"{solve.status} after {solve.iterations} iterations. {solve.detail}"
        )
    return solve, test_samples


def inner_products(
    network: Network, data: Batches, loss: LossFunction, direction: Tensor
) -> Tensor:
    """Return <direction, grad L(x)> for every sample x of the data, (m,).

    Raises:
        InfluenceError: values that are not finite, a loss that is not one per sample, or a batch
            that the model or the loss does not take.
    """
    direction = network.check_vector(direction, "direction")
    with differentiating_twice(network.model):
        parts, first = [], 0
        for batch in network.batches(data, "candidates"):
            with naming(batch, "candidates", first):
                parts.append(network.slopes(batch, loss, direction))
            first += len(parts[-1])
    values = torch.cat(parts)
    bad = torch.nonzero(~torch.isfinite(values)).flatten().tolist()
    if bad:
        raise InfluenceError(
            f"Expected finite influences but {len(bad)} of {len(values)} candidates, the first at "
            f"index {bad[0]}, gave NaN or infinity. Look at their inputs and the model's outputs."
        )
    return values
