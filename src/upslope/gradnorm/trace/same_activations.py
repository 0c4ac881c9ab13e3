"""Gradients by autograd alone, of the very activations that the kernels have made.

In float32 two right ways through a network part at its kinks: an activation that is zero but for
rounding passes a gradient on one way and none on the other, which may move the gradient of a first
layer by more than any wrong kernel would. So the batch goes forward once more, and each operator
that has a kernel runs twice: by the kernel, for its numbers, and as PyTorch does, for autograd's
history. What the next operator gets has the numbers of the one and the history of the other. Each
activation then lies on the side of each kink on which it lay for the kernels.

What is proven so, where the ordinary comparison (`proofs/proof`) has left the gradients apart:

- each kernel puts out what its operator does, within the rounding errors of a single operator;
- the gradients of sum_n w_n L_n, over all samples of the batch, are those of the kernels, ten times
  as near as between ways that part at kinks; and so are the norms of one sample.

The backward pass is PyTorch's own, through the operators as the model wrote them: it knows neither
kernels nor layouts. It is evaluated at activations each of which is right but for one rounding of
the operator before it, as those of any pass in float32 are; so a wrong kernel shows here as it does
there. Type, shapes, number of samples, methods and layouts are those of the batch itself, and what
is compared are the numbers that the caller gets: no second run of the kernels stands for the first.
It is not asked again whether samples depend on each other: powers of two and passes without company
have answered that for the whole batch before gradients are compared (`GradientsDiffer`).

Called by `reducing`. Where it does not settle the matter, float64 may: it excuses gradients that
rounding has moved, and no kernel that is seen to be wrong here, for kernels of float32 may be
others than those of float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from upslope.errors import GradientNormError
from upslope.gradnorm.core.layouts.layout import SamplesNotSeparable
from upslope.gradnorm.core.model_io import Loss
from upslope.gradnorm.core.tensor_marks import MARKS, marks_of
from upslope.gradnorm.core.uses.reductions import Reduction
from upslope.gradnorm.proofs.backward import hand_out_gradients, one_hot
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.comparison import (
    AutogradGradients,
    GradientsDiffer,
    compare,
    compare_losses,
    random_numbers,
)
from upslope.gradnorm.proofs.kernel_results import KernelGradients, ProofFailed
from upslope.gradnorm.torch_faults import exact_batch_norm
from upslope.gradnorm.trace.meetings import Meetings
from upslope.gradnorm.trace.operator_facts import Operator

_ONE_OPERATOR = 1e-4
"""How far an operator's output may be from its kernel's, relative to the largest entry: sums of
thousands of products in float32, in two orders; Winograd's convolutions lose most."""

_ROUNDING, _FAULT = 0.1, 0.25
"""Shares of the tolerances of ways that part at kinks: up to which rounding alone may take two ways
apart, and from which it does not. Set by hand."""


class KernelDiffers(ProofFailed):
    """A kernel puts out something else than its operator, for the same inputs."""


def agree_at_same_activations(
    run: BatchRun,
    forward: Any,
    loss: Loss,
    kernel_gradients: KernelGradients,
    reduction: Reduction,
) -> bool | None:
    """Return whether the kernels' gradients are autograd's, of the same activations.

    None where that cannot be told: the model draws, does not run both ways, or its gradients lie
    between what rounding may move and what shows a fault.

    run: the batch. forward: a `Forward` that has not run, with `MeetingsBothWays`.
    loss: whose gradients. kernel_gradients: of the pass through kernels. reduction: what is asked.
    """
    # An operator that draws would draw twice, and all that follow other numbers than before.
    if run.is_random:
        return None
    outputs = run.outputs  # others look at them later
    try:
        forward.record()
        losses = forward.losses(loss)
        compare_losses(run, losses, kernel_gradients.losses)
        w, one = random_numbers(run.n, torch.arange(run.n))
        autograd = AutogradGradients(run.weights.parameters, reduction)
        if losses.requires_grad:
            for share, take in ((w, autograd.take), (one_hot(w, one), autograd.take_one)):
                hand_out_gradients([losses], [share.to(losses)], run.weights.parameters, take)
        return _verdict(run, kernel_gradients, w, one, autograd)
    except torch.OutOfMemoryError:
        raise
    except KernelDiffers:
        return False
    # Nothing is refused here: what does not run both ways is left to float64.
    except (SamplesNotSeparable, GradientNormError, RuntimeError):
        return None
    finally:
        run.outputs = outputs


def _verdict(
    run: BatchRun,
    kernel_gradients: KernelGradients,
    w: Tensor,
    one: int,
    autograd: AutogradGradients,
) -> bool | None:
    """Return whether gradients are the same; None if only nearly so. Arguments as of `compare`."""
    for share, verdict in ((_ROUNDING, True), (_FAULT, None)):
        try:
            compare(run, kernel_gradients, w, one, autograd, share=share)
        except GradientsDiffer:
            continue
        return verdict
    return False


class MeetingsBothWays(Meetings):
    """Runs an operator that takes weights by its kernel for numbers, and without for its history.

    Weights copied to samples must be seen as what they are to autograd, weights: `copies` is False.
    """

    def meet(
        self, operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], interceptor: Any
    ) -> Any:
        """See `Meetings`; the output has the kernel's numbers and autograd's history."""
        writes = operator.writes or (kwargs and kwargs.get("out") is not None)
        has_kernel = not writes and (operator.rule or operator.composition) is not None
        # Of Python code the operators that it calls come back here one by one.
        if operator.is_like_another or (operator.is_composed and not has_kernel):
            return super().meet(operator, args, kwargs, interceptor)
        self._tape.weights.drop_copies()  # beside the activations that autograd holds here
        numbers = super().meet(operator, args, kwargs, interceptor) if has_kernel else None
        with exact_batch_norm():
            history = operator.func(*args, **kwargs)
        # Without a kernel of its own an operator runs as it is, on copies of weights.
        return _join(history, numbers) if has_kernel else history


def _join(history: Any, numbers: Any) -> Any:
    """Return outputs of the numbers of a kernel and with autograd's history.

    Raises:
        KernelDiffers: they are not those of the same operator.
    """
    leaves, spec = tree_flatten(history)
    other_leaves, other_spec = tree_flatten(numbers)
    if spec != other_spec:
        raise KernelDiffers("a kernel puts out something else than its operator")
    return tree_unflatten(
        [
            _join_tensors(a, b) if isinstance(a, Tensor) else a
            for a, b in zip(leaves, other_leaves, strict=True)
        ],
        spec,
    )


def _join_tensors(history: Tensor, numbers: Tensor) -> Tensor:
    if history.shape != numbers.shape or history.dtype != numbers.dtype:
        raise KernelDiffers("a kernel puts out something else than its operator")
    marks = numbers.__dict__.get(MARKS)
    # What stands for a convolution that is normalised already has no numbers.
    if marks_of(numbers).placeholder_of is None:
        numbers = numbers.detach()
        if not _are_near(history.detach(), numbers):
            raise KernelDiffers("a kernel puts out other numbers than its operator")
        history = _with_history(numbers, history) if history.requires_grad else numbers
    if marks is not None:
        history.__dict__[MARKS] = marks
    return history


def _are_near(a: Tensor, b: Tensor) -> bool:
    """Whether the outputs of one operator, run in two ways, differ by rounding alone."""
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    if a.numel() == 0:
        return True
    apart, size = torch.linalg.vector_norm(a - b, torch.inf), torch.linalg.vector_norm(a, torch.inf)
    if bool(apart <= _ONE_OPERATOR * size):
        return True
    # Infinite entries, and such as are no number, must be the same.
    size = torch.where(torch.isfinite(a), a, 0).abs().max()
    near = (a - b).abs() <= _ONE_OPERATOR * size
    return bool((near | (a == b) | (a.isnan() & b.isnan())).all())


def _with_history(numbers: Tensor, history: Tensor) -> Tensor:
    tensor: Tensor = _OtherNumbers.apply(history, numbers)  # type: ignore[no-untyped-call]
    return tensor


class _OtherNumbers(torch.autograd.Function):
    """The numbers of one tensor, with the history of another."""

    @staticmethod
    def forward(ctx: Any, history: Tensor, numbers: Tensor) -> Tensor:  # noqa: ARG004
        return numbers.data  # no view of it: a model may write to what an operator puts out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradient, None
