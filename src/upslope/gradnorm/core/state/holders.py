"""Contents of dicts, lists, sets, arrays and hooks of modules, to be put back after a pass.

`containers` lists them, `model_state` asks for them before each pass.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

from torch import Tensor, nn

_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_pre_hooks",
    "_backward_hooks",
)  # fmt: skip
"""The attributes in which PyTorch keeps the hooks that a pass runs, or may install."""


class Holder:
    """A dict, and the entries that it held.

    container: the dict; of the classes below, what else they put back.
    """

    def __init__(self, container: Any):
        self.container = container
        self._keys, self._values = self._entries()
        self._values_to_be = self._values

    def expect(self, instead: Callable[[Any], Any]) -> None:
        """Expect other values from now on. instead: what stands for each that it held."""
        self._values_to_be = [instead(value) for value in self._values]

    def is_as_before(self) -> bool:
        """Whether it holds, by identity, what it held at first."""
        keys, values = self._entries()
        return _are(values, self._values) and _are(keys, self._keys)

    def put_back(self) -> None:
        """Let it hold what is expected, if a pass has changed it."""
        keys, values = self._entries()
        if not (_are(values, self._values_to_be) and _are(keys, self._keys)):
            self._write(keys)

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return list(self.container), list(self.container.values())

    def _write(self, keys: Sequence[Any]) -> None:
        if not _are(keys, self._keys):
            self.container.clear()
        for key, value in zip(self._keys, self._values_to_be, strict=True):
            self.container[key] = value


class HolderOfDicts(Holder):
    """Many dicts, and the entries that they held.

    A module has four of its own, and no pass changes nearly all of them: one question for all.
    """

    def __init__(self, dicts: list[dict[Any, Any]]):
        self._sizes = list(map(len, dicts))
        # Three in four are empty, and their size says all of them.
        self._nonempty = [dictionary for dictionary in dicts if dictionary]
        self._views = [dictionary.values() for dictionary in self._nonempty]
        super().__init__(dicts)
        self._has_names_alone = all(type(key) is str for key in self._keys)
        self._addresses = self._addresses_to_be = addresses_of(tuple(self._values))

    def expect(self, instead: Callable[[Any], Any]) -> None:
        """Expect other values from now on; see `Holder`."""
        super().expect(instead)
        self._addresses_to_be = addresses_of(tuple(self._values_to_be))

    def is_as_before(self) -> bool:
        """Whether each dict holds, by identity, what it held at first."""
        return self._holds(self._addresses)

    def put_back(self) -> None:
        """Let each dict hold what is expected, if a pass has changed it."""
        if self._holds(self._addresses_to_be):
            return
        sizes = list(map(len, self.container))
        starts = accumulate(self._sizes, initial=0)
        places = list(zip(self.container, starts, self._sizes, sizes, strict=False))
        # A pass that changes anything adds an attribute, as a rule: the sizes tell where.
        for dictionary, start, size, size_now in places:
            if size_now != size:
                self._put_back_into(dictionary, slice(start, start + size))
        if not self._holds(self._addresses_to_be):
            for dictionary, start, size, _ in places:
                self._put_back_into(dictionary, slice(start, start + size))

    def _put_back_into(self, dictionary: dict[Any, Any], part: slice) -> None:
        """Let a dict hold what is expected. part: where its entries are among those of all."""
        keys_to_be, values_to_be = self._keys[part], self._values_to_be[part]
        same = _are(list(dictionary), keys_to_be)
        if not (same and _are(list(dictionary.values()), values_to_be)):
            if not same:
                dictionary.clear()
            dictionary.update(zip(keys_to_be, values_to_be, strict=True))

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        values = chain.from_iterable(self._views)
        return list(chain.from_iterable(self._nonempty)), list(values)

    def _holds(self, addresses_to_be: bytes) -> bool:
        # Asked of every entry of a model twice per call: without a loop of Python's.
        return (
            self._sizes == list(map(len, self.container))
            and addresses_of(tuple(chain.from_iterable(self._views))) == addresses_to_be
            and self._has_keys()
        )

    def _has_keys(self) -> bool:
        keys = chain.from_iterable(self._nonempty)
        # Names that are equal are the same; of other keys only their identity is known.
        if self._has_names_alone:
            return list(keys) == self._keys
        return all(map(operator.is_, keys, self._keys))


def _are(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two sequences are of the same objects: tensors have no other equality."""
    return len(first) == len(second) and all(map(operator.is_, first, second))


def addresses_of(objects: tuple[Any, ...]) -> bytes:
    """Return the addresses of objects, the `id` of each, in one piece: they are compared at once.

    Who keeps them must keep the objects: another one may come to lie where one has gone.
    """
    # A tuple has the pointers to its entries behind its header.
    return ctypes.string_at(id(objects) + tuple.__basicsize__, _POINTER * len(objects))


_POINTER = ctypes.sizeof(ctypes.c_void_p)


class HolderOfScript(Holder):
    """The buffers or parameters of a compiled script."""

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        pairs = list(self.container.items())
        return [key for key, _ in pairs], [value for _, value in pairs]

    def _write(self, keys: Sequence[Any]) -> None:  # noqa: ARG002
        for key, value in zip(self._keys, self._values_to_be, strict=True):
            self.container[key] = value


class HolderOfList(Holder):
    """A list or a deque, and what it held."""

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), list(self.container)

    def _write(self, keys: Sequence[Any]) -> None:  # noqa: ARG002
        self.container.clear()
        self.container.extend(self._values_to_be)


class HolderOfSets(Holder):
    """Many sets, and the entries that they held: PyTorch keeps one for each module."""

    def __init__(self, sets: list[set[Any]]):
        super().__init__(sets)
        self._copies = list(map(set, sets))

    def is_as_before(self) -> bool:
        """Whether they hold what they held at first."""
        return bool(self.container == self._copies)

    def put_back(self) -> None:
        """Let them hold what is expected, if a pass has changed one."""
        if self.container == self._copies:
            return
        for entries, copy in zip(self.container, self._copies, strict=True):
            if entries != copy:
                entries.clear()
                entries.update(copy)

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), []


class HolderOfArray(Holder):
    """An array of NumPy, and the numbers that it held."""

    def __init__(self, array: Any):
        super().__init__(array)
        self._copy = array.copy()

    def put_back(self) -> None:
        """Let it hold what is expected, if a pass has changed it."""
        if self.container.tobytes() != self._copy.tobytes():
            self.container[...] = self._copy

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), []


class HolderOfHooks(Holder):
    """The hooks and the classes of modules.

    A pass may install hooks, and remember by an attribute that it has: where that is put back, they
    must go as well, or the next pass installs them twice. A parametrization changes the class.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        everything = (vars(module).get(name) for module in modules for name in _HOOKS)
        super().__init__([hooks for hooks in everything if hooks is not None])
        # Nearly all are empty, and this is asked twice per call.
        self._empty = [hooks for hooks in self.container if not hooks]
        self._copies = [(hooks, dict(hooks)) for hooks in self.container if hooks]
        self._modules, self._classes = modules, list(map(type, modules))

    def is_as_before(self) -> bool:
        """Whether modules have the hooks and the classes that they had at first."""
        return (
            not any(self._empty)
            and list(map(type, self._modules)) == self._classes
            and all(_is_filled(hooks, copy) for hooks, copy in self._copies)
        )

    def put_back(self) -> None:
        """Let modules have the hooks and the classes that they had."""
        if any(self._empty):
            for hooks in self._empty:
                hooks.clear()
        for hooks, copy in self._copies:
            _fill(hooks, copy)
        if list(map(type, self._modules)) != self._classes:
            for module, kind in zip(self._modules, self._classes, strict=True):
                module.__class__ = kind

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), []


class HolderOfTensorHooks(Holder):
    """The hooks on the gradients of tensors. A pass that registers one, and remembers that it has,
    would change the gradient once more in each of ours."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__(list(tensors))
        self._copies = {
            id(tensor): [dict(hooks or {}) for hooks in _hooks_of(tensor)]
            for tensor in self.container
            if any(_hooks_of(tensor))
        }

    def is_as_before(self) -> bool:
        """Whether no tensor has hooks, nor had any."""
        return not (self._copies or have_hooks(self.container))

    def put_back(self) -> None:
        """Let tensors have the hooks that they had."""
        if self.is_as_before():
            return
        for tensor in self.container:
            hooks = _hooks_of(tensor)
            if hooks[0] or hooks[1] or id(tensor) in self._copies:
                for hook_dict, before in zip(
                    hooks, self._copies.get(id(tensor), ({}, {})), strict=True
                ):
                    if hook_dict is not None:
                        _fill(hook_dict, before)

    def _entries(self) -> tuple[Sequence[Any], list[Any]]:
        return (), []


_HOOKS_OF_GRADIENT = operator.attrgetter("_backward_hooks")
_HOOKS_OF_SUM = operator.attrgetter("_post_accumulate_grad_hooks")


def have_hooks(tensors: Collection[Tensor]) -> bool:
    """Whether some tensor has a hook on its gradient, or on what is accumulated of it."""
    return any(map(_HOOKS_OF_GRADIENT, tensors)) or any(map(_HOOKS_OF_SUM, tensors))


def _hooks_of(tensor: Tensor) -> tuple[dict[int, Any] | None, dict[int, Any] | None]:
    """The hooks on a gradient, and those that run once it is accumulated."""
    return tensor._backward_hooks, tensor._post_accumulate_grad_hooks


def _fill(dictionary: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    """Let a dict hold what it held before, in that order."""
    if not _is_filled(dictionary, before):
        dictionary.clear()
        dictionary.update(before)


def _is_filled(dictionary: dict[Any, Any], before: Mapping[Any, Any]) -> bool:
    """Whether a dict holds what it held before, in that order."""
    return list(dictionary.items()) == list(before.items())
