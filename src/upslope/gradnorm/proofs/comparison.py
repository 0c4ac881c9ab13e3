"""Comparison of what the kernels found of a batch with what autograd finds of it.

Of each parameter one number is compared, the inner product of its gradient with a random direction
(`kernel_results`), and of one sample what was asked for. Called by `proof`, and by
`trace/same_activations` where rounding at kinks has kept the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.gradnorm.core.uses.reductions import Reduction
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.kernel_results import Direction, KernelGradients, ProofFailed

_TOLERANCES = {torch.float64: (1e-7, 1e-10), torch.float32: (3e-2, 2e-5)}
"""Of a type: how far two ways may differ, relative to the gradient of the parameter, and to the
largest gradient of any. In float32 a few of a million activations round to the other side of a
kink, which moves the gradient of a deep network's first layers by up to a hundredth; a sample in a
wrong place moves it by a quarter or more. What differs by more is compared at the same activations
(`trace/same_activations`), or in float64."""

_HALF = (0.2, 1e-2)

_ONE_SAMPLE = {torch.float64: 4e-7, torch.float32: 4e-2}
"""Of a type: how far what is asked of one sample may differ, relative to it; squares do twice."""

_ONE_SAMPLE_HALF = 0.8

_SQUARES_HELD = (1e-15, 1e15)
"""Between which the norm of a gradient is taken as float32 has it."""


class GradientsDiffer(ProofFailed):
    """Gradients of the kernels are not those of autograd, and all else is as it should be.

    Passes without company have put out what the batch has, and no loss reaches another sample.
    """


class SummedGradient(NamedTuple):
    """What is compared of the gradient of one parameter, summed over groups of samples.

    size: the root of the sum of squares of the groups' norms, the norm of their sum but for what
    they have in common. product: with the direction of the parameter (`kernel_results`).
    """

    size: float = 0.0
    product: float = 0.0

    def add(self, name: str, parameter: Tensor, gradient: Tensor) -> SummedGradient:
        """Return the numbers with the gradient of another group of samples added.

        name, parameter: whose gradient it is.
        """
        dense = (gradient.to_dense() if gradient.is_sparse else gradient).detach()
        product = Direction.of(name, parameter).product(dense[None])
        size = math.hypot(self.size, _norm(dense))
        return SummedGradient(size, self.product + float(product.double()))


def _norm(gradient: Tensor) -> float:
    """Return the norm of all entries, also of such whose squares float32 cannot hold.

    A tolerance of zero would refuse gradients that are right, and an infinite one none.
    """
    norm = float(torch.linalg.vector_norm(gradient))
    if _SQUARES_HELD[0] < norm < _SQUARES_HELD[1]:
        return norm
    in_double = gradient.to(torch.promote_types(gradient.dtype, torch.float64))
    return float(torch.linalg.vector_norm(in_double))


class AutogradGradients:
    """What is compared of the gradients that autograd finds, taken in one parameter at a time.

    parameters: name -> what is differentiated by. reduction: what is asked of single samples.
    """

    def __init__(self, parameters: Mapping[str, Tensor], reduction: Reduction):
        self._parameters, self._reduction = parameters, reduction
        self.sums: dict[str, SummedGradient] = {}
        """name -> the gradient of sum_n w_n L_n, of every parameter that is reached."""
        self.rows_of_one: dict[str, Tensor] = {}
        """name -> what is asked of the gradient of the loss of one sample."""
        self.sizes_of_one: dict[str, float] = {}
        """name -> what the rounding of that is proportional to."""

    def take(self, name: str, gradient: Tensor) -> None:
        """Add the gradient of a group of samples."""
        before = self.sums.get(name, SummedGradient())
        self.sums[name] = before.add(name, self._parameters[name], gradient)

    def take_one(self, name: str, gradient: Tensor) -> None:
        """Take note of the gradient of the loss of one sample."""
        dense = (gradient.to_dense() if gradient.is_sparse else gradient).detach()
        self.rows_of_one[name] = self._reduction.of_dense(name, dense[None])[0].double()
        self.sizes_of_one[name] = float(self._reduction.sizes(name, dense[None])[0])

    def missing_row(self, name: str) -> Tensor:
        """Return what is asked of a sample whose loss does not reach a parameter."""
        zeros = torch.zeros_like(self._parameters[name])
        return self._reduction.of_dense(name, zeros[None])[0].double()


def random_numbers(n: int, samples: Tensor) -> tuple[Tensor, int]:
    """Return the numbers w_n of n samples, (n,), zero for all but some, and one of these.

    samples: the numbers of those whose gradients are proven.
    """
    rng = torch.Generator().manual_seed(n)
    # Away from zero, so that no sample goes unproven; of either sign, so that errors do not add
    # up to a common scale.
    w = (torch.rand(n, generator=rng) + 0.5) * (torch.randint(2, (n,), generator=rng) * 2 - 1)
    w = torch.zeros_like(w).index_copy(0, samples, w[samples])
    return w, int(samples[int(torch.randint(len(samples), (1,), generator=rng))])


def compare(
    run: BatchRun,
    kernel_gradients: KernelGradients,
    w: Tensor,
    one: int,
    autograd: AutogradGradients,
    share: float = 1.0,
) -> None:
    """Hold what the kernels found against what autograd has found.

    w, one: as of `random_numbers`. autograd: what is known of sum_n w_n G_n and of G_one. share:
    of the tolerance relative to a gradient that two ways may differ by.

    Raises:
        GradientsDiffer: naming the parameter whose gradients differ.
    """
    near, floor = tolerance(run)
    near = share * near
    largest = max((gradient.size for gradient in autograd.sums.values()), default=0.0)
    for name in run.weights.parameters:
        product = kernel_gradients.products.get(name)
        gradient = autograd.sums.get(name, SummedGradient())
        ours = 0.0
        if product is not None:
            # In double: sums of float32 over thousands of samples would lose the digits compared
            # here.
            ours = float((product.double() * w.to(product).double()).sum())
        if not abs(ours - gradient.product) <= near * gradient.size + floor * largest:
            raise GradientsDiffer(
                f"autograd finds another gradient for {_uses(run, kernel_gradients, name)}"
            )
    _check_one(run, autograd, kernel_gradients, one, share)


def are_near_in_half(rows: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> bool:
    """Return whether half precision has made nearly the same of a batch as another type.

    Of each parameter, summed over the samples: single ones may lie at a kink, but a wrong place or
    kernel takes many of them elsewhere.

    rows, reference: name -> (n, ...), what was reduced of the gradients in either type.
    """
    near, floor = _HALF
    sizes = {name: float(values.double().abs().sum()) for name, values in reference.items()}
    largest = max(sizes.values(), default=0.0)
    for name in {*rows, *reference}:
        ours, theirs = (
            values[name].double() if name in values else 0.0 for values in (rows, reference)
        )
        difference = float(torch.as_tensor(ours - theirs).abs().sum())
        if not difference <= near * sizes.get(name, 0.0) + floor * largest:
            return False
    return True


def compare_losses(run: BatchRun, plain: Tensor, losses: Tensor) -> None:
    """Hold the losses of the pass through kernels against those of another pass, (n,) each.

    Raises:
        ProofFailed: they differ.
    """
    near, floor = tolerance(run)
    size = losses.detach().abs().max() if run.n else losses.new_zeros(())
    if not bool(((plain - losses).detach().abs() <= near * size + floor).all()):
        raise ProofFailed("the losses are not those of an ordinary forward pass")


def _check_one(
    run: BatchRun,
    autograd: AutogradGradients,
    kernel_gradients: KernelGradients,
    sample: int,
    share: float,
) -> None:
    """Hold what was asked of one sample against its gradients by autograd alone."""
    near, (_, floor) = _ONE_SAMPLE.get(run.precision, _ONE_SAMPLE_HALF), tolerance(run)
    near = share * near
    rows = kernel_gradients.rows
    pairs = {}
    for name in run.weights.parameters:
        theirs = autograd.rows_of_one.get(name)
        # Neither way reached it: it has zeros in both.
        if theirs is None and name not in rows:
            continue
        if theirs is None:
            theirs = autograd.missing_row(name)
        ours = rows[name][sample].double() if name in rows else torch.zeros_like(theirs)
        pairs[name] = ours, theirs
    sizes = autograd.sizes_of_one
    # Reductions are of the square of a norm's size.
    largest = max(sizes.values(), default=0.0)
    for name, (ours, theirs) in pairs.items():
        largest_difference = near * sizes.get(name, 0.0) + 4 * floor * largest
        # Squares that are infinite in both ways are formed again (`bring_into_range`).
        are_near = ((ours - theirs).abs() <= largest_difference) | (ours == theirs)
        if not bool(are_near.all()):
            raise GradientsDiffer(
                f"autograd finds another norm for {_uses(run, kernel_gradients, name)}"
            )


def _uses(run: BatchRun, kernel_gradients: KernelGradients, name: str) -> str:
    operators = {
        kernel.name
        for kernel in kernel_gradients.kernels
        if any(name in run.weights.sources(w) for w in kernel.weights)
    }
    operator_words = (
        ", ".join(f"`{operator}`" for operator in sorted(operators)) or "an operator not seen"
    )
    return f"`{name}`, used by {operator_words}"


def tolerance(run: BatchRun) -> tuple[float, float]:
    """How far two ways may differ: relative to a parameter's gradient, and to the largest one."""
    return _TOLERANCES.get(run.precision, _HALF)
