"""Entropy and cross-entropy whose gradients keep their digits where a posterior is sure of a class.

Where the other classes have 1e-8 together, 1 - p_s and log p_s of the sure class s round to 0 in
float32, and with them that class's part of every gradient, which is as large as all the others'
together. So neither is formed. With a_k = z_k - max z, and the rest r of all classes but the first,

    log p_k = a_k - log(1 + r),           r = sum_{k != first} exp a_k
    H       = log(1 + r) - m,             m = sum_k p_k a_k
    dH/dz_k = p_k (m - a_k)

in which no digits cancel, near uniform posteriors neither. Gradients of log p_k sum to zero over
the classes, so that a sure class has minus the sum of the others'.

Whoever watches operators meets each function as one, as those of `torch.nn.functional`; in the
transforms of `torch.func` alone it is the operators of torch that it is made of.

Of logits, below whatever takes gradients of them; called by `gradnorm` and `influence`. The losses
of tasks train networks too, by PyTorch's own cross-entropy, which costs less; what takes a score
from their gradients calls them within `keeping_digits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function, has_torch_function_unary


def entropy_of(logits: Tensor) -> Tensor:
    """Return the entropy of the posterior in nats, (n, ...). logits: (n, classes, ...)."""
    if _is_transformed(logits):
        log_p = _log_posterior_at(logits)
        return -(log_p.exp() * log_p.clamp(min=_LOWEST)).sum(dim=1)
    if has_torch_function_unary(logits):
        return handle_torch_function(entropy_of, (logits,), logits)
    entropy: Tensor = _Entropy.apply(logits)  # type: ignore[no-untyped-call]
    return entropy


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return what `F.cross_entropy` of torch does with `reduction="none"`, (n, ...).

    logits: (n, classes, ...); those in half precision are taken in float32. targets: (n, ...)
    classes, or a probability for every logit.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    in_transform = _is_transformed(logits)
    log_posterior = _log_posterior_at if in_transform else _LogPosterior.apply
    if targets.is_floating_point() and targets.shape == logits.shape:
        return -(targets * log_posterior(logits)).sum(dim=1)
    if in_transform or targets.is_floating_point():  # classes in such a type PyTorch refuses
        return F.nll_loss(log_posterior(logits), targets, reduction="none")
    if has_torch_function((logits, targets)):
        arguments = (logits, targets)
        return handle_torch_function(cross_entropy, arguments, *arguments)
    losses: Tensor = _ClassLoss.apply(logits, targets.long())  # type: ignore[no-untyped-call]
    return losses


_keeps_digits: ContextVar[bool] = ContextVar("upslope_keeps_digits", default=False)


@contextmanager
def keeping_digits() -> Iterator[None]:
    """Have `task_cross_entropy` take the closed form while the block runs."""
    token = _keeps_digits.set(True)
    try:
        yield
    finally:
        _keeps_digits.reset(token)


def task_cross_entropy(
    logits: Tensor, targets: Tensor, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Tensor:
    """Return what `F.cross_entropy` does with `reduction="none"` and these options, (n, ...).

    logits: (n, classes, ...). targets: (n, ...) classes. In closed form within `keeping_digits`.
    """
    if not _keeps_digits.get():
        return F.cross_entropy(
            logits,
            targets,
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=label_smoothing,
        )
    is_ignored = targets == ignore_index
    losses = cross_entropy(logits, targets.masked_fill(is_ignored, 0))
    if label_smoothing:
        evenly = torch.full_like(logits, 1 / logits.shape[1])
        losses = torch.lerp(losses, cross_entropy(logits, evenly), label_smoothing)
    return losses.masked_fill(is_ignored, 0.0)


def _is_transformed(logits: Tensor) -> bool:
    """Whether logits are in a transform of `torch.func`, or carry a derivative forward.

    Operators of torch take part in all of them; a custom function that is differentiated forward
    twice has zeros for its derivative, without a word.
    """
    if _is_transforming():
        return True
    return forward_ad.unpack_dual(logits).tangent is not None  # type: ignore[no-untyped-call]


_is_transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active


class _Entropy(torch.autograd.Function):
    """From logits to the entropy."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        a, p, rest = _posterior_of(z)
        a.clamp_(min=_LOWEST)
        mean = (p * a).sum(dim=1, keepdim=True)
        slope = a.neg_().add_(mean).mul_(p)
        ctx.save_for_backward(z, slope)
        return (rest.log1p() - mean).squeeze(1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        z, slope = ctx.saved_tensors
        # What is differentiated once more must be made of the logits.
        slope = _slope_at(z) if torch.is_grad_enabled() else slope
        return g.unsqueeze(1) * slope


class _ClassLoss(torch.autograd.Function):
    """From logits and classes to the cross-entropy, whose gradient is p less one at the class."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor) -> Tensor:
        logit_there = -F.nll_loss(z, labels, reduction="none")  # which names a label of no class
        is_left_out = labels == _LEFT_OUT
        at = labels.masked_fill(is_left_out, 0).unsqueeze(1)
        others = z.softmax(dim=1)
        log_first = others.amax(dim=1, keepdim=True).log_()
        rest = others.scatter_(1, at, 0).sum(dim=1, keepdim=True)
        gradient = others.scatter_(1, at, -rest)
        below_first = z.amax(dim=1).sub_(logit_there).unsqueeze(1)
        losses = torch.where(rest < 0.5, -rest.neg().log1p_(), below_first - log_first)
        ctx.save_for_backward(z, at, is_left_out, gradient)
        return losses.squeeze(1).masked_fill_(is_left_out, 0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        z, at, is_left_out, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            others = _log_posterior_at(z).exp().scatter(1, at, 0)
            gradient = others.scatter(1, at, -others.sum(dim=1, keepdim=True))
        return g.masked_fill(is_left_out, 0).unsqueeze(1) * gradient, None


class _LogPosterior(torch.autograd.Function):
    """From logits to the logarithm of the posterior."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        a, p, rest = _posterior_of(z)
        ctx.save_for_backward(z, p)
        return a.sub_(rest.log1p())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        z, p = ctx.saved_tensors
        p = _log_posterior_at(z).exp() if torch.is_grad_enabled() else p
        gradient = g - p * g.sum(dim=1, keepdim=True)
        is_sure = p > 0.5  # one class at most; where there is none, no digits cancel in 1 - p
        others = torch.where(is_sure, 0, gradient).sum(dim=1, keepdim=True)
        return torch.where(is_sure, -others, gradient)


_LEFT_OUT = -100
"""The label that PyTorch's cross-entropy leaves out."""

_LOWEST = -1e4
"""In place of lower a_k, of which classes that are masked with -inf have the lowest: p_k is 0."""


def _posterior_of(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a and p, (n, classes, ...), and r, (n, 1, ...). z: logits (n, classes, ...)."""
    a = z - z.amax(dim=1, keepdim=True)
    powers, is_below = a.exp(), a < 0
    rest = torch.where(is_below, powers, 0).sum(dim=1, keepdim=True)
    ties = z.shape[1] - is_below.sum(dim=1, keepdim=True)
    rest += ties - 1  # of classes that tie for the first, all but one are others
    return a, powers.div_(1 + rest), rest


def _log_posterior_at(z: Tensor) -> Tensor:
    """Return log p by operators that every transform knows. z: logits (n, classes, ...).

    Differentiated as often as is asked, it keeps the digits of a sure class, which a softmax does
    not: its derivative of p_s is p_s times what remains of 1 - p_s.
    """
    a, log_total = _below_first(z)
    return a - log_total


def _slope_at(z: Tensor) -> Tensor:
    """Return dH/dz by operators that autograd differentiates. z: logits (n, classes, ...)."""
    a, log_total = _below_first(z)
    p, a = (a - log_total).exp(), a.clamp(min=_LOWEST)
    return p * ((p * a).sum(dim=1, keepdim=True) - a)


def _below_first(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return a, (n, classes, ...), and log(1 + r), (n, 1, ...). z: logits (n, classes, ...)."""
    first = z.argmax(dim=1, keepdim=True)
    a = z - z.gather(1, first)
    rest = a.scatter(1, first, -torch.inf).exp().sum(dim=1, keepdim=True)
    # Of the first class a_k is 0 whatever the logits are, and has no derivative.
    return a.scatter(1, first, 0.0), rest.log1p()
