"""Leave-one-out retraining: what influence estimates, computed.

For each sample i the model is trained again, to the minimum, without it:

    theta_-i = argmin (1/n) sum_{k != i} L(x_k) + (weight_decay / 2) ||theta||^2
    change_i = sum_j L(x_j; theta_-i) - sum_j L(x_j; theta)            L'_test - L_test of Eq. 3

with n as before the removal: Eq. 1 takes a weight of 1/n away from the sample and leaves the rest
as it was. For convex problems of up to a few thousand parameters, such as logistic regression.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from upslope.autodiff import differentiating_twice
from upslope.errors import InfluenceError
from upslope.gradnorm.parameters import Parameters
from upslope.influence.losses import LossFunction
from upslope.influence.network import Batches, pull_back, sample_count
from upslope.influence.products import Curvature

MOST_STEPS = 100
"""Newton steps before giving up."""


@dataclass(frozen=True)
class LeaveOneOut:
    """changes: (m,), the growth of the total test loss when each sample is left out.

    removed: the indices of those samples in the training data. model: the minimum with all samples,
    a copy of the model in float64. test_loss: the total test loss there.
    largest_gradient: the longest mean gradient left at any of the m + 1 minima.
    """

    changes: Tensor = field(repr=False)
    removed: tuple[int, ...] = field(repr=False)
    model: nn.Module = field(repr=False)
    test_loss: float
    largest_gradient: float


def leave_one_out(
    model: nn.Module,
    train: Batches,
    test: Batches,
    loss: str | LossFunction = "label",
    *,
    weight_decay: float,
    removed: Iterable[int] | None = None,
    parameters: Parameters = None,
    tolerance: float = 1e-10,
) -> LeaveOneOut:
    """Train with all samples, then without each of `removed` (all by default), in float64.

    Newton's method; without a sample, from the minimum with all of them and with the Hessian there,
    until the gradient is at most `tolerance`. Starts at the model's parameters, and leaves the
    model as it was.

    model: whose last layer, or whole, is convex to train. train, test: inputs and targets. loss:
    from outputs and targets to one loss per sample.

    Returns: the test losses without each of them.

    Raises:
        InfluenceError: `weight_decay` is not positive; an index is out of range; the problem is not
            convex or too large; a minimum is not reached.
    """
    if not weight_decay > 0:
        raise InfluenceError(
            f"Expected `weight_decay` to be positive but got {weight_decay}: without a penalty the "
            "minimum need not exist nor be unique."
        )
    model = copy.deepcopy(model).double()
    problem = _Problem(model, train, test, loss, weight_decay, parameters)
    positions = tuple(range(problem.n) if removed is None else removed)
    outside = [i for i in positions if not 0 <= i < problem.n]
    if outside:
        raise InfluenceError(
            f"Expected `removed` to be indices below {problem.n}, the number of training samples, "
            f"but got {outside[0]}."
        )
    with differentiating_twice(model):
        whole, factor, left = problem.minimum(problem.start, None, None, tolerance)
        base = problem.test_loss(whole)
        changes, longest = [], left
        for i in positions:
            without, _, left = problem.minimum(whole, i, factor, tolerance)
            changes.append(problem.test_loss(without) - base)
            longest = max(longest, left)
    with torch.no_grad():
        for name, value in problem.network.split(whole).items():
            model.get_parameter(name).copy_(value)
    return LeaveOneOut(torch.tensor(changes, dtype=torch.float64), positions, model, base, longest)


class _Problem:
    """The penalised training loss with and without a sample, and the total test loss."""

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        test: Batches,
        loss: str | LossFunction,
        weight_decay: float,
        parameters: Parameters,
    ):
        self.curvature = Curvature(model, train, loss, parameters=parameters)
        self.network, self.n = self.curvature.network, self.curvature.samples
        self.weight_decay = weight_decay
        self.start = self.network.flatten_theta(self.network.theta)
        self.train = list(self.network.batches(train, "train"))
        self.test = list(self.network.batches(test, "test"))

    def gradient(self, x: Tensor, without: int | None) -> Tensor:
        """Return the gradient (p,) of the penalised mean loss, less one sample's share."""
        total, first = self.weight_decay * x, 0
        for batch in self.train:
            theta = {name: v.clone().requires_grad_() for name, v in self.network.split(x).items()}
            losses = self.network.losses(theta, batch, self.network.loss)
            weights = torch.ones_like(losses)
            if without is not None and first <= without < first + len(losses):
                weights[without - first] = 0
            first += len(losses)
            total = total + self.network.flatten_theta(pull_back(losses, theta, weights)) / self.n
        return total

    def factor(self, x: Tensor, without: int | None) -> Tensor:
        """Return the Cholesky factor of the Hessian of the loss that `gradient` differentiates."""
        self.network.theta = self.network.split(x)
        hessian = self.curvature.matrix()
        if without is not None:
            hessian -= self._hessian_of(without, x) / self.n
        hessian.diagonal().add_(self.weight_decay)
        factor: Tensor
        factor, error_code = torch.linalg.cholesky_ex(hessian)
        if error_code:
            raise InfluenceError(
                "Expected a convex training loss but its Hessian, with weight decay "
                f"{self.weight_decay:g}, is not positive definite. Leave-one-out retraining is the "
                "ground truth only where the minimum is unique: use a linear model, or "
                "`parameters` that make it one."
            )
        return factor

    def _hessian_of(self, sample: int, x: Tensor) -> Tensor:
        """Return the Hessian of one sample's loss, (p, p)."""
        first, batch = 0, self.train[0]
        for batch in self.train:
            count = sample_count(batch)
            if sample < first + count:
                break
            first += count

        def loss(x: Tensor) -> Tensor:
            losses = self.network.losses(self.network.split(x), batch, self.network.loss)
            return losses[sample - first]

        hessian: Tensor = torch.autograd.functional.hessian(loss, x)  # type: ignore[no-untyped-call]
        return hessian

    def minimum(
        self, x: Tensor, without: int | None, factor: Tensor | None, tolerance: float
    ) -> tuple[Tensor, Tensor, float]:
        """Return (theta, the last factor, the length of the gradient there)."""
        g = self.gradient(x, without)
        if factor is None:
            factor, fresh = self.factor(x, without), True
        else:
            fresh = False
        for _ in range(MOST_STEPS):
            length = float(g.norm())
            if length <= tolerance:
                return x, factor, length
            step = torch.cholesky_solve(g[:, None], factor).squeeze(1)
            next_point = self._step(x, g, step, without)
            if next_point is not None:
                x, g = next_point
                fresh = False
            elif fresh:
                break
            # A Hessian costs as much as p gradients: an old one is kept for as long as it serves.
            if float(g.norm()) > max(0.7 * length, tolerance):
                factor, fresh = self.factor(x, without), True
        where = "with all samples" if without is None else f"without sample {without}"
        raise InfluenceError(
            f"Expected to reach a gradient of at most {tolerance:.1e} {where} but it stays at "
            f"{float(g.norm()):.1e}. Raise `weight_decay` or `tolerance`."
        )

    def _step(
        self, x: Tensor, g: Tensor, step: Tensor, without: int | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return the first of the steps 1, 1/2, 1/4 ... that shortens the gradient, if one does."""
        share = 1.0
        while share > 1e-6:
            trial = x - share * step
            slope = self.gradient(trial, without)
            if float(slope.norm()) <= (1 - share / 4) * float(g.norm()):
                return trial, slope
            share /= 2
        return None

    def test_loss(self, x: Tensor) -> float:
        """Return the sum of the test losses."""
        theta = self.network.split(x)
        total, first = 0.0, 0
        with torch.no_grad():
            for batch in self.test:
                losses = self.network.finite_losses(theta, batch, self.network.loss, "test", first)
                total += float(losses.sum())
                first += len(losses)
        return total
