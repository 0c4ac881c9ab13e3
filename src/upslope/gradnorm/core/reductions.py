"""Reductions of per-sample gradients, taken while a backward pass shows them use by use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import CACHE, chunks
from upslope.gradnorm.core.joint_uses import JointUses, Use
from upslope.gradnorm.core.layout import (
    IndexedLayout,
    Layout,
    Samples,
    SamplesNotSeparable,
)
from upslope.gradnorm.core.layout_probe import HasLayout, is_ambiguous_in_front
from upslope.gradnorm.core.leaf_gradients import gradients_of_leaves
from upslope.gradnorm.core.per_sample_gradients import OfOneSample, PerSampleGradient
from upslope.gradnorm.core.sums_of_squares import SumOfSquares, squared_norms
from upslope.gradnorm.core.tape import Kernel, Tape
from upslope.gradnorm.core.tied_gradients import norms_of_sum
from upslope.gradnorm.core.weights import Weights

Uses = Sequence[tuple[Tensor, PerSampleGradient]]
"""The uses of one parameter: through which weight, and the gradient of that weight."""


def norms_of_uses(weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
    """(n,): squared norms of the sum of all uses of the parameter `name`.

    Uses of one form are summed in that form; disjoint slices of the parameter add their squares;
    anything else is formed densely, a few samples at a time.
    """
    # Most parameters are used once, as they are.
    first, part = uses[0]
    if len(uses) == 1 and weights.isometric(first):
        return part.squared_norms(scratch)
    tensors = [weight for weight, _ in uses]
    parts = [part for _, part in uses]
    if weights.isometric(first) and all(t is first for t in tensors):
        norms = norms_of_sum(parts, scratch)
        if norms is not None:
            return norms
    # Thirds of a packed projection, say: their squares add, and the parameter's gradient is not
    # formed.
    if all(weights.isometric(t) for t in tensors) and _disjoint(weights.parameters[name], tensors):
        return torch.stack([part.squared_norms(scratch) for part in parts]).sum(dim=0)
    # The same entry used twice, or a function of it: only the formed gradients can be added.
    return torch.cat([squared_norms(rows) for _, rows in dense_sum(weights, name, uses, scratch)])


def dense_sum(
    weights: Weights, name: str, uses: Uses, scratch: int
) -> Iterator[tuple[slice, Tensor]]:
    """(samples, their gradients (m, *parameter.shape)), a few samples at a time."""
    for rows, totals in dense_sums(weights, {name: uses}, scratch):
        yield rows, totals[name]


def dense_sums(
    weights: Weights, uses_of: Mapping[str, Uses], scratch: int
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield (samples, the gradients (m, *shape) of each parameter), a few samples at a time.

    Uses of one weight are summed first, and all that is made of parameters is differentiated in
    one backward pass: a step of a recurrence, or of a network, costs no pass of its own.

    uses_of: name -> all uses of the parameter. A use that belongs to several stands with each.
    """
    parameters = {name: weights.parameters[name] for name in uses_of}
    parts: dict[int, tuple[Tensor, list[PerSampleGradient]]] = {}
    heard: set[int] = set()
    for uses in uses_of.values():
        for weight, part in uses:
            if id(part) not in heard:
                heard.add(id(part))
                parts.setdefault(id(weight), (weight, []))[1].append(part)
    sums_of_weights = [
        (weight, *_sum_of_parts(parts_of_weight)) for weight, parts_of_weight in parts.values()
    ]
    numbers = sum(w.numel() for w, _, _ in sums_of_weights) + sum(
        p.numel() for p in parameters.values()
    )
    element = max(p.element_size() for p in parameters.values())
    n = len(next(iter(uses_of.values()))[0][1])
    most = max(1, scratch // max(1, 3 * element * numbers))
    if len(uses_of) == 1:  # no more than fits the cache, where a pass costs little
        slices = chunks(n, 3 * element * numbers, scratch)
    else:
        slices = (slice(a, min(n, a + most)) for a in range(0, n, most))
    for rows in slices:
        totals: dict[str, Tensor] = {}
        weight_gradients: list[tuple[Tensor, Tensor]] = []
        for weight, parts_of_all, parts_of_one in sums_of_weights:
            dense = _materialize(parts_of_all, parts_of_one, rows)
            if weights.tracks(weight):
                name = weights.sources(weight)[0]
                totals[name] = dense if name not in totals else totals[name] + dense
            else:
                weight_gradients.append((weight, dense))
        for name, gradient in weights.gradients_of_parameters(parameters, weight_gradients).items():
            totals[name] = gradient if name not in totals else totals[name] + gradient
        for name, parameter in parameters.items():  # what a custom function gives no gradient
            if name not in totals:
                totals[name] = parameter.new_zeros(rows.stop - rows.start, *parameter.shape)
        yield rows, totals


def _sum_of_parts(
    parts: Sequence[PerSampleGradient],
) -> tuple[list[PerSampleGradient], list[OfOneSample]]:
    """Return the gradients of one weight, those of one form as one, and those of single samples."""
    of_one = [part for part in parts if isinstance(part, OfOneSample)]
    others = [part for part in parts if not isinstance(part, OfOneSample)]
    total = others[0].add(others[1:]) if len(others) > 1 else None
    return ([total] if total is not None else others), of_one


def _materialize(
    parts: Sequence[PerSampleGradient], of_one: Sequence[OfOneSample], rows: slice
) -> Tensor:
    """Return the sum of gradients of one weight, (m, *weight.shape), for some of the samples."""
    total: Tensor | None = None
    for part in parts:
        dense = part.materialize(rows)
        total = dense if total is None else total + dense
    for part in of_one:
        if rows.start <= part.sample < rows.stop:
            if total is None:
                total = part.value.new_zeros(rows.stop - rows.start, *part.value.shape)
            in_place = torch.zeros_like(total)
            in_place[part.sample - rows.start] = part.value
            total = total + in_place
    if total is None:
        total = of_one[0].value.new_zeros(rows.stop - rows.start, *of_one[0].value.shape)
    return total


def _disjoint(parameter: Tensor, views: Sequence[Tensor]) -> bool:
    """Whether views of one parameter, none of which overlaps itself, share no entry."""
    if any(view is parameter for view in views):
        return len(views) == 1
    spans = sorted(_span(view) for view in views)
    if all(end < start for (_, end), (start, _) in itertools.pairwise(spans)):
        return True
    places = torch.cat([_places(view) for view in views]).sort().values
    return bool(places.diff().all())


def _span(view: Tensor) -> tuple[int, int]:
    """The first and the last place in memory, in real numbers: a complex entry takes two."""
    numbers_per_entry = 2 if view.is_complex() else 1
    reach = sum((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
    start = int(view.storage_offset())
    return numbers_per_entry * start, numbers_per_entry * (start + reach) + numbers_per_entry - 1


def _places(view: Tensor) -> Tensor:
    """The places in memory of a view's real numbers, (numel,), twice as many for complex ones."""
    numbers_per_entry = 2 if view.is_complex() else 1
    place = numbers_per_entry * int(view.storage_offset()) + torch.arange(numbers_per_entry)
    for size, stride in zip(view.shape, view.stride(), strict=True):
        place = place[..., None] + torch.arange(size) * (numbers_per_entry * stride)
    return place.flatten()


class Reduction(Protocol):
    """What is wanted of the gradient of one parameter: one row per sample."""

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """(n, ...), from all uses of the parameter `name`."""
        ...

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:
        """(m, ...), from the gradients themselves, (m, *parameter.shape)."""
        ...


class SquaredNorms:
    """Squared Frobenius norms, (n,)."""

    def of_uses(self, weights: Weights, name: str, uses: Uses, scratch: int) -> Tensor:
        """Reduce the sum of all uses of a parameter; see `Reduction`."""
        return norms_of_uses(weights, name, uses, scratch)

    def of_dense(self, name: str, gradients: Tensor) -> Tensor:  # noqa: ARG002
        """Reduce gradients that are formed already; see `Reduction`."""
        return squared_norms(gradients)


class TotalSquaredNorms(SquaredNorms):
    """Squared Frobenius norms of the whole gradient, (n,): of no parameter by itself.

    `ReducingListener` adds them up on its way. A pass that is proven does so too, to the same bits,
    and has the squares of each parameter beside, which are held against autograd.
    """

    of_all = ""
    """The name under which the sum stands, in place of all parameters' names."""

    def total(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sum, (n,) float64. rows: name -> (n,), one or more."""
        if self.of_all in rows:
            return dict(rows)
        # In double: small tensors' squares would be lost beside those of large ones.
        squares = torch.stack(list(rows.values())).sum(dim=0, dtype=torch.float64)
        return {self.of_all: squares}


class LayoutUnknown(SamplesNotSeparable):
    """A gradient reached a use whose layout is not known: none had reached it before."""


class FrontGuess:
    """Holds all samples of a batch to be in front, as in batches of other shapes.

    It hears the pass that is reduced, ahead of those who read layouts, and the proof of that pass
    is the proof of the guess: powers of two tell whose loss reached which rows (`separation`). Two
    things the proof cannot tell are asked here. Of more samples than there are powers, some share
    one: so every sample must have reached every use. And gradients may be zero wherever samples in
    another dimension would have shown: then the numbers of this batch are right, but the layout is
    not one to remember.

    n: the samples, two or more. uses: what the operators themselves know of their layouts.
    """

    def __init__(self, n: int, uses: Sequence[HasLayout]):
        self._n, self._uses = n, uses
        self.layouts: dict[int, Layout] = {}
        """Layouts of the uses that the pass has reached so far with more than zeros."""
        self.is_settled = True
        """Whether no other layout explains what reached some use."""

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG002
        """Take in the gradient that reached one use; see `Listener`.

        Raises:
            LayoutUnknown: the samples cannot be in front, or not all have reached the use.
        """
        use = self._uses[index]
        if not bool(g.any()):
            return
        if use.layout is not None:
            self.layouts[index] = use.layout
            return
        if g.dim() == 0 or len(g) % self._n or use.dim not in (None, 0):
            raise LayoutUnknown("samples that were in front are elsewhere in this batch")
        # A gradient without zeros has, in each row, entries that others would own elsewhere.
        if not bool(g.all()):
            entries = g != 0
            if not bool(entries.reshape(self._n, -1).any(dim=1).all()):
                raise LayoutUnknown("samples that no gradient reaches do not show where they are")
            self.is_settled &= not is_ambiguous_in_front(entries, self._n, use.dim)
        self.layouts[index] = Layout()


class ReducingListener:
    """Reduces the gradient of each parameter as soon as it is complete.

    A parameter with a single use is reduced at once, so that its activations can go.

    has_total: whether squares are added up over all parameters beside what the reduction makes of
    each; without being asked where the reduction is `TotalSquaredNorms`, and nothing else then.
    """

    def __init__(
        self,
        tape: Tape,
        n: int,
        layouts: Mapping[int, Layout],
        reduction: Reduction,
        has_total: bool = False,
    ):
        self.tape, self.n, self.layouts, self.reduction = tape, n, layouts, reduction
        self._usual = Samples(n)
        self._results: dict[str, Tensor] = {}
        self._is_by_name = not isinstance(reduction, TotalSquaredNorms)
        self._total = SumOfSquares() if has_total or not self._is_by_name else None
        self._pending: dict[str, list[tuple[Tensor, PerSampleGradient]]] = {}
        self._joint_uses = JointUses()
        self._has_loops = max(tape.uses_of.values(), default=1) > 1
        self.reached = False
        """Whether the backward pass came to some use of a weight, be it with zeros."""

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """Take in the gradient that reached one use; see `Listener`."""
        self.reached = True
        kernel = self.tape.kernels[index]
        samples = self._samples(kernel, index, g)
        if samples is None:
            return
        use = Use(kernel, g, inputs)
        if self._has_loops and samples is self._usual:
            count = self._count_uses(kernel.weights[0])
            if count > 1 and kernel.joint_key is not None:
                joint_use = self._joint_uses.keep(use, count)
                if joint_use is None:
                    return
                use = joint_use
        self._take(use, samples)

    def _count_uses(self, weight: Tensor) -> int:
        """Return how many uses there are of the first parameter that a weight is made of."""
        names = self.tape.weights.sources(weight)
        return self.tape.uses_of[names[0]] if names else 1

    def _take(self, use: Use, samples: Samples) -> None:
        """Take in the per-sample gradients of the weights of a use, or of several that are one."""
        weights, uses_of = self.tape.weights, self.tape.uses_of
        parameters, total = weights.parameters, self._total
        for weight, part in use.kernel.weight_gradients(use.g, *use.inputs, samples=samples):
            names = weights.sources(weight)
            # Reduced at once, its operands can go before the next layer is reached.
            if (
                len(names) == 1
                and uses_of[names[0]] == use.number
                and (weight is parameters[names[0]] or weights.isometric(weight))
            ):
                if total is not None:
                    part.add_squares(total, self.tape.options.scratch)
                if self._is_by_name:
                    self._results[names[0]] = self._reduce(names[0], [(weight, part)])
            elif all(uses_of[name] == use.number for name in names) and (
                of_leaves := gradients_of_leaves(weight, part, self.tape.options.scratch)
            ):
                for name in names:
                    parameter = parameters[name]
                    uses = [(leaf, its_part) for leaf, its_part in of_leaves if leaf is parameter]
                    self._keep(name, self._reduce(name, uses))
            else:
                for name in names:
                    self._pending.setdefault(name, []).append((weight, part))

    def _samples(self, kernel: Kernel, index: int, g: Tensor) -> Samples | None:
        """Return where the samples of a use are; None where no gradient has ever reached it.

        Raises:
            LayoutUnknown: a gradient reached it, or some of its entries, for the first time.
        """
        layout = kernel.layout or self.layouts.get(index)
        if layout is None:
            if self.n > 1 and bool(g.any()):
                raise LayoutUnknown(
                    f"a gradient reached `{kernel.name}` that had reached it in no batch before"
                )
            return None if self.n > 1 else self._usual
        # Made once: most uses have it.
        if layout.is_usual:
            return self._usual
        if isinstance(layout, IndexedLayout) and layout.reaches_others(g):
            raise LayoutUnknown(
                f"a gradient reached entries of `{kernel.name}` that it had reached in no batch "
                "before"
            )
        return Samples(self.n, layout)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """name -> (n, ...), for every parameter that a gradient reached; or as `total`."""
        weights = self.tape.weights
        for use in self._joint_uses.take_rest():
            self._take(use, self._usual)
        for names in self._group_parameters():
            uses_of = {name: self._pending.pop(name) for name in names}
            rows: dict[str, list[Tensor]] = {name: [] for name in names}
            for _, totals in dense_sums(weights, uses_of, self.tape.options.scratch):
                for name, gradients in totals.items():
                    rows[name].append(self.reduction.of_dense(name, gradients))
            for name, parts in rows.items():
                self._keep(name, torch.cat(parts))
        for name, uses in self._pending.items():
            self._keep(name, self._reduce(name, uses))
        self._pending.clear()
        return self._results if self._is_by_name else self.total()

    @torch.no_grad()
    def total(self) -> dict[str, Tensor]:
        """Return the squares of all parameters together, by one name; {} if there are none."""
        total = None if self._total is None else self._total.total()
        return {} if total is None else {TotalSquaredNorms.of_all: total}

    def _keep(self, name: str, rows: Tensor) -> None:
        """Keep what the reduction has made of a parameter: of `TotalSquaredNorms`, squares."""
        if self._is_by_name:
            self._results[name] = rows
        if self._total is not None:
            self._total.add_squares(rows)

    def _group_parameters(self) -> list[list[str]]:
        """Return groups of parameters whose gradients are formed by one backward pass each.

        Parameters of which one weight is made belong together, as of a projected table. Others, and
        such groups, share a pass as long as their gradients fit the cache.
        """
        weights, groups = self.tape.weights, list[set[str]]()
        for name, uses in self._pending.items():
            names = {name}.union(*(weights.sources(weight) for weight, _ in uses))
            if len(names) > 1:
                groups_to_join = [group for group in groups if group & names]
                groups = [group for group in groups if not group & names]
                groups.append(names.union(*groups_to_join))
            elif not all(weights.isometric(weight) for weight, _ in uses):
                groups.append(names)
        passes, room = list[set[str]](), 0
        for group in groups:
            size = sum(self._bytes_of_gradients(name, self._pending[name]) for name in group)
            if size > room:
                passes.append(set())
                room = min(CACHE, self.tape.options.scratch)
            passes[-1] |= group
            room -= size
        return [[name for name in self._pending if name in group] for group in passes]

    def _bytes_of_gradients(self, name: str, uses: Uses) -> int:
        """Return the bytes of the per-sample gradients of a parameter and of what is made of it."""
        parameter = self.tape.weights.parameters[name]
        sizes = {id(weight): weight.numel() for weight, _ in uses}
        return 3 * self.n * parameter.element_size() * (parameter.numel() + sum(sizes.values()))

    def _reduce(self, name: str, uses: Uses) -> Tensor:
        return self.reduction.of_uses(self.tape.weights, name, uses, self.tape.options.scratch)
