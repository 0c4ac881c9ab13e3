"""The memory of the tensors that a model keeps: copies of it, and tensors anew with its values.

Tensors may share memory: one buffer in two modules, a view of another, an alias in an attribute,
the weights of a recurrence in one block. A `Stretch` is one piece of memory with all tensors that
look at it, so that one copy serves them all. A model has a hundred buffers and parameters, most of
them small: one question for all of them costs less than one for each. Used by `model_state`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ALIGNMENT = 16
"""Bytes to whose multiples a stretch begins, so that it holds numbers of any type in line."""


class _Place(NamedTuple):
    """Where a tensor looks in memory, and how."""

    pointer: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Place:
        return cls(tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


@dataclass(slots=True)
class _Looking:
    """A tensor that looks at a stretch: the model's own, and the one that stands for it now."""

    original: Tensor
    place: _Place
    first_version: int | None
    now: Tensor
    now_place: _Place
    version: int | None

    @classmethod
    def of(cls, tensor: Tensor) -> _Looking:
        place, version = _Place.of(tensor), _version(tensor)
        return cls(tensor, place, version, tensor, place, version)

    def has_moved(self) -> bool:
        """Whether it was written to in a way that PyTorch counts, or was given other memory."""
        now, place = self.now, self.now_place
        # Asked of each tensor of a model several times per call: no `_Place` is made.
        return (
            now.data_ptr() != place.pointer
            or _version(now) != self.version
            or now.shape != place.shape
            or now.stride() != place.stride
            or now.dtype != place.dtype
        )

    def become(self, tensor: Tensor) -> None:
        self.now, self.now_place, self.version = tensor, _Place.of(tensor), _version(tensor)


class Stretch:
    """A stretch of memory, and the tensors of the model's state that look at it.

    tensors: the tensors, all in one storage.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.looking = [_Looking.of(tensor) for tensor in tensors]
        spans = [_span(t) for t in tensors]
        self.start = min(start for start, _ in spans) // _ALIGNMENT * _ALIGNMENT
        storage = self.looking[0].original.untyped_storage()
        size = max(end for _, end in spans) - self.start
        self.own = self.now = _bytes(storage, self.start, size, self.looking[0].original.device)
        self.copy: Tensor | None = None
        """A copy of the bytes that it held, and of other stretches' beside them."""
        self.copy_start = 0
        self.parameters = [t for t in tensors if isinstance(t, nn.Parameter)]

    @property
    def before(self) -> Tensor | None:
        """The bytes that it held, if they were copied."""
        return None if self.copy is None else self.copy.narrow(0, self.copy_start, len(self.own))

    @property
    def address(self) -> int:
        """Where the storage of the model's own tensors is."""
        return self.own.untyped_storage().data_ptr()

    @property
    def is_exchanged(self) -> bool:
        """Whether other tensors stand for those of the model."""
        return any(looking.now is not looking.original for looking in self.looking)

    def has_moved(self) -> bool:
        """Whether a tensor was written to in a way that PyTorch counts, or has other memory."""
        return any(looking.has_moved() for looking in self.looking)

    def was_written(self) -> bool:
        """Whether PyTorch counted a write to the memory that the model's own tensors had."""
        return any(_version(at.original) != at.first_version for at in self.looking)

    def has_other_values(self) -> bool:
        """Whether the bytes are others than those that were copied."""
        before = self.before
        return before is not None and not equal_bytes(self.now, before)

    def replace(self) -> dict[int, Tensor]:
        """Let new tensors, with a memory of their own, stand for those of the model.

        Not the same memory, which the graph of an earlier pass may hold. Parameters that require a
        gradient stay what they are, for they are known by identity: they look at the new memory.

        Returns the id of each tensor of the model, and what stands for it.
        """
        before = self.before
        assert before is not None
        self.now = before.clone()
        return {id(looking.original): self._look_at_now(looking) for looking in self.looking}

    def _look_at_now(self, looking: _Looking) -> Tensor:
        original = looking.original
        view = _look(self.now.untyped_storage(), looking.place, original, self.own.data_ptr())
        if isinstance(original, nn.Parameter):
            if original.requires_grad:
                original.data = view
                _set_version(original, looking.version)
                view = original
            else:
                view = nn.Parameter(view, requires_grad=False)
        elif original.requires_grad:
            view.requires_grad_()
        looking.become(view)
        return view

    def restore(self) -> None:
        """Let the tensors of the model look at their own memory, which holds what it held."""
        before = self.before
        if before is not None and not equal_bytes(self.own, before):
            self.own.copy_(before)
        self.now = self.own
        for looking in self.looking:
            original = looking.original
            if _Place.of(original) != looking.place:
                storage, base = self.own.untyped_storage(), self.own.data_ptr() - self.start
                original.data = _look(storage, looking.place, original, base)
            # Numbers that are the same bit for bit need not end a graph that the caller holds.
            _set_version(original, looking.first_version)
            looking.become(original)


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor is a plain stretch of memory: not sparse, lazy, conjugate or quantised."""
    try:
        plain = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
        signs = tensor.is_conj() or tensor.is_neg()
        return plain and not signs and tensor.numel() > 0 and tensor.data_ptr() != 0
    except (RuntimeError, ValueError, NotImplementedError, TypeError):  # a tensor of another kind
        return False


def stretches_of(tensors: Iterable[Tensor]) -> list[Stretch]:
    """Return the stretches of memory that tensors look at; all of them are such (`has_memory`)."""
    by_storage: dict[tuple[torch.device, int], list[Tensor]] = {}
    for tensor in tensors:
        key = tensor.device, tensor.untyped_storage().data_ptr()
        by_storage.setdefault(key, []).append(tensor)
    return [Stretch(group) for group in by_storage.values()]


def equal_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two stretches hold the same bits: NaN is itself, and zero is not minus zero.

    a, b: bytes, or long numbers.
    """
    if a.dtype == torch.int64:
        return torch.equal(a, b)
    # As long numbers, where they fit: eight times as fast.
    is_aligned = len(a) % 8 == 0 and a.data_ptr() % 8 == 0 and b.data_ptr() % 8 == 0
    return (
        torch.equal(a.view(torch.int64), b.view(torch.int64)) if is_aligned else torch.equal(a, b)
    )


_VERSION, _REQUIRES_GRAD = attrgetter("_version"), attrgetter("requires_grad")
_SHAPE_AND_TYPE = attrgetter("shape", "dtype")


class Looks:
    """The tensors that look at many stretches of memory, none of which was exchanged.

    A network has hundreds, and each call asks all of them: with no loop but over lists.
    """

    def __init__(self, stretches: Iterable[Stretch]):
        self._looking = [at for stretch in stretches for at in stretch.looking]
        self._tensors = [at.original for at in self._looking]
        self.parameters = [t for t in self._tensors if isinstance(t, nn.Parameter)]
        self._are_counted = not any(t.is_inference() for t in self._tensors)
        self._places = self._places_now()
        self._versions = self._versions_now()

    def are_of(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the same tensors, and the questions below say all of them.

        Of complex ones they do not: a tensor may look at the same numbers, but for their signs.
        """
        ids = {id(t) for t in self._tensors}
        return all(id(t) in ids and not t.is_complex() for t in tensors)

    def are_where_they_were(self) -> bool:
        """Whether all tensors look at the memory at which they looked, as they did."""
        return self._places_now() == self._places

    def start_anew(self) -> None:
        """Count the writes to these tensors from now on."""
        versions = self._versions_now()
        if versions != self._versions:
            self._versions = versions
            for at, version in zip(self._looking, versions, strict=True):
                at.first_version = at.version = version

    def have_moved(self) -> bool:
        """Whether PyTorch has counted a write, or some tensor looks elsewhere."""
        return self._versions_now() != self._versions or not self.are_where_they_were()

    def requires_grad(self) -> list[bool]:
        """Whether each of `parameters` requires a gradient."""
        return list(map(_REQUIRES_GRAD, self.parameters))

    def _versions_now(self) -> list[int | None]:
        return list(map(_VERSION if self._are_counted else _version, self._tensors))

    def _places_now(self) -> tuple[list[Any], ...]:
        tensors = self._tensors
        return (
            list(map(Tensor.data_ptr, tensors)),
            list(map(Tensor.stride, tensors)),
            list(map(_SHAPE_AND_TYPE, tensors)),
        )


class OddTensor:
    """A tensor without plain memory: sparse, nested, quantised. It is compared by its version."""

    def __init__(self, original: Tensor):
        self.original = self.now = original
        self._before = original.detach().clone()
        self._first = self._version = _version(original)

    def replace(self) -> dict[int, Tensor]:
        """Return what stands for it from now on, if it was written to."""
        if _version(self.now) == self._version:
            return {}
        self.now = self._before.clone()
        self._version = _version(self.now)
        return {id(self.original): self.now}

    def restore(self) -> None:
        """Let the tensor hold again what it held."""
        if _version(self.original) != self._first:
            self.original.copy_(self._before)
        self.now, self._version = self.original, _version(self.original)


def _version(tensor: Tensor) -> int | None:
    """How often PyTorch saw it written to; None for tensors of the inference mode."""
    return None if tensor.is_inference() else tensor._version


def _set_version(tensor: Tensor, version: int | None) -> None:
    if version is not None and not tensor.is_inference() and tensor._version != version:
        torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of its storage at which a tensor looks, and the one after the last."""
    width = tensor.element_size()
    start = int(tensor.storage_offset()) * width
    if tensor.is_contiguous():
        return start, start + tensor.numel() * width
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return start, start + (last + 1) * width


def _bytes(storage: torch.UntypedStorage, start: int, size: int, device: torch.device) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage, start, (size,), (1,))


def _look(storage: torch.UntypedStorage, place: _Place, like: Tensor, base: int) -> Tensor:
    """A tensor that looks at a storage as `like` did at its own. base: where that begins for it."""
    offset = (place.pointer - base) // place.dtype.itemsize
    empty = torch.empty(0, dtype=place.dtype, device=like.device)
    return empty.set_(storage, offset, place.shape, place.stride)


def exchange(value: Any, instead: Mapping[int, Tensor]) -> Any:
    """Return a value with other tensors in it: one itself, or those of a tuple.

    instead: `id` of a tensor -> what stands for it.
    """
    if isinstance(value, Tensor):
        return instead.get(id(value), value)
    if isinstance(value, tuple) and any(isinstance(item, (Tensor, tuple)) for item in value):
        items = [exchange(item, instead) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            make: Callable[[Iterable[Any]], Any] = getattr(value, "_make", type(value))
            return make(items)
    return value
