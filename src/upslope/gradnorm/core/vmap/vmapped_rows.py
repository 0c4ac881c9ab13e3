"""Which tensors of an operator under `torch.vmap` have the mapped dimension, once it is in front.

Made by `vmapped` for each operator, and asked by its rule (`vmapped_operators`, `vmapped_shapes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


class Rows:
    """Which tensors of an operator have rows in dimension 0.

    count: how many rows there are. places, values: the arguments that have them, and all arguments.
    """

    def __init__(self, count: int, places: Iterable[int], values: Sequence[Any]):
        self.count = count
        self._ids = {id(values[i]) for i in places}

    def has(self, tensor: Any) -> bool:
        """Whether a tensor has rows."""
        return id(tensor) in self._ids

    def rank(self, tensor: Tensor) -> int:
        """Return the number of dimensions of one row, or of a tensor without rows."""
        return tensor.dim() - self.has(tensor)

    def lift(self, tensor: Tensor, rank: int) -> Tensor:
        """Return a tensor that broadcasts beside rows of so many dimensions."""
        for _ in range(rank - self.rank(tensor) if self.has(tensor) else 0):
            tensor = tensor.unsqueeze(1)
        return tensor

    def is_first_alone(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the first argument has rows, and no other one."""
        others = (*args[1:], *kwargs.values())
        return bool(args) and self.has(args[0]) and not any(map(self.has, others))


Rule = Callable[[Rows, Callable[..., Any], list[Any], dict[str, Any]], Any]
"""What runs an operator on whole tensors: it takes `Rows`, the operator and its arguments."""
