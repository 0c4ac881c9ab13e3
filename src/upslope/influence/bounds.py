"""The four terms of Figure 3: what each approximation from Eq. 3 to Eq. 5 adds to the bound.

    Target    sum_j grad L(T'(x_j))^T H^-1 grad L(T'(x))               Eq. 3, line 2
    Approx-1  | sum_j grad L(T'(x_j))^T H^-1 grad L(T'(x)) |           Eq. 4, line 2
    Approx-2  ||grad L(T'(x))|| * || sum_j H^-1 grad L(T'(x_j)) ||     Eq. 4, line 4
    Approx-3  ||grad L(T(x))||  * || sum_j H^-1 grad L(T'(x_j)) ||     Eq. 5, line 2

with T the model of cycle c, at which x is chosen, T' that of cycle c + 1, and H the curvature at T'
over its training set. As in the paper's list, none carries the 1/n of Eq. 1: divide by `samples`.

Target <= Approx-1 <= Approx-2 are theorems (the second is Cauchy and Schwarz), and are checked.
Approx-2 <= Approx-3 is the paper's assumption about training; the share of samples for which it
holds is reported, as in Tables 4 and 5.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from upslope.autodiff import differentiating_twice
from upslope.errors import InfluenceError
from upslope.gradnorm import gradient_norms
from upslope.influence.influence import inner_products, inverse_test_gradient
from upslope.influence.losses import LossFunction, loss_named
from upslope.influence.network import Batches, Network
from upslope.influence.products import Curvature
from upslope.influence.solvers import Solution, Solver


@dataclass(frozen=True)
class Bounds:
    """The four terms for each of m candidates, (m,) float64 each.

    solve: s = sum_j H^-1 grad L(T'(x_j)) and how well it was solved for. samples: n.

    target: the test loss that changes. approx_1, approx_2, approx_3: its bounds.
    """

    target: Tensor = field(repr=False)
    approx_1: Tensor = field(repr=False)
    approx_2: Tensor = field(repr=False)
    approx_3: Tensor = field(repr=False)
    solve: Solution
    samples: int

    def means(self) -> dict[str, float]:
        """Return the averages over the candidates, as Figure 3 draws them."""
        terms = {
            "Target": self.target,
            "Approx-1": self.approx_1,
            "Approx-2": self.approx_2,
            "Approx-3": self.approx_3,
        }
        return {name: float(term.mean()) for name, term in terms.items()}

    def reduced_share(self) -> float:
        """Return the share of candidates with ||grad L(T'(x))|| <= ||grad L(T(x))||."""
        return float((self.approx_2 <= self.approx_3).double().mean())


def bounds(
    curvature: Curvature,
    previous: nn.Module,
    test: Batches,
    candidates: Batches,
    loss: str | LossFunction,
    *,
    solver: Solver,
) -> Bounds:
    """Return the four terms of Figure 3 for every candidate.

    curvature: H at T', the later model. The paper takes every L in the terms, and so by its
        definition that in H, to be `loss`; the derivation of influence takes the loss that T' was
        trained with. Give the curvature the loss that you mean: the entropy's Hessian is seldom
        positive definite.
    previous: T, the earlier model, with the same parameters.
    loss: "expected" (Eq. 6), "entropy" (Eq. 7), "label", or a function.
    test, candidates, solver: as `influence_on_test_loss`.

    Raises:
        InfluenceError: an inequality that must hold is violated beyond rounding, which names the
            sample; the solver failed; `previous` has other parameters.
        GradientNormError: the gradient norm of a sample is not defined for this model.
    """
    network, loss_function = curvature.network, loss_named(loss)
    solve, _ = inverse_test_gradient(curvature, test, loss_function, solver)
    earlier = Network(previous, loss_function, network.parameters, network.dtype)
    if {k: v.shape for k, v in earlier.theta.items()} != {
        k: v.shape for k, v in network.theta.items()
    }:
        raise InfluenceError(
            "Expected `previous` to have the parameters of the curvature's model but got "
            f"{earlier.size} in {len(earlier.theta)} tensors for {network.size} in "
            f"{len(network.theta)}. Both are the task model, one cycle apart."
        )
    target = inner_products(network, candidates, loss_function, solve.vector).double()
    length = solve.vector.double().norm()
    terms = Bounds(
        target=target,
        approx_1=target.abs(),
        approx_2=_norms(network, candidates, loss_function) * length,
        approx_3=_norms(earlier, candidates, loss_function) * length,
        solve=solve,
        samples=curvature.samples,
    )
    check_order(terms, rounding=1e4 * torch.finfo(network.dtype).eps)
    return terms


def check_order(terms: Bounds, rounding: float) -> None:
    """Raise InfluenceError unless Target <= Approx-1 <= Approx-2, but for `rounding`.

    rounding: the share of Approx-2 by which an inequality may fail.
    """
    for smaller, larger in (("target", "approx_1"), ("approx_1", "approx_2")):
        low, high = getattr(terms, smaller), getattr(terms, larger)
        # Written so that NaN is a violation.
        excess = torch.nonzero(~(low <= high + rounding * terms.approx_2)).flatten()
        if len(excess):
            i = int(excess[0])
            raise InfluenceError(
                f"Expected {smaller} <= {larger} for every sample, as Eq. 4 proves, but sample {i} "
                f"has {float(low[i]):.9g} and {float(high[i]):.9g}, beyond rounding "
                f"({len(excess)} of {len(low)} samples). The model or its data changed between two "
                "passes, or lost precision: fix the data's order and augmentation, or compute in "
                "torch.float64."
            )


def _norms(network: Network, data: Batches, loss: LossFunction) -> Tensor:
    """Return ||grad L(x)||, (m,) float64, by the engine: a way of its own, so that the check means
    it.
    """
    model = copy.deepcopy(network.model).to(network.dtype)
    with differentiating_twice(model):
        norms = [
            gradient_norms(model, inputs, _at(loss, targets), parameters=network.parameters)
            for inputs, targets in network.batches(data, "candidates")
        ]
    return torch.cat(norms).double()


def _at(loss: LossFunction, targets: Any) -> Callable[[Any], Tensor]:
    return lambda outputs: loss(outputs, targets)
