"""Inverse products: (C + damping I) x = b, from products with C alone.

`ConjugateGradients` solves to a stated residual. `Lissa` is the stochastic recursion of Agarwal,
Bullins and Hazan (2017) that Koh and Liang (2017) use: kept for comparison.

Training with an L2 penalty, (weight_decay / 2) ||theta||^2 beside the mean loss, adds weight_decay
to every eigenvalue of the Hessian: count it into `damping`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from upslope.conjugate_gradients import descend, scale_of
from upslope.errors import InfluenceError
from upslope.influence.network import sample_count
from upslope.influence.products import Curvature

Status = Literal[
    "converged", "iteration limit", "stagnated", "negative curvature", "diverged", "approximate"
]


@dataclass(frozen=True)
class Solution:
    """An x with (C + damping I) x = b, as far as `residual` says.

    vector: x, (p,). residual: ||b - (C + damping I) x|| / ||b||, from a product with the final x.
    iterations: steps taken. status: why the solver stopped; detail: what to do about it, if
    anything.
    """

    vector: Tensor = field(repr=False)
    residual: float
    iterations: int
    status: Status
    detail: str = ""

    @property
    def converged(self) -> bool:
        """Return whether the residual fell below the tolerance."""
        return self.status == "converged"


class Solver(Protocol):
    """Solves (C + damping I) x = b."""

    def __call__(self, curvature: Curvature, b: Tensor) -> Solution:
        """Return an approximation of the inverse times b, (p,)."""
        ...


@dataclass(frozen=True)
class ConjugateGradients:
    """Conjugate gradients; stops when ||b - (C + damping I) x|| <= tolerance ||b||.

    The residual of the recursion drifts from the true one by rounding; when it says that the
    tolerance is reached the true one is computed, and the recursion restarts from there if need
    be. It stops as "stagnated" when a restart does not halve the true residual, as "iteration
    limit" after `max_iterations` products, and as "negative curvature" when it meets a direction d
    with d^T (C + damping I) d <= 0: the matrix is then not positive definite, which Eq. 4 assumes,
    and x is the last iterate before d.

    preconditioner: None; "jacobi", the absolute value of an estimated diagonal (16 products) plus
        damping; or a function r -> M^-1 r of a positive definite M, such as
        `lambda r: ekfac.inverse_product(r, damping)`.

    Raises:
        InfluenceError: a negative damping, or a tolerance or limit that is not positive.
    """

    damping: float = 0.0
    tolerance: float = 1e-6
    max_iterations: int = 1000
    preconditioner: Literal["jacobi"] | Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if not self.tolerance > 0 or self.max_iterations < 1:
            raise InfluenceError(
                "Expected `tolerance` above 0 and `max_iterations` of at least 1 but got "
                f"{self.tolerance} and {self.max_iterations}."
            )
        if isinstance(self.preconditioner, str) and self.preconditioner != "jacobi":
            raise InfluenceError(
                'Expected `preconditioner` to be None, "jacobi" or a callable but got '
                f"{self.preconditioner!r}."
            )

    def __call__(self, curvature: Curvature, b: Tensor) -> Solution:
        """Return the solution for the right side b, (p,)."""
        return _solve_to_scale(self._solve, curvature, b)

    def _solve(self, curvature: Curvature, b: Tensor) -> Solution:
        x, length = torch.zeros_like(b), float(b.norm())
        precondition = self._preconditioner(curvature)

        def times(vector: Tensor) -> Tensor:
            return _damped_product(curvature, vector, self.damping)

        residual, iterations = b, 0
        before = math.inf
        while iterations < self.max_iterations:
            enough, left = self.tolerance * length, self.max_iterations - iterations
            x, steps, quotient = descend(times, x, residual, enough, left, precondition)
            iterations += steps
            residual = b - times(x)
            relative = float(residual.norm()) / length
            if quotient is not None:
                return Solution(
                    x, relative, iterations, "negative curvature", _negative(quotient, self.damping)
                )
            if relative <= self.tolerance:
                return Solution(x, relative, iterations, "converged")
            if relative > before / 2 and iterations < self.max_iterations:
                detail = (
                    f"Rounding in {b.dtype} keeps the residual at {relative:.1e}. Compute the "
                    "curvature in torch.float64, raise the damping, or raise the tolerance."
                )
                return Solution(x, relative, iterations, "stagnated", detail)
            before = relative
        detail = "Raise `max_iterations` or `damping`, or give a preconditioner."
        return Solution(x, relative, iterations, "iteration limit", detail)

    def _preconditioner(self, curvature: Curvature) -> Callable[[Tensor], Tensor]:
        if self.preconditioner is None:
            return lambda r: r
        if self.preconditioner == "jacobi":
            scale = curvature.diagonal().abs() + self.damping
            # Parameters that nothing depends on have none: any positive number serves.
            scale = scale.clamp(min=float(scale.max()) * 1e-6 or 1.0)
            return lambda r: r / scale
        assert callable(self.preconditioner)
        return self.preconditioner


@dataclass(frozen=True)
class Lissa:
    """x = lim h_t / scale with h_t = b + (I - (C_t + damping I) / scale) h_{t-1}.

    C_t is the curvature of one batch, drawn at random in proportion to its size; all batches are
    kept in memory. `depth` steps, the mean over `repeats` runs. It converges if every eigenvalue of
    every C_t + damping I lies between 0 and `scale`; then ||h_t|| <= min(t + 1, scale / damping)
    ||b||. A longer h_t proves the contrary and stops the run as "diverged". After the last step the
    true residual is computed: "converged" where it is below `tolerance`.

    seed: of the batches drawn.

    Raises:
        InfluenceError: a negative damping, or another number that is not positive.
    """

    damping: float = 0.01
    scale: float = 10.0
    depth: int = 1000
    repeats: int = 1
    seed: int = 0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        check_damping(self.damping)
        for name in ("scale", "depth", "repeats", "tolerance"):
            if not getattr(self, name) > 0:
                raise InfluenceError(
                    f"Expected `{name}` to be positive but got {getattr(self, name)}."
                )

    def __call__(self, curvature: Curvature, b: Tensor) -> Solution:
        """Return the solution for the right side b, (p,)."""
        return _solve_to_scale(self._solve, curvature, b)

    def _solve(self, curvature: Curvature, b: Tensor) -> Solution:
        length = float(b.norm())
        batches = list(curvature.network.batches(curvature.data, "data"))
        sizes = torch.tensor([float(sample_count(batch)) for batch in batches])
        rng = torch.Generator().manual_seed(self.seed)
        total = torch.zeros_like(b)
        for repeat in range(self.repeats):
            h = b
            batch_numbers = torch.multinomial(sizes, self.depth, replacement=True, generator=rng)
            for t, index in enumerate(batch_numbers.tolist(), start=1):
                product = curvature.batch_product(batches[index], h) + self.damping * h
                h = b + h - product / self.scale
                longest = min(t + 1, self.scale / self.damping if self.damping else math.inf)
                if not float(h.norm()) <= 1.001 * longest * length:
                    steps = repeat * self.depth + t
                    return Solution(h / self.scale, math.inf, steps, "diverged", self._advice(t))
            total += h / self.scale
        x = total / self.repeats
        residual = relative_residual(curvature, x, b, self.damping)
        status: Status = "converged" if residual <= self.tolerance else "iteration limit"
        return Solution(x, residual, self.depth * self.repeats, status)

    def _advice(self, t: int) -> str:
        return (
            f"After {t} steps the recursion was longer than eigenvalues between 0 and `scale` "
            f"allow: raise `scale` above {self.scale:g}, the largest eigenvalue of every batch, or "
            f"`damping` above {self.damping:g}, the depth of the most negative one."
        )


def _solve_to_scale(
    solve: Callable[[Curvature, Tensor], Solution], curvature: Curvature, b: Tensor
) -> Solution:
    """Solve for a right side whose largest entry is about 1, and scale the solution back.

    Squares of very small or large entries would leave the range of the type. The scale is a power
    of two, so that nothing is rounded.
    """
    b = curvature.network.check_vector(b, "b")
    scale = scale_of(b)
    if scale == 0:
        return Solution(torch.zeros_like(b), 0.0, 0, "converged")
    solution = solve(curvature, b / scale)
    return replace(solution, vector=solution.vector * scale)


def _damped_product(curvature: Curvature, vector: Tensor, damping: float) -> Tensor:
    return curvature.product(vector) + damping * vector


def relative_residual(curvature: Curvature, x: Tensor, b: Tensor, damping: float) -> float:
    """Return ||b - (C + damping I) x|| / ||b||, by one product; 0 where b and x are both zero."""
    scale = scale_of(b) or 1.0
    b, x = b / scale, x / scale
    left = float((b - _damped_product(curvature, x, damping)).norm())
    return left / float(b.norm()) if left else 0.0


def _negative(quotient: float, damping: float) -> str:
    return (
        f"The curvature has an eigenvalue of at most {quotient - damping:.3g}: with damping "
        f"{damping:g} it is not positive definite. Use a damping above {damping - quotient:.3g}, "
        'or kind="gauss-newton" or "fisher".'
    )


def check_damping(damping: float) -> None:
    """Raise InfluenceError unless the damping is finite and not negative."""
    if not 0 <= damping < math.inf:
        raise InfluenceError(f"Expected `damping` to be finite and at least 0 but got {damping}.")
