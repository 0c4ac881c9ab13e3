"""Per-sample gradients of parameters that are formed: the sums of all their uses.

Where no form of the gradients gives what is wanted of them, they are formed a few samples at a
time. What is made of parameters is differentiated by autograd, in one backward pass for all of it;
what a model makes for one sample alone, as a table of positions in the size of its image, in one
for that sample. Called by `reductions`, `reducing_listener` and the proofs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from upslope.gradnorm.core.chunks import CACHE, chunks, in_cache
from upslope.gradnorm.core.gradients.per_sample_gradients import OfOneSample, PerSampleGradient
from upslope.gradnorm.core.weights.weights import Weights

Uses = Sequence[tuple[Tensor, PerSampleGradient]]
"""The uses of one parameter: through which weight, and the gradient of that weight."""


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

    The uses of one weight are summed first, and all that is made of parameters is differentiated in
    one backward pass: a step of a recurrence, or of a network, costs no pass of its own.

    uses_of: name -> all uses of the parameter. A use that belongs to several stands with each.
    """
    parameters = {name: weights.parameters[name] for name in uses_of}
    of_all, of_one = _sum_by_weight(weights, uses_of.values())
    numbers = sum(weight_sum.weight.numel() for weight_sum in of_all) + sum(
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
        for weight_sum in of_all:
            dense = weight_sum.materialize(rows)
            if weights.tracks(weight_sum.weight):
                _add_to(totals, {weights.sources(weight_sum.weight)[0]: dense})
            else:
                weight_gradients.append((weight_sum.weight, dense))
        _add_to(totals, weights.gradients_of_parameters(parameters, weight_gradients))
        _add_to(totals, _of_single_samples(weights, parameters, of_one, rows))
        for name, parameter in parameters.items():  # what a custom function gives no gradient
            if name not in totals:
                totals[name] = parameter.new_zeros(rows.stop - rows.start, *parameter.shape)
        yield rows, totals


def _add_to(totals: dict[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        totals[name] = gradient if name not in totals else totals[name] + gradient


class _SumOfUses(NamedTuple):
    """The gradients of one weight through all its uses."""

    weight: Tensor
    of_all: list[PerSampleGradient]
    """Those of all samples, those of one form as one."""
    of_one: list[OfOneSample]
    """Those of single samples."""

    def materialize(self, rows: slice) -> Tensor:
        """Return the sum, (m, *weight.shape), for some of the samples."""
        total: Tensor | None = None
        for part in self.of_all:
            dense = part.materialize(rows)
            total = dense if total is None else total + dense
        for of_sample in self.of_one:
            if rows.start <= of_sample.sample < rows.stop:
                in_place = of_sample.value.new_zeros(rows.stop - rows.start, *of_sample.value.shape)
                in_place[of_sample.sample - rows.start] = of_sample.value
                total = in_place if total is None else total + in_place
        if total is None:
            value = self.of_one[0].value
            total = value.new_zeros(rows.stop - rows.start, *value.shape)
        return total


_OfSamples = dict[int, list[tuple[Tensor, Tensor]]]
"""Sample -> the weights that are made for it alone, with their gradients, (1, *shape)."""


def _sum_by_weight(
    weights: Weights, every_use: Iterable[Uses]
) -> tuple[list[_SumOfUses], _OfSamples]:
    """Return the sums of uses weight by weight, and apart from them what single samples have."""
    parts: dict[int, tuple[Tensor, list[PerSampleGradient]]] = {}
    part_ids: set[int] = set()
    for uses in every_use:
        for weight, part in uses:
            if id(part) not in part_ids:
                part_ids.add(id(part))
                parts.setdefault(id(weight), (weight, []))[1].append(part)
    sums: list[_SumOfUses] = []
    of_samples: _OfSamples = {}
    for weight, parts_of_weight in parts.values():
        of_one = [part for part in parts_of_weight if isinstance(part, OfOneSample)]
        others = [part for part in parts_of_weight if not isinstance(part, OfOneSample)]
        if not others and len({part.sample for part in of_one}) == 1 and not weights.tracks(weight):
            value = sum((part.value for part in of_one[1:]), of_one[0].value)
            of_samples.setdefault(of_one[0].sample, []).append((weight, value[None]))
            continue
        total = others[0].add(others[1:]) if len(others) > 1 else None
        sums.append(_SumOfUses(weight, others if total is None else [total], of_one))
    return sums, of_samples


def _of_single_samples(
    weights: Weights, parameters: Mapping[str, Tensor], of_samples: _OfSamples, rows: slice
) -> dict[str, Tensor]:
    """Return name -> gradients (m, *shape) through weights that are made for one sample each.

    One backward pass for each sample goes through its own weights; one for all of them would take
    every weight to every sample, zeros as nearly all its rows are.
    """
    totals: dict[str, Tensor] = {}
    for sample in range(rows.start, rows.stop):
        own_weights = of_samples.get(sample)
        if own_weights is None:
            continue
        for name, gradient in weights.gradients_of_parameters(parameters, own_weights).items():
            if name not in totals:
                totals[name] = gradient.new_zeros(rows.stop - rows.start, *gradient.shape[1:])
            totals[name][sample - rows.start] = gradient[0]
    return totals


def group_parameters(
    weights: Weights, uses_of: Mapping[str, Uses], n: int, scratch: int
) -> list[list[str]]:
    """Return groups of parameters whose gradients are formed by one backward pass each.

    Parameters of which one weight is made belong together, as of a projected table. Others, and
    such groups, share a pass as long as their gradients fit the cache.

    uses_of: name -> uses of the parameter. Those whose norms need not be formed are in no group.
    """
    groups: list[set[str]] = []
    for name, uses in uses_of.items():
        names = {name}.union(*(weights.sources(weight) for weight, _ in uses))
        if len(names) > 1:
            groups_to_join = [group for group in groups if group & names]
            groups = [group for group in groups if not group & names]
            groups.append(names.union(*groups_to_join))
        elif not all(weights.isometric(weight) for weight, _ in uses):
            groups.append(names)
    passes: list[set[str]] = []
    room = 0
    for group in groups:
        size = sum(_bytes_of_gradients(weights, name, uses_of[name], n) for name in group)
        if size > room:
            passes.append(set())
            room = in_cache(CACHE, scratch)
        passes[-1] |= group
        room -= size
    return [[name for name in uses_of if name in group] for group in passes]


def _bytes_of_gradients(weights: Weights, name: str, uses: Uses, n: int) -> int:
    """Return the bytes of the per-sample gradients of a parameter and of what is made of it."""
    parameter = weights.parameters[name]
    sizes = {id(weight): weight.numel() for weight, _ in uses}
    return 3 * n * parameter.element_size() * (parameter.numel() + sum(sizes.values()))
