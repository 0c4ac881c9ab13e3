"""Whether a sample's numbers may depend on other samples at all, whatever this batch shows.

A model that scales its activations by the largest of the batch, once that exceeds a bound, mixes no
samples as long as none does; a loss of at most ten times the batch's mean mixes none until one is
larger. The gradients of such a batch say nothing of the next. So numbers that no model should see
are put in the place of some samples: NaN, which maxima, sums and products carry on, and values far
too large or too small, which conditions feel. Samples whose numbers move look at others. Every
batch of such a model or loss is proven (`proof`), for what the first one shows does not hold for
the next.

Called by `trace/recording` with the first batch of each program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from upslope.gradnorm.core.model_io import (
    Batch,
    Loss,
    clone_rows,
    copy_objects,
    opens,
    tensors_in,
)
from upslope.gradnorm.core.tensor_marks import mark, marks_of
from upslope.gradnorm.core.torch_functions import tensors_among
from upslope.gradnorm.proofs.batch_run import BatchRun, Watch
from upslope.gradnorm.proofs.draws import ConstantDraws
from upslope.gradnorm.proofs.mixing import (
    crop,
    is_shorter,
    refuse_losses_in_company,
    shared_leaves,
    shared_tensors,
)
from upslope.gradnorm.proofs.statistics import StatisticsWatch

_ROWS = 8
"""Samples that are run: enough for sums and extremes over the batch, too few to fill a capacity."""
_LARGE = 1e4
"""What makes values far too large, or too small, as a factor; half precision holds it."""
_TIMES, _BESIDES = 10, 2_000
"""How many operators a pass of such values may run: so many times those of the batch, and so many
besides. A loop that ends once numbers have come close never ends with NaN."""
_NEAR = 1e-4
"""How far a number may move, relative to the largest: by the order of a sum, in the same kernel."""

Change = Callable[[Tensor], Tensor]


def model_may_mix_samples(run: BatchRun) -> bool:
    """Return whether the outputs of a sample may depend on the other samples of its batch.

    run: the batch, whose outputs are there. A model that cannot run on such numbers is held to
    look around.
    Outputs that have no samples in dimension 0 say nothing; see `losses_may_mix_samples`.
    """
    if run.n < 2 or not _has_rows_everywhere(run):
        return False
    n, batch = run.n, run.batch
    # A proof of the first batch must not cost as much as the batch.
    if n > _ROWS:
        n, batch = _ROWS, batch.rows(torch.linspace(0, n - 1, _ROWS).long())
    watch, count = StatisticsWatch(n), _OperatorCount()
    try:
        with count:
            outputs = tensors_in(_run(run, batch, None, watch))
    except Exception:  # a model for another size of batch, say
        return True
    if _meets_statistics(run, batch, watch, outputs):
        return True
    return _moves(n, outputs, count, lambda change: tensors_in(_run(run, batch, change)))


def _meets_statistics(
    run: BatchRun, batch: Batch, watch: StatisticsWatch, outputs: Sequence[Tensor]
) -> bool:
    """Whether a statistic of several samples met the numbers of one in the model.

    watch, outputs: of a pass of the batch. A second one, of another number of samples, tells which
    dimensions count samples, if that matters.
    """
    if watch.depends_on_dimensions and batch.n > 1:
        # Never of one sample: models that mix often have another way for it.
        rows = torch.arange(batch.n - 1) if batch.n > 2 else torch.tensor([0, 1, 0])
        other = StatisticsWatch(len(rows), watch)
        with contextlib.suppress(Exception):  # a model that takes no other: the first will do
            of_other = tensors_in(_run(run, batch.rows(rows), None, other))
            if other.operators == watch.operators:
                return other.finish(of_other)
            return watch.finish(outputs) or other.finish(of_other)
    return watch.finish(outputs)


def losses_may_mix_samples(run: BatchRun, loss: Loss) -> bool:
    """Return whether the loss of a sample may depend on the outputs of others.

    Where outputs have no samples in dimension 0, the model is run with the loss.
    """
    if run.n < 2:
        return False
    if opens(run.outputs) and _has_rows_everywhere(run):
        may_mix_samples = loss_may_mix_samples(loss, run.outputs, run.n, shared_leaves(run))
        if may_mix_samples is not None:
            return may_mix_samples

    def losses(change: Change | None) -> list[Tensor]:
        try:
            return [loss(_run(run, run.batch, change))]
        except RuntimeError:  # a loss that differentiates what the model puts out
            return [loss(_run(run, run.batch, change, with_graph=True))]

    count = _OperatorCount()
    try:
        with count:
            before = losses(None)
    except Exception:  # labels that have run out
        return True
    if not _moves(run.n, before, count, losses):
        return False
    refuse_losses_in_company(run, loss)
    return True


def _has_rows_everywhere(run: BatchRun) -> bool:
    """Whether dimension 0 of every output counts the samples."""
    has_rows = all(x.shape[:1] == (run.n,) for x in tensors_in(run.outputs))
    return has_rows and not shared_tensors(run)


def loss_may_mix_samples(
    loss: Loss, outputs: Any, n: int, shared_places: Collection[int] = ()
) -> bool | None:
    """Return whether the loss of a sample may depend on the outputs of others; None if not known.

    That is where it fails, and where it decides in Python what it does (`company`).

    outputs: what a model puts out for n samples, its tensors (n, ...). shared_places: the leaves
    that are as long as the batch by chance.
    """
    leaves, spec = tree_flatten(outputs)
    watch, count = StatisticsWatch(n), _OperatorCount()
    changed_leaves = [_change_leaf(leaf, n, None) for leaf in leaves]
    for place, leaf in enumerate(changed_leaves):
        if place not in shared_places:
            watch.mark(leaf)
    try:
        with count, watch:
            before = loss(copy_objects(tree_unflatten(changed_leaves, spec)))
    except Exception:  # labels that have run out, or it differentiates outputs by each other
        return None
    # Operators tell more than numbers: a statistic may not have moved just now.
    if watch.finish([before]):
        return True
    if watch.leaves:
        return None

    def losses(change: Change) -> list[Tensor]:
        leaves_given = [
            _change_leaf(leaf, n, None if place in shared_places else change)
            for place, leaf in enumerate(leaves)
        ]
        return [loss(copy_objects(tree_unflatten(leaves_given, spec)))]

    return _moves(n, [before], count, losses)


def _moves(
    n: int,
    before: Sequence[Tensor],
    count: _OperatorCount,
    numbers: Callable[[Change], Sequence[Tensor]],
) -> bool:
    """Whether the numbers of some of n samples move when those of every second one are spoilt.

    before: the numbers when none is. count: of the operators that made these. numbers: makes them
    of spoilt samples. Numbers for which far more operators run are held to move.
    """
    places = torch.arange(n)
    even = places % 2 == 0
    attempts = 0
    for spoil in (_to_nan, _to_extremes):

        def change(tensor: Tensor, spoil: Callable[..., Tensor] = spoil) -> Tensor:
            index = places.to(tensor.device).repeat_interleave(len(tensor) // n)
            index = index.view(-1, *(1,) * (tensor.dim() - 1))
            return torch.where(index % 2 == 0, tensor, spoil(tensor, index))

        try:
            with _without_validation(), _OperatorCount(_TIMES * count.operators + _BESIDES):
                after = numbers(change)
        except _TooManyOperatorsError:  # a loop whose end the spoilt samples put off
            return True
        except Exception:  # a model may refuse numbers that are none
            continue
        attempts += 1
        if len(after) != len(before) or any(
            _differ(a, b, n, even) for a, b in zip(before, after, strict=True)
        ):
            return True
    # A model that refuses both kinds of numbers cannot be judged by them:
    return attempts == 0


@contextlib.contextmanager
def _without_validation() -> Iterator[None]:
    """Let distributions take NaN as their parameters, which they refuse by default."""
    distribution = torch.distributions.Distribution
    validates = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(validates)


def _to_nan(tensor: Tensor, places: Tensor) -> Tensor:  # noqa: ARG001
    return torch.full_like(tensor, torch.nan)


def _to_extremes(tensor: Tensor, places: Tensor) -> Tensor:
    """Half of them far too large, fewer than would move a median, and half far too small."""
    return torch.where(places % 4 == 1, (tensor + 1) * _LARGE, tensor / _LARGE)


def _differ(before: Tensor, after: Tensor, n: int, rows: Tensor) -> bool:
    if before.dim() and len(before) == n and is_shorter(before, after):
        after = crop(after, before)  # padded to the longest sample
    elif after.dim() and len(after) == n and is_shorter(after, before):
        before = crop(before, after)
    if before.shape != after.shape:
        return True
    if before.shape[:1] != (n,) or before.numel() == 0:
        return False
    a, b = (x.detach()[rows.to(x.device)] for x in (before, after))
    if not (a.is_floating_point() or a.is_complex()):
        return not torch.equal(a, b)
    size = torch.where(torch.isfinite(a), a.abs(), 0).max()
    same = ((a - b).abs() <= _NEAR * size) | (a == b) | (a.isnan() & b.isnan())
    return not bool(same.all())


@contextlib.contextmanager
def _constant_draws(run: BatchRun) -> Iterator[None]:
    """Enter passes in which every draw gives the same number in every place, if any is made."""
    if not run.is_random:
        yield
        return
    with run.other_draws(), ConstantDraws():
        yield


def _run(
    run: BatchRun,
    batch: Batch,
    change: Change | None,
    watch: Watch | None = None,
    *,
    with_graph: bool = False,
) -> Any:
    """Run the model on a batch of which the floating numbers of some samples are changed.

    Random numbers are the same in every place, for what is drawn may depend on what is changed.
    """
    mode: Watch | None = watch if change is None else _SpoilingIntegers(batch.n, change)
    with _constant_draws(run):
        if with_graph:
            return run.run_plain(batch, change=change, watch=mode)
        try:
            with torch.no_grad():  # a graph would take as much memory as the pass that counts
                return run.run_plain(batch, change=change, watch=mode)
        except RuntimeError:  # a model that differentiates itself
            return run.run_plain(batch, change=change, watch=mode)


def _change_leaf(leaf: Any, n: int, change: Change | None) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    rows_of_leaf = clone_rows(leaf)
    floating = leaf.is_floating_point() or leaf.is_complex()
    if change is not None and floating and leaf.shape[:1] == (n,):
        rows_of_leaf = change(rows_of_leaf)
    # A copy, no leaf of the graph: a loss may write into what it is given.
    return rows_of_leaf.requires_grad_().clone() if leaf.requires_grad else rows_of_leaf


class _TooManyOperatorsError(Exception):
    """A pass has run more operators than it may."""


class _OperatorCount(TorchFunctionMode):
    """Counts the operators of a pass, and ends it where there are more than it may run.

    most: how many it may; any number if None.
    """

    def __init__(self, most: int | None = None):
        super().__init__()
        self.operators, self._most = 0, most

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator, and count it."""
        self.operators += 1
        if self._most is not None and self.operators > self._most:
            self._most = None  # what ends with the pass (`no_grad`) runs operators too
            raise _TooManyOperatorsError
        return func(*args, **(kwargs or {}))


class _SpoilingIntegers(TorchFunctionMode):
    """Changes what is made of the batch's whole numbers, where they become floating ones.

    Words of a text are no numbers that could be spoilt; the vectors that stand for them are.
    """

    def __init__(self, n: int, change: Change):
        super().__init__()
        self._change, self._n, self._session = change, n, object()
        self._owners = StatisticsWatch(n)
        """Follows in which dimension the samples of whole numbers are."""

    def mark(self, tensor: Tensor) -> Tensor:
        """Take note of one of the batch's tensors, if it holds whole numbers."""
        if not _is_floating(tensor):
            self._owners.mark(tensor)
            mark(tensor).whole_numbers_of = self._session
        return tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator, and change its rows if it makes floating numbers of whole ones."""
        out = func(*args, **(kwargs or {}))
        if not any(map(self._is_whole, tensors_among((args, kwargs)))):
            return out
        self._owners.follow(func, args, kwargs or {}, out)
        output = args[0] if out is None and args else out  # writes of entries return nothing
        if not isinstance(output, Tensor) or output.numel() == 0 or output.dim() == 0:
            return out
        if _is_floating(output):
            return out if output is not out else self._change_samples(out)
        if self._dimension(output) is not None:
            mark(output).whole_numbers_of = self._session
        return out

    def _change_samples(self, tensor: Tensor) -> Tensor:
        """Return a tensor in which the samples are changed, wherever they are."""
        dim = self._dimension(tensor)
        return tensor if dim is None else self._change(tensor.movedim(dim, 0)).movedim(0, dim)

    def _dimension(self, tensor: Tensor) -> int | None:
        """The dimension of the samples, if it is known; else the first, if it may be theirs."""
        dim = self._owners.dimension_of_samples(tensor)
        return 0 if dim is None and len(tensor) % self._n == 0 else dim

    def _is_whole(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the batch's whole numbers, or made of them."""
        return marks_of(tensor).whole_numbers_of is self._session


def _is_floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
