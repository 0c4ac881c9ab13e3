"""The loss cut off from the network: its gradient at the outputs, and a loss that has it.

Where the loss of a sample depends on that sample's outputs alone, and on no parameter, the gradient
at the outputs says all that the network needs to know of the loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from upslope.errors import GradientNormError
from upslope.gradnorm.core.layouts.separation import differ, scales
from upslope.gradnorm.core.model_io import Loss, check_losses, copy_objects, differentiable
from upslope.gradnorm.core.program.argument_outlines import outline_of
from upslope.gradnorm.core.program.operator_names import label_of
from upslope.gradnorm.proofs.statistics import StatisticsWatch

_COMPANY = (1.0, 3.0, -3.0, None)
"""What the outputs of other samples are multiplied by, to see whether a loss feels them: a
threshold over the batch moves with some of these. None: what makes the largest of them `_LARGER`
times the largest of all, so that the company outgrows any outlier."""

_LARGER = 100.0


def gradients_at_outputs(
    outputs: Any,
    parameters: Sequence[Tensor],
    n: int,
    loss: Loss,
    *,
    is_known: Callable[[Hashable], bool] = lambda _: False,
    shared_places: Collection[int] = (),
) -> list[Tensor] | None:
    """Return the gradients of the losses at the model's outputs, if they say all there is to say.

    shared_places: the leaves of the outputs that are as long as the batch by chance
        (`shared_leaves`).
    is_known: whether it is known of a loss that runs such operators, which are given, that losses
        do not change with other samples' outputs by ways without gradients; else it is seen here.

    None where the loss has parameters of its own, where it differentiates outputs by each other
    (gradient penalties), or where an output has no samples in dimension 0.

    Raises:
        GradientNormError: a sample's loss depends on the outputs of others.
    """
    leaves, spec = tree_flatten(outputs)
    cut = [x.detach().requires_grad_() if differentiable(x) else x for x in leaves]
    ends = [x for x in cut if differentiable(x)]
    if not ends or any(x.shape[:1] != (n,) for x in ends):
        return None
    if any(differentiable(x) and place in shared_places for place, x in enumerate(leaves)):
        return None
    watch = _LossWatch()
    losses = _losses_of_copies(loss, tree_unflatten(cut, spec), watch)
    if losses is None:
        return None
    check_losses(losses, n)
    if not losses.requires_grad:
        return [torch.zeros_like(x) for x in ends]
    u = scales(n, losses)
    once, gradients_scaled = (
        _pull_back(losses, share, [*ends, *parameters]) for share in (torch.ones_like(losses), u)
    )
    # A learned temperature or class weight, whose gradient is not at the outputs.
    has_parameters = any(g is not None for g in once[len(ends) :])
    pairs = zip(ends, once, gradients_scaled, strict=False)
    gradients = None if has_parameters else [_own_gradient(*pair, u) for pair in pairs]
    # Without gradients a loss may still count, sort or compare the other samples.
    if n > 1 and not is_known(tuple(watch.operators)):
        company = Outputs(leaves, spec, n, shared_places)
        _refuse_losses_by_company(loss, company, losses.detach())
    return gradients


def _losses_of_copies(loss: Loss, outputs: Any, watch: _LossWatch) -> Tensor | None:
    """Return the losses of copies of the outputs, for a loss may write into what it is given.

    None where the loss differentiates. watch: sees what runs.
    """
    copies = tree_map_only(Tensor, lambda x: x.clone() if differentiable(x) else x, outputs)
    watch.number(copies)
    try:
        with watch:
            losses = loss(copy_objects(copies))
    except RuntimeError:  # one that differentiates at the outputs fails on the copies of them
        if not watch.has_differentiated:
            raise
    return None if watch.has_differentiated else losses


def _own_gradient(end: Tensor, g: Tensor | None, g_scaled: Tensor | None, u: Tensor) -> Tensor:
    """Return the gradient of the losses at an output, if each row of it is of that sample's loss.

    end: the output. g: the gradient of the losses' sum. g_scaled: of the losses times u, (n,).

    Raises:
        GradientNormError: a sample's loss depends on the outputs of others.
    """
    if g is None or g_scaled is None:
        return torch.zeros_like(end)
    has_mixed = differ(g_scaled, g, u)
    if bool(has_mixed.any()):
        raise loss_mixes(has_mixed)
    return g


def _pull_back(losses: Tensor, share: Tensor, ends: list[Tensor]) -> tuple[Tensor | None, ...]:
    # A copy, for a custom function may write into the gradient that it is given.
    copy = share.clone()
    return torch.autograd.grad(losses, ends, copy, retain_graph=True, allow_unused=True)


class _LossWatch(TorchFunctionMode):
    """Sees what a loss runs, and whether it differentiates.

    Outputs that are cut off from the model do not depend on each other: a loss that differentiates
    one of them by another finds nothing.
    """

    has_differentiated = False

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[int] = []
        """Hashes of the operators, with their outlines (`program`). The same function may run
        others, by an attribute of its object or a global name."""
        self._numbers: dict[int, tuple[int, int]] = {}
        """`id` of a tensor that was made of outputs -> the operator that made it, and its place."""

    def number(self, products: Any) -> None:
        """Give numbers to the tensors among outputs, or among what an operator made of them."""
        for place, tensor in enumerate(_tensors_among(products)):
            self._numbers[id(tensor)] = len(self.operators), place

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator, and take note of it."""
        kwargs = kwargs or {}
        values = (*args, *kwargs.values())
        numbers = tuple(self._numbers.get(id(x)) for x in _tensors_among(values))
        outline = (label_of(func), *map(outline_of, values), numbers, *kwargs)
        self.operators.append(hash(outline))
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.has_differentiated = True
        out = func(*args, **kwargs)
        if any(number is not None for number in numbers):
            self.number(out)
        else:
            for tensor in _tensors_among(out):  # it may have the `id` of one that is gone
                self._numbers.pop(id(tensor), None)
        return out


def _tensors_among(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def loss_mixes(samples: Tensor) -> GradientNormError:
    """The error for a loss that looks at other samples. samples: (n,) bool."""
    which = samples.nonzero().flatten()[:5].tolist()
    return GradientNormError(
        "Expected a loss in which each sample's number depends on that sample's outputs alone but "
        f"the outputs of samples {which} enter the losses of others: no sample has a loss "
        "gradient of its own. Contrastive and batch-normalised losses, and weights made of the "
        "batch, are of this kind: leave the other samples out of the loss."
    )


@dataclass(frozen=True)
class Outputs:
    """What a model put out for n samples, flattened.

    leaves, spec: as of `tree_flatten`. shared: the leaves that are as long as the batch by chance.
    """

    leaves: Sequence[Any]
    spec: Any
    n: int
    shared: Collection[int] = ()

    def has_samples(self, place: int) -> bool:
        """Whether a leaf is a tensor with one row per sample."""
        leaf = self.leaves[place]
        rows = isinstance(leaf, Tensor) and leaf.shape[:1] == (self.n,)
        return rows and place not in self.shared

    def change(self, values: Sequence[Any], change: Callable[[Tensor], Tensor]) -> list[Any]:
        """Return the values of the leaves, with those that have rows of samples changed."""
        return [change(x) if self.has_samples(i) else x for i, x in enumerate(values)]

    def losses(
        self, loss: Loss, values: Sequence[Any], watch: StatisticsWatch | None = None
    ) -> Tensor:
        """Return the losses of other values of the leaves. watch: sees the operators that run."""
        leaves_given = [
            value.clone().requires_grad_() if differentiable(leaf) else value
            for value, leaf in zip(values, self.leaves, strict=True)
        ]
        if watch is None:
            return loss(copy_objects(tree_unflatten(leaves_given, self.spec))).detach()
        with watch:
            marked_outputs = tree_unflatten(self.change(leaves_given, watch.mark), self.spec)
            losses = loss(copy_objects(marked_outputs))
        watch.finish([losses])
        return losses.detach()


@torch.no_grad()
def _refuse_losses_by_company(loss: Loss, outputs: Outputs, losses: Tensor) -> None:
    """Refuse losses that change when the outputs of other samples do, by ways without gradients.

    Every second sample keeps its outputs, and the others get multiples of a neighbour's; and in
    reverse.

    Raises:
        GradientNormError: some loss has changed.
    """
    n = outputs.n
    detached_leaves = [x.detach() if isinstance(x, Tensor) else x for x in outputs.leaves]
    watch = StatisticsWatch(n)
    try:
        again: Tensor | None = outputs.losses(loss, detached_leaves, watch)
    except Exception:  # labels of an iterator, say, have run out
        again = None
    if again is None or not torch.equal(again, losses):
        raise GradientNormError(
            "Expected a loss that gives the same numbers for the same outputs but a second call "
            "gives others, or fails: it draws random numbers, takes its labels from an iterator or "
            "counts its calls. Fix what it depends on before the call."
        )
    _refuse_losses_by_count(loss, outputs, detached_leaves, losses)
    for stay, change in companies(n):
        has_changed = losses_change(
            outputs.losses(loss, outputs.change(detached_leaves, change)), losses
        )
        has_changed &= stay.to(losses.device)
        if bool(has_changed.any()):
            raise loss_mixes(has_changed)
    if watch.operator is not None:
        _refuse_losses_by_statistics(loss, outputs, detached_leaves, losses)


def losses_change(other: Tensor, losses: Tensor) -> Tensor:
    """Return which losses are others than before, (n,) bool, but for rounding."""
    return (other - losses).abs() > _near(losses) * (losses.abs() + losses.abs().mean())


def _refuse_losses_by_statistics(
    loss: Loss, outputs: Outputs, values: Sequence[Any], losses: Tensor
) -> None:
    """Refuse losses that change when statistics of the batch are made of one sample alone.

    What holds of all losses, or of half of them, shows in no other company; and a loss that holds
    labels cannot be called for a single sample.

    Raises:
        GradientNormError: some loss has changed.
    """
    has_changed = torch.zeros(outputs.n, dtype=torch.bool)
    for sample in range(outputs.n):
        watch = StatisticsWatch(outputs.n, sample_alone=sample)
        other = outputs.losses(loss, values, watch)
        has_changed[sample] = bool(losses_change(other, losses)[sample])
    if bool(has_changed.any()):
        raise loss_mixes(has_changed)


def companies(n: int) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Yield which of n samples stay, (n,) bool, and what puts other company beside them."""
    places = torch.arange(n)
    for parity in (0, 1):
        stay = places % 2 == parity
        neighbour = torch.where(stay, places, (places + 1) % n)
        for factor in _COMPANY:
            yield (
                stay,
                functools.partial(_with_company, stay=stay, neighbour=neighbour, factor=factor),
            )


def _with_company(outputs: Tensor, stay: Tensor, neighbour: Tensor, factor: float | None) -> Tensor:
    """Outputs of which some stay, and the others are a multiple of their neighbours'."""
    if not outputs.is_floating_point() or outputs.numel() == 0:
        return outputs
    others = outputs[neighbour.to(outputs.device)]
    # Infinite outputs, of masked classes, have no multiple.
    finite = torch.isfinite(others)
    move = ~stay.to(outputs.device).view(-1, *(1,) * (others.dim() - 1)) & finite
    if factor is None:
        sizes = torch.where(finite, others.abs(), 0)
        largest = torch.where(move, sizes, 0).max()
        factor = float(_LARGER * sizes.max() / largest) if largest > 0 else 1.0
    return torch.where(move, others * factor, others)


def _refuse_losses_by_count(
    loss: Loss, outputs: Outputs, values: Sequence[Any], losses: Tensor
) -> None:
    """Refuse losses that change when the batch has fewer samples: divided by their number, say.

    A loss that holds labels of the whole batch does not take fewer, and is not asked.

    Raises:
        GradientNormError: some loss has changed.
    """
    for count in {(outputs.n + 1) // 2, 1}:
        fewer = outputs.change(values, lambda x, count=count: x[:count])  # type: ignore[misc]
        try:
            fewer_losses = outputs.losses(loss, fewer)
        except Exception:  # labels of the whole batch do not fit
            continue
        # A loss may pad to a fixed size: then its numbers say nothing here.
        if fewer_losses.shape != (count,):
            continue
        has_changed = (fewer_losses - losses[:count]).abs() > _near(losses) * losses[:count].abs()
        if bool(has_changed.any()):
            raise loss_mixes(has_changed)


def _near(losses: Tensor) -> float:
    """How far the loss of a sample may move, relative to its size, before it has changed."""
    return 1e-4 if losses.dtype in (torch.float32, torch.float64) else 3e-2


def with_gradients(gradients: Sequence[Tensor]) -> Loss:
    """Return a loss of value zero that has these gradients at the outputs, (n, ...) each."""

    def loss(outputs: Any) -> Tensor:
        ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
        losses: Tensor = _ReplaceGradients.apply(gradients, *ends)  # type: ignore[no-untyped-call]
        return losses

    return loss


class _ReplaceGradients(torch.autograd.Function):
    """Knows its gradient and nothing else. Not a product: outputs may be infinite."""

    @staticmethod
    def forward(ctx: Any, gradients: Sequence[Tensor], *ends: Tensor) -> Tensor:
        ctx.gradients = gradients
        return ends[0].new_zeros(len(ends[0]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, share: Tensor) -> tuple[Any, ...]:
        shares = (g * share.to(g).view(-1, *(1,) * (g.dim() - 1)) for g in ctx.gradients)
        return (None, *shares)
