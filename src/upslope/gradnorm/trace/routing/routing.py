"""Rows that the data send to one weight or another, and back: mixtures of experts.

An expert takes the rows of a tensor that a router has chosen it for, works on each row by itself,
and its results go back into the rows that were taken:

    row, rank = torch.where(chosen == expert)
    out.index_add_(0, row, layer(x[row]) * share[row, rank, None])

How many rows there are, and of which samples, no program tells. The index does: row j of what was
taken belongs to the sample of row `index[j]` of the tensor that it was taken from. Tensors that
rows are taken from and put into keep their samples in the same places in all batches of a program;
where these are, backward passes show once (`Forward.probe`), and the samples of the rows are read
off the index of each batch (`Routes.layouts`). Scores that only decide have no gradient: passes
that start from them show whose they are (`Routes.probe_from_places`).

This holds as long as every operator between works row by row, and rows go back to where they came
from. Each operator that takes such rows is therefore looked at (`Routes.read`); after the first
that is not known here, a batch is like no other (`Tape.route`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from upslope.gradnorm.core.layouts.layout import IndexedLayout, Layout, SamplesNotSeparable
from upslope.gradnorm.core.layouts.layout_probe import LayoutProbe, halves
from upslope.gradnorm.core.tensor_marks import mark
from upslope.gradnorm.trace.routing.decisions import Decision, decided_alone, decision_of
from upslope.gradnorm.trace.routing.route_reader import RouteReader
from upslope.gradnorm.trace.routing.routed_rows import Choice, Reading, Route, RowGroup


class Routes(RouteReader):
    """What is routed in one forward pass. n, is_in_front: as of `RouteReader`."""

    def __init__(self, n: int, is_in_front: Callable[[Tensor], bool]):
        super().__init__(n, is_in_front)
        self.uses: dict[int, RowGroup] = {}
        """The uses of weights that take routed rows."""
        self._moves: list[tuple[int, tuple[int, ...]]] = []
        """Tensors by their number, and the dimensions along which the data moved entries."""
        self._in_front: set[int] = set()
        """Tensors by their number that must have each sample's entries together in dimension 0."""
        self._decisions: list[tuple[int, int, Decision, Callable[[Tensor], str]]] = []
        """Note (`steering`), number of the router's numbers among `places`, how what steers was
        made of them, and the text of that: of the table that a loop goes through, or a number."""

    @property
    def are_read(self) -> bool:
        """Whether rows were routed, and each is known to be back in its place."""
        return self.is_met and not self.is_lost

    def take(
        self, reading: Reading, out: Any, tensors: Iterable[Tensor], uses: Iterable[int]
    ) -> bool:
        """Note what an operator has made; return whether it is what was expected.

        out: what it has made. tensors: those among it. uses: of weights, in the operator.
        """
        route = reading.route
        self.is_met = True
        if route is not None:
            results = list(tensors)
            # An operator that was held to keep rows, and does not: its result would be misread.
            if not all(map(route.fits, results)):
                return False
            for tensor in results:
                mark(tensor).route = route
        place = out if reading.makes_place else reading.place
        if reading.along and place is not None:
            self._moves.append((self.places.add(place), reading.along))
        if reading.must_be_in_front and place is not None:
            self._in_front.add(self.places.add(place))
        if reading.group is not None:
            if place is not None:
                reading.group.places.append(self.places.add(place))
            self.uses |= dict.fromkeys(uses, reading.group)
        return True

    def add_loop(self, note: int, loop: Choice) -> None:
        """Take in a loop over what the samples have chosen. note: its place among what steers."""
        if loop.decision is not None:
            self._add_decision(note, loop.decision, lambda hit: repr(hit.nonzero().tolist()))

    def add_numbers(self, untold: Iterable[tuple[int, Tensor, type]]) -> None:
        """Take in numbers that have left, of which no sample's own is known (`steering`)."""
        for note, tensor, kind in untold if self.are_read else ():
            decision = decision_of(tensor)
            if decision is not None:
                self._add_decision(note, decision, functools.partial(_text_of_number, kind))

    def take_rows(self, rows: Route, results: Iterable[Tensor], uses: Iterable[int]) -> bool:
        """Note what an operator has made of rows, one by one; as `take`."""
        assert rows.rows is not None
        self.uses |= dict.fromkeys(uses, rows.rows)
        for tensor in results:
            if not rows.fits(tensor):
                return False
            mark(tensor).route = rows
        return True

    def _add_decision(
        self, note: int, decision: Decision, text_of: Callable[[Tensor], str]
    ) -> None:
        # What was written since it was a place would pass for unwritten.
        if self.places.is_as_before(decision.router):
            self._decisions.append((note, self.places.add(decision.router), decision, text_of))

    def own_decisions(self, layouts: Mapping[int, Layout]) -> Iterator[tuple[int, list[str]]]:
        """Yield the note of what a router has decided, and what it would be for each sample alone.

        layouts: as of `layouts`. Notes of which it is not known are left out.
        """
        for note, number, decision, text_of in self._decisions:
            layout, router = layouts.get(key_of_place(number)), self.places.tensors[number]
            # What was written since is not what was decided on.
            if type(layout) is not Layout or layout.dim != 0 or not decision.is_current:
                continue
            rows = layout.samples(router.detach(), self._n)
            own_numbers = decided_alone(decision, rows, text_of)
            if own_numbers is not None:
                yield note, own_numbers

    @property
    def keys_needed(self) -> set[int]:
        """The keys of the tensors that the samples of routed rows are read off."""
        numbers = self._in_front.union(number for number, _ in self._moves)
        return {
            key_of_place(place) for place in numbers.union(*(g.places for g in self.groups.all))
        }

    def lose(self) -> None:
        """Give up: samples cannot be read off the indices."""
        self.is_lost = True
        self.forget()
        self._decisions, self._moves, self._in_front, self.uses = [], [], set(), {}

    def layouts(self, layouts: Mapping[int, Layout]) -> dict[int, Layout] | None:
        """Return use -> layout of all uses, those of routed rows among them; None if not known.

        layouts: of the other uses, and of the tensors that rows are taken from and put into, which
        have numbers below zero (`key_of_place`).
        """
        if not (self._moves_stay_within(layouts) and self._are_in_front(layouts)):
            return None
        layouts_of_groups: dict[int, Layout] = {}
        for group in self.groups.all:
            if len(group.index) == 0:  # no gradient reaches what takes no rows
                continue
            owner = self._owners_of_rows(group, layouts)
            if owner is None:
                return None
            layouts_of_groups[group.number] = IndexedLayout(0, owner=owner, n=self._n)
        others = {use: layout for use, layout in layouts.items() if use >= 0}
        return others | {
            use: layouts_of_groups[group.number]
            for use, group in self.uses.items()
            if group.number in layouts_of_groups
        }

    def _moves_stay_within(self, layouts: Mapping[int, Layout]) -> bool:
        """Whether entries moved along none of the dimensions that tell samples apart.

        Along such a dimension, an entry may have become another sample's.
        """
        for number, dims in self._moves:
            layout = layouts.get(key_of_place(number))
            if type(layout) is not Layout or layout.dim in dims:
                return False
        return True

    def _are_in_front(self, layouts: Mapping[int, Layout]) -> bool:
        """Whether the tensors that must have each sample's entries in front have them there."""
        for number in self._in_front:
            layout = layouts.get(key_of_place(number))
            if layout != Layout() or layout.doubtful is not None:
                return False
        return True

    def _owners_of_rows(self, group: RowGroup, layouts: Mapping[int, Layout]) -> Tensor | None:
        """Return the sample of each row of a group, -1 for none; None if not known.

        layouts: as of `layouts`.
        """
        keys = [key_of_place(place) for place in group.places]
        layouts_of_places = {layouts[key] for key in keys if key in layouts}
        doubts = [layouts[key].doubtful for key in keys if key in layouts]
        sizes = {self.places.shapes[place][0] for place in group.places}
        # Rows of one index, taken from tensors that have their samples in different places,
        # belong to two samples at once.
        if len(layouts_of_places) != 1 or len(sizes) != 1:
            return None
        (layout,), (size,) = layouts_of_places, sizes
        if type(layout) is not Layout or layout.dim != 0 or size % self._n:
            return None
        owner = layout.owners(size, self._n)
        rows_in_doubt = [rows for rows in doubts if rows is not None]
        if len(rows_in_doubt) == len(doubts):  # no place has shown whose these are
            owner[torch.stack(rows_in_doubt).all(dim=0)] = -1
        return owner[group.index.cpu()]

    def probe_from_places(self, probe: LayoutProbe, backward: Callable[..., None]) -> None:
        """Tell `probe` of tensors that no loss has reached where their samples are.

        They are held to be where those of tensors with as many rows are. What a sum over the rows
        of half of the samples reaches must then be the same samples' wherever losses have shown it.

        probe: has heard passes from `halves` of the losses. backward: as `Forward.backward`.
        """
        places = self.places_with_gradient()
        known_layouts = {i: probe.fitting[i][0] for i in probe.heard if len(probe.fitting[i]) == 1}
        layouts_by_size: dict[int, set[Layout]] = {}
        for key in places.keys() & known_layouts.keys():
            if known_layouts[key].dim == 0:
                layouts_by_size.setdefault(len(places[key]), set()).add(known_layouts[key])
        guesses = {
            key: next(iter(layouts_by_size[len(place)]))
            for key, place in places.items()
            if key not in probe.heard and place.is_floating_point() and place.dim()
            if len(layouts_by_size.get(len(place), ())) == 1
        }
        if not guesses:
            return
        of_rows = LayoutProbe(probe.kept, probe.uses, unheard=probe.unheard)
        for mask in halves(self._n):
            of_rows.kept = mask.to(probe.kept.device)
            rows = {key: mask[at.owners(len(places[key]), self._n)] for key, at in guesses.items()}
            total = _sum_of_rows([(places[key], of_half) for key, of_half in rows.items()])
            try:
                backward(total, torch.ones_like(total), of_rows, places=places)
            except torch.OutOfMemoryError:
                raise
            # No loss goes back this way: what cannot be differentiated here matters to no norm.
            except (SamplesNotSeparable, RuntimeError):
                return
        agrees = all(
            known_layouts[i] in layouts if i in known_layouts else bool(layouts)
            for i, layouts in of_rows.fitting.items()
        )
        # What no sample has reached has shown nothing.
        if agrees and not (of_rows.heard - of_rows.silent).isdisjoint(known_layouts):
            probe.fitting |= {key: [guess] for key, guess in guesses.items()}
            probe.heard |= guesses.keys()
            probe.silent -= guesses.keys()

    def places_with_gradient(self) -> dict[int, Tensor]:
        """Return key -> the tensors that rows are taken from or put into, if gradients reach them.

        Empty where something was written into one since.
        """
        if not all(map(self.places.is_as_before, self.places.tensors)):
            return {}
        pairs = enumerate(self.places.tensors)
        return {key_of_place(number): t for number, t in pairs if t.requires_grad}


def _text_of_number(kind: type, tensor: Tensor) -> str:
    """Return a number as text. kind: its type in Python."""
    return repr(kind(tensor.item()))


def key_of_place(number: int) -> int:
    """Return the number below zero that stands for a tensor beside the uses of weights."""
    return -1 - number


def _sum_of_rows(places: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return a sum, (1,), of the entries of some rows, each times a random number.

    places: tensors (rows, ...), and which of their rows, (rows,) bool.
    """
    generator, total = torch.Generator().manual_seed(0), torch.zeros(1)
    for place, rows in places:
        factors = torch.randn(place.shape, generator=generator)
        factors[~rows] = 0
        # Scores of what must not be chosen are infinite.
        products = (place * factors.to(place)).nan_to_num(0, 0, 0)
        total = total.to(place) + products.sum()
    return total
