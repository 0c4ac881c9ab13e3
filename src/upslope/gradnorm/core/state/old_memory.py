"""A watch for operators that read the memory of a tensor for which another stands by now.

Where a pass has written a buffer, the next one gets another tensor in its place. Whoever holds the
first one where the engine cannot see it, in a closure say, would go on reading the old numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OldMemoryWatch(TorchFunctionMode):
    """Sees whether an operator is given memory that should not be read any more.

    addresses: those of its storages.
    """

    def __init__(self, addresses: Iterable[int]):
        super().__init__()
        self._addresses = frozenset(addresses)
        self.read: set[int] = set()
        """The addresses that were."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator, and take note of what memory it is given."""
        kwargs = kwargs or {}
        # What only asks for a tensor's shape or type reads no number of it.
        if getattr(func, "__name__", "") != "__get__":
            self._look((*args, *kwargs.values()))
        return func(*args, **kwargs)

    def _look(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, (list, tuple)):
                self._look(value)
            elif isinstance(value, Tensor) and value.layout == torch.strided:
                try:
                    address = value.untyped_storage().data_ptr()
                except (RuntimeError, NotImplementedError):  # a tensor of `vmap` has none
                    continue
                if address in self._addresses:
                    self.read.add(address)
