"""The state of a model between passes: each starts from the same, and the caller finds it again.

Everything that can be reached from the modules belongs to it: buffers, attributes, and what lies in
their lists and dicts, by identity and by values, whatever way they were written. Buffers and
attributes are copied and compared bit for bit, for a write through `.data`, or by an operator that
keeps statistics, moves no counter. They are small against activations.

Parameters are not small: a copy is as large as the gradients of a training step, which the engine
never holds, and comparing them costs a reading of all of them. So they are copied where a model is
first seen (in a mode, and with the flags that it has), for its first pass alone. Parameters that
this pass writes are known from then on, and treated as buffers are. Others are watched by what
costs next to nothing: the counter of versions, the address, and a few numbers of each. That shows
writes of a later batch; of these, the old values are gone, so that such a call is refused. Frozen
parameters have no gradients that would take as much: many of them are summed up in place of a copy,
and a first pass that writes them is refused as a later one is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from upslope.gradnorm.core.state.containers import Walk, borrow_walk, return_walk
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.state.memory_copies import (
    CopyPlan,
    Digests,
    FewNumbers,
    WholeCopies,
    find_changed,
    too_large_to_copy,
)
from upslope.gradnorm.core.state.old_memory import OldMemoryWatch
from upslope.gradnorm.core.state.state_memory import (
    Looks,
    OddTensor,
    Stretch,
    exchange,
    has_memory,
    stretches_of,
)
from upslope.gradnorm.core.state.written_parameters import (
    hidden_refusal,
    recall_writes,
    written_refusal,
)


class ModelState:
    """What modules keep, as it is now.

    model: the network, or a loss that is a module. others: modules beside it. apart_from: modules
    that are no part of it, with their tensors. walk: that of the model alone, if it was borrowed
    and nothing has run since.
    """

    _refusals: ClassVar[int] = 0
    """How many states were refused, of all models."""

    _stretches_to_copy: list[Stretch]
    """Memory that passes may write, which is copied whole."""
    _copies: WholeCopies | None
    """Its copies; None once there is more of it."""
    _stretches_to_watch: list[Stretch]
    """Memory that passes should not write, of which a few numbers are copied."""
    _few: FewNumbers

    def __init__(
        self,
        model: nn.Module,
        *others: nn.Module,
        apart_from: Iterable[nn.Module] = (),
        walk: Walk | None = None,
    ):
        self._is_whole_model = not others and not apart_from
        if walk is None:
            walk = (
                borrow_walk(model)
                if self._is_whole_model
                else Walk(model, *others, apart_from=apart_from)
            )
        self._walk, self._holders, self._modules = walk, walk.holders, walk.modules
        self._open_tensors(walk)
        self._ids_of_writes, self._learns = recall_writes(model, walk)
        self._copy_memory(walk)
        self._renewed_at: int | None = ModelState._refusals
        """How many states were refused when all was as it is to be before a pass; None once a pass
        has begun. A state within this one that is refused may leave tensors changed."""
        self._has_replaced = False
        self.passes = 0
        """How many passes have begun."""
        self.draws_others = False
        """Whether the passes draw other random numbers, and so may write other weights."""
        self.last_size = 0
        """How many samples the last of them had."""
        self._ends: dict[int, Tensor] = {}
        """What the first pass left in parameters that are written and require a gradient."""
        self._refusal_ids: set[int] = set()
        """Parameters whose values are gone, or that samples decide on."""
        self._hidden: set[int] = set()
        """Tensors that were read though others stood for them."""

    def _open_tensors(self, walk: Walk) -> None:
        """Take in the tensors that the walk found, and the memory that they look at."""
        looks: Looks | None = walk.notes.get("looks")
        if looks is not None and looks.are_where_they_were():
            looks.start_anew()
            self._looks, self._stretches = looks, walk.notes["stretches"]
            self._odd: list[OddTensor] = []
        else:
            walk.notes = {}
            plain = [t for t in walk.tensors.values() if has_memory(t)]
            ids = {id(t) for t in plain}
            # Sparse tensors and their like have no memory that could be compared.
            # In inference mode they would be tensors that cannot be written to outside of it.
            with torch.inference_mode(False):
                self._odd = [
                    OddTensor(t)
                    for t in walk.tensors.values()
                    if id(t) not in ids and t.numel() and not nn.parameter.is_lazy(t)
                ]
                self._stretches = stretches_of(plain)
            self._looks = Looks(self._stretches)
        self._requires = self._looks.requires_grad()

    @property
    def inventory(self) -> Inventory:
        """What the modules are made of, as they are before each pass."""
        return self._walk.inventory

    def _copy_memory(self, walk: Walk) -> None:
        """Copy what passes may write, and a few numbers of what they should not."""
        plan: CopyPlan | None = walk.notes.pop("plan", None)
        if plan is not None and plan.written_ids == self._ids_of_writes and not self._learns:
            # The same memory as in the last call, in the same groups.
            plan.copies.copy_again()
            plan.few.copy_again()
            self._stretches_to_copy, self._copies = plan.stretches_to_copy, plan.copies
            self._stretches_to_watch, self._few = plan.stretches_to_watch, plan.few
            return
        large = too_large_to_copy(self._stretches) if self._learns else []
        large_ids = set(map(id, large))
        self._stretches_to_copy, stretches_to_watch = [], list[Stretch]()
        for stretch in self._stretches:
            is_copied = self._is_copied(stretch) and id(stretch) not in large_ids
            (self._stretches_to_copy if is_copied else stretches_to_watch).append(stretch)
        self._watch_only(stretches_to_watch)
        self._copies = WholeCopies(self._stretches_to_copy)
        self._digests = Digests(large)

    def _is_copied(self, stretch: Stretch) -> bool:
        parameters, written_ids = stretch.parameters, self._ids_of_writes
        return (
            not parameters
            or self._learns
            or (bool(written_ids) and any(id(p) in written_ids for p in parameters))
        )

    @contextlib.contextmanager
    def one_pass(self, size: int) -> Iterator[None]:
        """Enter a pass: it starts from what the modules kept at first, and shows what it writes.

        size: the number of its samples.
        """
        self.begin_pass()
        self.passes, self.last_size = self.passes + 1, size
        old: dict[int, Stretch] = {}
        if self._has_replaced:
            stretches = (s for s in self._stretches_to_copy if s.now is not s.own)
            old = {s.address: s for s in stretches if s.is_exchanged}
        if old:
            with OldMemoryWatch(old) as watch:
                yield
            for address in watch.read:
                self._hidden |= {id(at.original) for at in old[address].looking}
        else:
            yield
        self.end_pass()

    def begin_pass(self) -> None:
        """Before a pass: put everything into the state from which passes start."""
        self.renew()
        self._renewed_at = None

    def end_pass(self) -> None:
        """After a pass: see what it has written."""
        if self._learns:
            self._learn()
        if self._ids_of_writes and not self.draws_others:
            self._compare_ends()

    def renew(self) -> None:
        """Before another pass: whatever a pass has changed gets a copy of what it was.

        Not the tensor itself, which the graph of an earlier pass may hold.
        """
        if self._renewed_at != ModelState._refusals:  # else nothing has run since
            self._renew()

    @torch.no_grad()
    def _renew(self) -> None:
        with torch.inference_mode(False):
            instead: dict[int, Tensor] = {}
            may_have_moved = self._may_have_moved()
            for stretch in self._find_changed(may_have_moved=may_have_moved):
                instead |= stretch.replace()
            for odd in self._odd:
                instead |= odd.replace()
            if instead:
                self._has_replaced = True
                self._expect(instead)
            self._watch(may_have_moved=may_have_moved)
            self._put_back_flags()
            for holder in self._holders:
                holder.put_back()
        self._renewed_at = ModelState._refusals

    def _may_have_moved(self) -> bool:
        """Whether some tensor may look at other memory, or was written to in a way that counts."""
        return self._has_replaced or self._looks.have_moved()

    def _find_changed(self, *, may_have_moved: bool) -> list[Stretch]:
        """Return the copied stretches that were written to, in the memory that counts now."""
        if self._copies is not None and not may_have_moved and self._copies.are_current():
            return []
        return find_changed(self._stretches_to_copy, may_have_moved=may_have_moved)

    def _put_back_flags(self) -> None:
        """A model may freeze a layer while it runs: it begins and ends as it was."""
        if self._looks.requires_grad() == self._requires:
            return
        for p, requires_grad in zip(self._looks.parameters, self._requires, strict=True):
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)

    def _expect(self, instead: dict[int, Tensor]) -> None:
        # Of what has not changed just now, the last copy stands.
        for stretch in self._stretches_to_copy:
            for looking in stretch.looking:
                instead.setdefault(id(looking.original), looking.now)
        for odd in self._odd:
            instead.setdefault(id(odd.original), odd.now)
        for holder in self._holders:
            holder.expect(lambda value: exchange(value, instead))

    def restore(self) -> None:
        """At the end: the caller's own tensors are back, and hold what they held.

        Raises:
            GradientNormError: the values of a parameter are gone, or samples decide on them; or a
        tensor is held where it cannot be exchanged.
        """
        if not self._is_memory_untouched():
            self._restore_memory()
        for holder in self._holders:
            holder.put_back()
        self._put_back_flags()
        if self._refusal_ids or self._hidden:
            ModelState._refusals += 1
        if self._refusal_ids:
            ids, self._refusal_ids = self._refusal_ids, set()
            raise written_refusal(ids, self._modules)
        if self._hidden:
            ids, self._hidden = self._hidden, set()
            raise hidden_refusal(ids, self._modules)
        if self._is_whole_model and self._may_return_walk():
            self._return_walk()

    def _is_memory_untouched(self) -> bool:
        """Whether no pass has changed any tensor: so it is for nearly every network."""
        if self._learns or self._has_replaced or self._odd or self._copies is None:
            return False
        return (
            not self._looks.have_moved()
            and self._copies.are_current()
            and not self._few.find_changed()
        )

    @torch.no_grad()
    def _restore_memory(self) -> None:
        with torch.inference_mode(False):
            if self._learns:
                self._learn()
            elsewhere = [s for s in self._stretches_to_copy if s.now is not s.own]
            in_place = [s for s in self._stretches_to_copy if s.now is s.own]
            may_have_moved = self._may_have_moved()
            for stretch in (*elsewhere, *find_changed(in_place, may_have_moved=may_have_moved)):
                stretch.restore()
            for odd in self._odd:
                odd.restore()
            self._watch(may_have_moved=may_have_moved, by_values=True)
            if self._has_replaced:
                for holder in self._holders:
                    holder.expect(lambda value: value)
            self._has_replaced = False

    def _may_return_walk(self) -> bool:
        walk = self._walk
        return walk.notes.get("looks") is self._looks or (
            walk.may_be_kept() and self._looks.are_of(walk.tensors.values())
        )

    def _return_walk(self) -> None:
        """Let the next call begin with what this one found, where it finds the same."""
        notes = self._walk.notes
        notes["looks"], notes["stretches"] = self._looks, self._stretches
        # What was copied is as large as the model's buffers, and serves this call alone.
        if self._copies is None:
            for stretch in self._stretches:
                stretch.copy = None
        else:
            self._copies.let_go()
            notes["plan"] = CopyPlan(
                set(self._ids_of_writes),
                self._stretches_to_copy,
                self._stretches_to_watch,
                self._copies,
                self._few,
            )
        return_walk(self._walk)

    @torch.no_grad()
    def _learn(self) -> None:
        """After the first pass of a model: see which parameters it has written; drop the rest."""
        self._learns, self._copies = False, None
        # What was not written gives its copy back: it was there for one pass.
        to_copy, to_watch = [], []
        for stretch in self._stretches_to_copy:
            if stretch.parameters and not (stretch.has_moved() or stretch.has_other_values()):
                stretch.copy = None
                to_watch.append(stretch)
            else:
                self._ids_of_writes.update(id(p) for p in stretch.parameters)
                to_copy.append(stretch)
        self._stretches_to_copy = to_copy
        self._watch_only(to_watch + self._stretches_to_watch)
        hidden = [s for s in self._digests.find_changed() if not s.has_moved()]
        self._take_note(hidden, by_values=True)

    @torch.no_grad()
    def _compare_ends(self) -> None:
        """See that every pass leaves the same in the parameters that it writes."""
        for stretch in self._stretches_to_copy:
            for p in stretch.parameters:
                if p.requires_grad:
                    end = self._ends.setdefault(id(p), p.detach().clone())
                    same = torch.equal(end, p) or bool(
                        ((end == p) | (end.isnan() & p.isnan())).all()
                    )
                    if not same:
                        self._refusal_ids.add(id(p))

    def _watch(self, *, may_have_moved: bool, by_values: bool = False) -> None:
        """Take note of parameters that are written for the first time, without a copy."""
        changed_stretches = []
        if may_have_moved:
            changed_stretches = [s for s in self._stretches_to_watch if s.has_moved()]
        if by_values:
            ids = {id(stretch) for stretch in changed_stretches}
            changed_stretches += [s for s in self._few.find_changed() if id(s) not in ids]
        self._take_note(changed_stretches, by_values=by_values)

    def _take_note(self, changed_stretches: list[Stretch], *, by_values: bool) -> None:
        """Know that parameters are written, so that the next call begins with a copy of them."""
        if not changed_stretches:
            return
        for stretch in changed_stretches:
            ids = {id(p) for p in stretch.parameters}
            self._ids_of_writes |= ids
            # With another memory in its place, what it had is still there.
            if by_values or stretch.was_written():
                self._refusal_ids |= ids
            stretch.restore()
        WholeCopies(changed_stretches)
        self._stretches_to_copy = self._stretches_to_copy + changed_stretches
        self._copies = None
        self._watch_only([s for s in self._stretches_to_watch if s.copy is None])

    def _watch_only(self, stretches: list[Stretch]) -> None:
        self._stretches_to_watch, self._few = stretches, FewNumbers(stretches)
