"""Reduces the per-sample gradients of a batch, by one backward pass through the kernels.

Proven, for the first batch of a program and some of the others, or as it is. Called by `recording`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from upslope.gradnorm.core.heap import drop_free_pages, give_pages_back
from upslope.gradnorm.core.layouts.layout import Layout
from upslope.gradnorm.core.layouts.layout_probe import FrontGuess
from upslope.gradnorm.core.layouts.separation import scales
from upslope.gradnorm.core.model_io import Loss, copy_objects, differentiable, opens
from upslope.gradnorm.core.uses.reducing_listener import ReducingListener
from upslope.gradnorm.core.uses.reductions import Reduction, TotalSquaredNorms
from upslope.gradnorm.core.uses.tape import Listener
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.comparison import GradientsDiffer
from upslope.gradnorm.proofs.independence import model_may_mix_samples
from upslope.gradnorm.proofs.kernel_results import (
    AllListeners,
    Checksums,
    KernelGradients,
    ProofFailed,
    ProvenReduction,
)
from upslope.gradnorm.proofs.proof import check_gradients, check_separation
from upslope.gradnorm.trace.forward import Forward
from upslope.gradnorm.trace.same_activations import agree_at_same_activations

_SAME_SQUARES = 1e-3
"""The relative difference that float32 may make of two orders in which squares are summed. Set by
hand, far above that of a million of them and far below that of a tensor that is not what it was."""

_LEAST = 2.0**-80
"""Sums of squares below which float32 may have lost some: its smallest square is 2^-149."""

_POWER = 90
"""By which power of two losses are scaled whose gradients float32 cannot square: norms from 1e-45
to 1e-12, and from 1e19 to the end of the range, come to lie between 1e-18 and 1e15."""


class OtherTypes(Protocol):
    """Runs the program of a batch in another floating type."""

    def holds_in_double(self, loss: Loss) -> bool:
        """Whether a loss proves right in float64, where nothing rounds far enough to matter."""
        ...

    def agrees_in_single(
        self, reduction: Reduction, loss: Loss, rows: Mapping[str, Tensor]
    ) -> bool:
        """Whether a loss proves right in float32, and nearly the same is reduced of its gradients.

        rows: name -> (n, ...), what half precision has made of them.
        """
        ...


class ReducedGradients(NamedTuple):
    """rows: name -> (n, ...), of every parameter that a gradient reached."""

    rows: dict[str, Tensor]
    has_reached: bool
    """Whether the backward pass came to any use of a weight, be it with zeros."""


def reduce_unproven(
    run: BatchRun,
    forward: Forward,
    reduction: Reduction,
    losses: Tensor,
    layouts: Mapping[int, Layout],
    *,
    last: bool,
) -> ReducedGradients:
    """Return the reduced gradients of a batch whose program is proven.

    run, forward: the batch and its pass. losses: (n,). layouts: use -> where its samples are.
    last: whether no other pass follows.
    """
    listener = ReducingListener(forward.tape, run.n, layouts, reduction)
    forward.backward(losses, torch.ones_like(losses), listener, last=last)
    return ReducedGradients(listener.finish(), listener.reached)


def reduce_scaled(
    run: BatchRun,
    forward: Forward,
    reduction: Reduction,
    loss: Loss,
    layouts: Mapping[int, Layout],
    factors: Tensor,
) -> ReducedGradients:
    """Return the reduced gradients of the losses times factors, after a forward pass if need be.

    factors: (n,). loss: gives the losses. The other arguments are those of `reduce_unproven`.
    """
    forward.record()
    losses = forward.losses(loss)
    listener = ReducingListener(forward.tape, run.n, layouts, reduction, in_double=True)
    forward.backward(losses, factors, listener)
    return ReducedGradients(listener.finish(), listener.reached)


def prove_scaled(
    run: BatchRun,
    forward: Forward,
    reduction: Reduction,
    loss: Loss,
    factors: Tensor,
    other_types: OtherTypes,
    ways_of: Callable[[Tensor], Sequence[Hashable]],
) -> Mapping[int, Layout]:
    """Return the layouts of losses times factors, proven as those of other losses are.

    forward: has run. factors: (n,), of the losses' type. ways_of: gives the `ways` of losses.
    Others as of `reduce_proven`, whose errors it raises.
    """
    losses = forward.losses(lambda outputs: loss(outputs) * factors)
    layouts = forward.layouts_with_routes(forward.probe(losses).layouts())
    reduce_proven(
        run, forward, reduction, lambda outputs: loss(outputs) * factors, losses, layouts, None,
        last=False, looks_around=False, other_types=other_types, ways=ways_of(losses),
    )  # fmt: skip
    return layouts


def bring_into_range(
    run: BatchRun,
    loss: Loss,
    reduction: Reduction,
    results: ReducedGradients,
    reduce_again: Callable[[Tensor], ReducedGradients],
) -> ReducedGradients:
    """Return what is reduced, with what float32 could not hold from a pass of scaled losses.

    Squares of numbers below 1e-22 are zero, and those above 1e19 infinite. A power of two scales a
    loss, and its gradients, without rounding.

    run, loss, reduction: of the batch. results: of its losses as they are. reduce_again: gives
    those of the losses times factors, (n,).
    """
    if not results.rows or run.precision not in (torch.float32, torch.bfloat16):
        return results
    sizes = _sizes(results.rows)
    least, most = map(float, sizes.aminmax())
    if least >= _LEAST and most < math.inf:
        return results
    is_small, is_large = sizes < _LEAST, ~sizes.isfinite()
    if not bool(is_large.any()) and _are_flat(run, loss, is_small):
        return results
    ones, rows = torch.ones_like(sizes), results.rows
    # In float64 squares of large numbers are none too large; scaled down, small ones would be zero.
    factors = ones.masked_fill(is_small, 2.0**_POWER)
    rows = _replace_rows(rows, is_small | is_large, factors, reduction, reduce_again)
    is_large = ~_sizes(rows).isfinite()
    if bool(is_large.any()):
        factors = ones.masked_fill(is_large, 2.0**-_POWER)
        rows = _replace_rows(rows, is_large, factors, reduction, reduce_again)
    return results._replace(rows=rows)


def _replace_rows(
    rows: Mapping[str, Tensor],
    samples: Tensor,
    factors: Tensor,
    reduction: Reduction,
    reduce_again: Callable[[Tensor], ReducedGradients],
) -> dict[str, Tensor]:
    """Return rows in which some samples' are those of a pass of losses times factors, where finite.

    rows: name -> (n, ...). samples: (n,) bool. factors: (n,). Others as of `bring_into_range`.
    """
    rows_again = {
        name: _divide(values, factors, reduction.degree)
        for name, values in reduce_again(factors).rows.items()
    }
    if not rows_again:
        return dict(rows)
    # Not where the scaled gradients leave the range of float32 themselves.
    is_better = samples & _sizes(rows_again).isfinite()
    for name, values in rows.items():
        others = rows_again.get(name, values)
        is_row_better = is_better.view(-1, *(1,) * (values.dim() - 1))
        rows_again[name] = torch.where(is_row_better, others, values)
    return rows_again


def _sizes(rows: Mapping[str, Tensor]) -> Tensor:
    """Return the sums of the first numbers of the rows, (n,) float64. rows: name -> (n, ...)."""
    first = [values if values.dim() == 1 else values[:, 0] for values in rows.values()]
    return torch.stack(first).sum(dim=0, dtype=torch.float64).abs()


def _divide(rows: Tensor, factors: Tensor, degree: int) -> Tensor:
    """Return, in float64, rows of scaled losses as they are of the losses (`Reduction.degree`)."""
    if rows.dim() == 1:
        return rows.double() / factors**degree
    first, others = rows[:, :1] / factors[:, None] ** degree, rows[:, 1:] / factors[:, None]
    return torch.cat([first, others], dim=1)


def _are_flat(run: BatchRun, loss: Loss, samples: Tensor) -> bool:
    """Return whether some samples' losses have no gradient at the outputs, and so none behind.

    False where that cannot be told. samples: (n,) bool.
    """
    leaves, spec = tree_flatten(run.outputs)
    cut = [x.detach().requires_grad_() if differentiable(x) else x for x in leaves]
    ends = [x for x in cut if differentiable(x)]
    if not opens(run.outputs) or any(x.shape[:1] != (run.n,) for x in ends):
        return False
    copies = [x.clone() if differentiable(x) else x for x in cut]  # for a loss may write to them
    parameters = list(run.weights.parameters.values())
    try:
        with torch.enable_grad(), run.loss_pass():
            losses = loss(copy_objects(tree_unflatten(copies, spec)))
        ones = torch.ones_like(losses)
        gradients = torch.autograd.grad(losses, [*ends, *parameters], ones, allow_unused=True)
    except RuntimeError:  # a loss that differentiates, or ignores the outputs
        return False
    at_outputs, at_parameters = gradients[: len(ends)], gradients[len(ends) :]
    has_parameters = any(g is not None for g in at_parameters)
    return not has_parameters and not any(
        g is not None and bool(g[samples].any()) for g in at_outputs
    )


def reduce_separated(
    run: BatchRun,
    forward: Forward,
    reduction: Reduction,
    losses: Tensor,
    layouts: Mapping[int, Layout],
    *,
    last: bool,
) -> ReducedGradients:
    """Return the reduced gradients, once powers of two have told the samples of the batch apart.

    For a model whose backward pass may mix samples where its forward pass does not: a custom
    function that scales gradients by the norm of all, once that is large. Arguments are those of
    `reduce_unproven`.

    Raises:
        ProofFailed: the losses of other samples reach a sample's places.
    """
    parts = ReducingListener(forward.tape, run.n, layouts, reduction)
    rows = _run_and_separate(run, forward, parts, losses, None, last=last, guess=None)
    return ReducedGradients(rows, parts.reached)


def reduce_proven(
    run: BatchRun,
    forward: Forward,
    reduction: Reduction,
    loss: Loss,
    losses: Tensor,
    layouts: Mapping[int, Layout],
    scaled_sums: Mapping[int, Tensor] | None,
    *,
    last: bool,
    looks_around: bool,
    other_types: OtherTypes,
    ways: Sequence[Hashable],
    guess: FrontGuess | None = None,
) -> ReducedGradients:
    """Return the reduced gradients, held against what autograd alone says of the batch.

    scaled_sums: use -> checksums (n,) of a pass with u times the losses, where probing took one.
    looks_around: whether to see if samples may depend on others, as for each new program. guess:
    what fills `layouts` while gradients come, where they are guessed.
    other_types: asked where this type may have rounded an activation to the other side of a kink,
    so that two right ways differ by more than rounding errors. ways: n of them; samples of which
    these are not equal go apart.

    Raises:
        ProofFailed: the two do not agree.
        LayoutUnknown: the guess is wrong.
    """
    noting = ProvenReduction(reduction)
    has_total = isinstance(reduction, TotalSquaredNorms)
    parts = ReducingListener(forward.tape, run.n, layouts, noting, has_total)
    try:
        rows = _run_and_separate(run, forward, parts, losses, scaled_sums, last=last, guess=guess)
    finally:
        # Behind the passes that may let activations go, and also where these have failed.
        if looks_around:
            if guess is None:
                drop_free_pages()  # of the activations
            run.may_mix_samples = model_may_mix_samples(run)
            if guess is None:
                drop_free_pages()  # of passes of parts of the batch
    gradients = KernelGradients(
        rows,
        noting.products,
        losses.detach(),
        forward.tape.kernels,
        forward.repeats and not forward.follows_data,
        ways,
    )
    try:
        check_gradients(run, loss, gradients, reduction)
    except ProofFailed as failure:
        drop_free_pages()
        with give_pages_back():
            is_kink = _is_kink(
                failure, run, forward, reduction, loss, gradients, other_types,
                is_guess=guess is not None,
            )  # fmt: skip
        if not is_kink:
            raise
    if looks_around and guess is None:
        drop_free_pages()  # the next batch is not proven, and has other tensors
    return ReducedGradients(_total(parts, rows) if has_total else rows, parts.reached)


def _is_kink(
    failure: ProofFailed,
    run: BatchRun,
    forward: Forward,
    reduction: Reduction,
    loss: Loss,
    gradients: KernelGradients,
    other_types: OtherTypes,
    *,
    is_guess: bool,
) -> bool:
    """Return whether a proof has failed by a rounding at a kink, which is no fault of a kernel.

    In float32 the same activations tell the two apart, or float64; in half precision float32 does.
    Arguments as of `reduce_proven`. gradients: those that the proof was of.
    """
    if run.precision.itemsize == 2:  # half precision, of either kind
        is_apart = isinstance(failure, GradientsDiffer) and not is_guess
        return is_apart and other_types.agrees_in_single(reduction, loss, gradients.rows)
    single = any(p.dtype == torch.float32 for p in run.weights.parameters.values())
    if not (single and run.precision == torch.float32):
        return False
    if isinstance(failure, GradientsDiffer):
        both = forward.by_both_ways()
        is_kink = agree_at_same_activations(run, both, loss, gradients, reduction)
        if is_kink is not None:
            return is_kink
        del both  # its activations, before there are others
    # In float64 layouts are probed: that says nothing of a guess.
    return not is_guess and other_types.holds_in_double(loss)


def _total(parts: ReducingListener, rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the squares that were added up, which must be those of all parameters.

    Raises:
        ProofFailed: they are not: what was kept to be squared at the end has been written to.
    """
    total = parts.total()
    of_parameters = TotalSquaredNorms().total(rows) if rows else {}
    for name, squares in of_parameters.items():
        if not torch.allclose(total[name], squares, rtol=_SAME_SQUARES, atol=0, equal_nan=True):
            raise ProofFailed("the squares of all parameters are not the sum of those of each")
    return total


def _run_and_separate(
    run: BatchRun,
    forward: Forward,
    parts: ReducingListener,
    losses: Tensor,
    scaled_sums: Mapping[int, Tensor] | None,
    *,
    last: bool,
    guess: FrontGuess | None,
) -> dict[str, Tensor]:
    """Return what is reduced of the gradients, once powers of two have told the samples apart.

    parts: reduces. Other arguments and errors as of `reduce_proven`.
    """
    layouts, kernels = parts.layouts, forward.tape.kernels
    once, again = (Checksums(run.n, layouts, kernels) for _ in range(2))
    # A single sample cannot be mixed with others; and probing may have taken the scaled pass.
    enough = run.n == 1 or scaled_sums is not None
    listeners: list[Listener] = [once, parts] if guess is None else [guess, once, parts]
    everyone = AllListeners(listeners)
    forward.backward(losses, torch.ones_like(losses), everyone, last=last and enough)
    rows = parts.finish()
    if run.n > 1:
        u = scales(run.n, losses, precision=run.options.dtype)
        if scaled_sums is None:
            forward.backward(losses, u, again, last=last)
            scaled_sums = {index: sums for index, (sums, _) in again.sums.items()}
        scaled_sums = {index: scaled_sums[index] for index in scaled_sums if index in once.sums}
        check_separation(run, once, scaled_sums, u)
    return rows
