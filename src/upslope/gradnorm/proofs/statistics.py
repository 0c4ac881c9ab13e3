"""Whether a model or a loss takes statistics of its batch, and lets them meet single samples.

The largest activation of a batch, the mean of its losses, the place of a token in the queue of an
expert: numbers that are made of several samples. Where such a number meets the numbers of a sample,
in whatever operator, that sample may depend on others, if only on some batches: behind a clip, a
capacity or a comparison that the first batch does not set off. So operators are watched, not
numbers. A statistic that only leaves for Python (`bool(mask.all())`, `int(lengths.max())`), that
chooses an entry, or that is put out beside the samples, as balancing losses are, is none of it:
layouts that follow from such numbers are told apart by `program`. Which entries belong to which
sample is followed from operator to operator (`owners`); where that is not known, lengths must do.
What an operator makes of either, its name tells (`statistic_kinds`) or a trial does (`dependence`).

Called by `independence`, with the first batch of each program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from upslope.gradnorm.core.program.operator_names import (
    LEAVING,
    LOOKING_UP,
    NAMELESS,
    UNREADABLE,
    name_of,
)
from upslope.gradnorm.core.tensor_marks import mark, marks_of
from upslope.gradnorm.core.torch_functions import tensors_among
from upslope.gradnorm.core.vmap.vmapped import is_transforming, tells_of_row
from upslope.gradnorm.proofs.dependence import (
    Dependence,
    keeps_apart,
    of_products,
    of_sequences,
    try_dependence,
)
from upslope.gradnorm.proofs.owners import (
    NOBODY,
    SEARCHING,
    compact,
    counting_dimensions,
    entries_of_one,
    front_owners,
    is_understood,
    owners_of_output,
    reduced_owners,
)
from upslope.gradnorm.proofs.statistic_kinds import (
    CREATING,
    CROSSING,
    KNOWN_MEANING,
    REARRANGING,
    REDUCING,
    SAMPLE,
    STATISTIC,
    TYPING,
    crosses,
    dimensions_of,
    is_of_two,
    kind_by_owners,
)


class StatisticsWatch(TorchFunctionMode):
    """Sees whether a statistic of several samples meets the numbers of a sample.

    n: the number of samples. reference: the watch of a pass of another number of samples: where an
    operator is not known to keep entries in their places, the dimensions that are longer for more
    samples count them. Without it, or where the two passes part, dimension 0 is held to do so if n
    divides its length. sample_alone: the one sample of which every statistic is to be made; what
    comes out for it is what would come out without the others.
    """

    def __init__(
        self, n: int, reference: StatisticsWatch | None = None, *, sample_alone: int | None = None
    ):
        super().__init__()
        self._sample_alone = sample_alone
        self._n, self._session = n, object()
        self._reference = () if reference is None else tuple(reference.log)
        self._reference_n = n if reference is None else reference._n
        self.log: list[tuple[str, tuple[Any, ...]]] = []
        self.depends_on_dimensions = False
        """Whether any operator could have made a statistic, had dimensions counted samples."""
        self.leaves = False
        """Whether a number of samples leaves for Python, and may decide there what is run."""
        self._numbers_of_loops: dict[int, Tensor] = {}
        """`id` -> what loops over tensors go through, if these are single numbers."""
        self.operator: str | None = None
        """The first operator in which a statistic meets a sample."""

    @property
    def operators(self) -> list[str]:
        """The names of the operators that took samples, in order."""
        return [name for name, _ in self.log]

    def mark(self, value: Any) -> Any:
        """Say that a tensor holds the numbers of samples, if it has as many rows."""
        if isinstance(value, Tensor) and value.dim() and len(value) == self._n:
            mark(value).statistic = self._session, SAMPLE, front_owners(self._n, value)
        return value

    def _read(self, tensor: Tensor) -> str | None:
        statistic = marks_of(tensor).statistic
        return statistic[1] if statistic is not None and statistic[0] is self._session else None

    def _owners(self, tensor: Tensor) -> Tensor | None:
        """The sample of each entry of a tensor that holds samples, where it is known.

        Entries of nobody count as those of a sample, where no other has any beside them.
        """
        owners = self._owners_or_nobody(tensor)
        return None if owners is None else compact(owners)

    def _owners_or_nobody(self, tensor: Tensor) -> Tensor | None:
        """The sample of each entry, or nobody where it is made of none."""
        statistic = marks_of(tensor).statistic
        return statistic[2] if statistic is not None and self._read(tensor) == SAMPLE else None

    def _steers(self, index: Any) -> bool:
        """Whether a statistic says which entries are taken; single numbers leave (`steering`)."""
        return any(
            x.dim() > 0 and id(x) not in self._numbers_of_loops and self._read(x) == STATISTIC
            for x in tensors_among(index)
        )

    def finish(self, outputs: Sequence[Tensor]) -> bool:
        """Return whether samples may depend on others. outputs: what the pass ended with."""
        if self.operator is None:
            outputs_with_rows = (x for x in outputs if x.dim() and len(x) == self._n)
            if any(self._read(x) == STATISTIC or self._is_displaced(x) for x in outputs_with_rows):
                self.operator = "output"
        return self.operator is not None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator, and mark what it makes."""
        kwargs = kwargs or {}
        name = name_of(func)
        # The statistic of one sample alone is what the others must not change.
        if self._sample_alone is not None and name in REDUCING:
            args = self._of_one(name, args, kwargs)
        out = func(*args, **kwargs)
        # Tensors that are still under `vmap` (`vmap/vmapped`) are others than those with marks.
        if is_transforming() and not (tells_of_row(func) and not isinstance(out, Tensor)):
            self.operator = self.operator or "vmap"
        # Of what follows no mode need know that sees what the model runs.
        with torch._C.DisableTorchFunction():
            self._look_at(name, func, args, kwargs, out)
        return out

    def follow(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """Take note of an operator that has run elsewhere. out: what it has made."""
        with torch._C.DisableTorchFunction():
            self._look_at(name_of(func), func, args, kwargs, out)

    def dimension_of_samples(self, tensor: Tensor) -> int | None:
        """Return the one dimension whose entry i is of sample i; None where that is not known."""
        owners = self._owners(tensor)
        if owners is None or owners.dim() != tensor.dim():
            return None
        counting = counting_dimensions(owners)
        if len(counting) != 1:
            return None
        in_order = torch.equal(owners.flatten(), torch.arange(self._n, device=owners.device))
        return counting.pop() if in_order else None

    def _look_at(
        self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], out: Any
    ) -> None:
        """Take note of an operator that has run, and mark what it has made."""
        operands = tensors_among((args, kwargs))
        marks = [self._read(x) for x in operands]
        # Constants and weights meet each other all the time; they say nothing of samples.
        if not any(marks):
            return
        shapes = tuple(tuple(x.shape) for x in operands)
        place = len(self.log)
        self.log.append((name, shapes))
        if name in LEAVING or name in UNREADABLE or name in CREATING:
            self.leaves = True
            return
        if name == "unbind":
            self._numbers_of_loops |= {id(x): x for x in out if x.numel() == 1}
        kind = self._kind_of(name, args, kwargs, operands, marks, place, out)
        depends = self._try_operator(name, func, args, kwargs, operands, marks, out, kind)
        if kind is not None:
            output = args[0] if out is None and args else out  # writes of entries return nothing
            for position, tensor in enumerate(tree_flatten(output)[0]):
                if isinstance(tensor, Tensor):
                    owners = None
                    if depends is not None:
                        attempt = depends.pop(0)
                        kind, owners = (STATISTIC if attempt.mixes else SAMPLE), attempt.owners
                    elif kind == SAMPLE:
                        several = position if isinstance(out, (tuple, list)) else None
                        owners = self._follow(name, func, args, kwargs, tensor, several)
                    mark(tensor).statistic = self._session, kind, owners

    def _try_operator(
        self, name: str, func: Any, args: Any, kwargs: Any, operands: list[Tensor],
        marks: list[Any], out: Any, kind: str | None,
    ) -> list[Dependence] | None:  # fmt: skip
        """On whose entries what an operator makes depends, if its name does not tell."""
        if kind != SAMPLE or STATISTIC in marks or is_understood(name) or name in KNOWN_MEANING:
            return None
        of_all = [
            (x, kind, self._owners(x) if kind else None)
            for x, kind in zip(operands, marks, strict=True)
        ]
        pairs = [(x, owner) for x, kind, owner in of_all if kind]
        with_owners = [(x, owners) for x, owners in pairs if owners is not None]
        if (
            len(with_owners) < len(pairs)
            or len({int(i) for _, o in with_owners for i in o.flatten()}) < 2
        ):
            return None
        owners = [of_one for _, of_one in with_owners]
        apart = keeps_apart(name, args, kwargs, owners, out)
        if apart is None:
            of_operands = [owner for *_, owner in of_all]
            apart = of_products(name, args, kwargs, operands, of_operands, out)
        sequences = [apart] if apart is not None else of_sequences(name, args, owners, out)
        if sequences is not None:
            return [Dependence(False, one) for one in sequences]
        # Whole numbers that say where the numbers of others are have an order of their own.
        has_floats = any(x.is_floating_point() or x.is_complex() for x, _ in with_owners)
        if not has_floats and (name in LOOKING_UP or name == NAMELESS):
            return None
        with torch._C._EnableTorchFunction():  # it may be made of others, or of faulty ones
            return try_dependence(func, args, kwargs, with_owners, out)

    def _is_displaced(self, output: Tensor) -> bool:
        """Whether rows of an output are known to belong to other samples than their places.

        A row of nobody, as the loss of a sample without a label, belongs to no other sample.
        """
        owners = self._owners(output)
        if owners is None or counting_dimensions(owners) != {0}:
            return False
        in_front = front_owners(self._n, owners)
        return bool(((owners != in_front) & (owners != NOBODY)).any())

    def _follow(
        self, name: str, func: Any, args: Any, kwargs: Any, out: Tensor, place: int | None
    ) -> Tensor | None:
        """The owners of what an operator has made; None where they are not known."""
        operands = [
            (x, self._owners_or_nobody(x))
            for x in tensors_among((args, kwargs))
            if self._read(x) == SAMPLE
        ]
        if name in TYPING:  # what the others hold is not looked at
            operands = operands[:1]
        with_owners = [(x, owners) for x, owners in operands if owners is not None]
        if not operands or len(with_owners) < len(operands):
            return None
        reduces = name in REDUCING and not is_of_two(name, args[1:], kwargs)
        if reduces and len(operands) == 1 and name not in REARRANGING:
            dims = dimensions_of(name, args, kwargs, operands[0][0].dim())
            return reduced_owners(compact(with_owners[0][1]), dims, out)
        return owners_of_output(name, func, args, kwargs, with_owners, out, place)

    def _of_one(self, name: str, args: Any, kwargs: Any) -> Any:
        """The arguments of an operator that reduces samples, with those of one in all places."""
        entries = args[0] if args else None
        if not isinstance(entries, Tensor) or self._read(entries) is None or not entries.dim():
            return args
        dims = dimensions_of(name, args, kwargs, entries.dim())
        owners = self._owners(entries)
        if owners is not None:
            entries_of_sample = entries_of_one(entries, owners, dims, self._sample_alone or 0)
        elif len(entries) % self._n or not (dims is None or 0 in dims):
            return args
        else:
            rows_of_samples = entries.reshape(self._n, -1, *entries.shape[1:])
            entries_of_sample = (
                rows_of_samples[self._sample_alone]
                .expand_as(rows_of_samples)
                .reshape(entries.shape)
            )
        mark(entries_of_sample).statistic = marks_of(entries).statistic
        return (entries_of_sample, *args[1:])

    def _kind_of(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        operands: list[Tensor],
        marks: list[Any],
        place: int,
        out: Any,
    ) -> str | None:
        if name == "__getitem__":  # an index chooses; what it is made of is not in the entries
            if self._steers(args[1:]):
                self.operator = self.operator or name
            return marks[0] if operands and operands[0] is args[0] else None
        if name in TYPING:
            return marks[0] if name.endswith(("_as", "to")) else None
        if STATISTIC in marks:
            if SAMPLE not in marks:
                return STATISTIC
            self.operator = self.operator or name
            return SAMPLE
        owners = [self._owners(x) for x, mark in zip(operands, marks, strict=True) if mark]
        owners_of_all = [x for x in owners if x is not None]
        if len(owners_of_all) == len(owners):
            kind = kind_by_owners(name, args, kwargs, operands, marks, owners_of_all, out)
            if kind is not None:
                return kind
        return self._kind_by_length(name, args, kwargs, operands, marks, place)

    def _kind_by_length(
        self,
        name: str,
        args: Any,
        kwargs: Any,
        operands: list[Tensor],
        marks: list[Any],
        place: int,
    ) -> str:
        """The kind of what an operator makes of tensors of which lengths alone are known."""
        if name in SEARCHING:
            return STATISTIC  # no length tells whose table it is
        both = len(operands) == 2 and marks == [SAMPLE, SAMPLE]
        spread = both and (name in CROSSING or operands[0].shape != operands[1].shape)
        if spread or name in REDUCING or name == "grid_sample":
            self.depends_on_dimensions = True
        counting = self._counting(name, operands, place)
        if name == "grid_sample" and counting[0] != {0}:
            return STATISTIC  # it takes entries from where samples say, of other samples as well
        if name in REDUCING and isinstance(args[0] if args else None, Tensor):
            dims = dimensions_of(name, args, kwargs, operands[0].dim())
            if marks[0] == SAMPLE and (dims is None or counting[0] & dims):
                return STATISTIC if operands[0].numel() else SAMPLE
        if name in CROSSING and both and operands[0].dim() <= 2 and operands[1].dim() <= 2:
            return STATISTIC
        if spread and crosses(operands, counting):
            return STATISTIC
        return SAMPLE

    def _counting(self, name: str, operands: list[Tensor], place: int) -> list[set[int]]:
        """Of each tensor, the dimensions that count samples."""
        if place < len(self._reference):
            before, shapes = self._reference[place]
            same = len(shapes) == len(operands) and all(
                len(a) == x.dim() for a, x in zip(shapes, operands, strict=True)
            )
            if before == name and same:
                return [self._growing(a, x.shape) for a, x in zip(shapes, operands, strict=True)]
            self._reference = ()  # the passes part here
        return [{0} if x.dim() and len(x) % self._n == 0 else set() for x in operands]

    def _growing(self, before: Sequence[int], now: Sequence[int]) -> set[int]:
        """The dimensions that are as many times longer as there were more samples."""
        pairs = enumerate(zip(before, now, strict=True))
        return {d for d, (a, b) in pairs if a != b and a * self._n == b * self._reference_n}
