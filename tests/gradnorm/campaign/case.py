"""A case: a network, how to draw batches for it, and a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

PointwiseLoss = Callable[[Any, Any], Tensor]
"""From outputs and targets, samples in dimension 0, to one loss per sample."""


@dataclass(frozen=True)
class Batch:
    """Samples in dimension 0 of every tensor of `inputs` and `targets`.

    shared: positions or names of inputs that belong to no sample.
    """

    inputs: Any
    targets: Any = None
    shared: tuple[Any, ...] = ()

    @property
    def n(self) -> int:
        """The number of samples."""
        tree = self.inputs
        first = tree if isinstance(tree, Tensor) else next(x for _, x in self._items())
        while not isinstance(first, Tensor):
            first = next(iter(first.values() if isinstance(first, Mapping) else first))
        return first.shape[0]

    def _items(self) -> list[tuple[Any, Any]]:
        pairs = self.inputs.items() if isinstance(self.inputs, Mapping) else enumerate(self.inputs)
        return [(key, value) for key, value in pairs if key not in self.shared]

    def _shared(self) -> list[tuple[Any, Any]]:
        if isinstance(self.inputs, Tensor):
            return []
        pairs = self.inputs.items() if isinstance(self.inputs, Mapping) else enumerate(self.inputs)
        return [(key, value) for key, value in pairs if key in self.shared]

    def rows(self, index: list[int]) -> Batch:
        """The batch of these samples, in tensors of its own."""

        def take(tree: Any) -> Any:
            return tree_map_only(Tensor, lambda t: t[index].clone(), tree)

        if isinstance(self.inputs, Tensor):
            inputs = take(self.inputs)
        elif isinstance(self.inputs, Mapping):
            inputs = {k: v if k in self.shared else take(v) for k, v in self.inputs.items()}
        else:
            inputs = tuple(v if k in self.shared else take(v) for k, v in enumerate(self.inputs))
        return Batch(inputs, take(self.targets), self.shared)

    def with_row(self, i: int, other: Batch) -> Batch:
        """The other batch, which has as many samples, with this one's inputs but for sample i."""
        mine, spec = tree_flatten(self.inputs)
        theirs, _ = tree_flatten(other.inputs)
        shared = {id(x) for x in tree_flatten([v for _, v in self._shared()])[0]}
        leaves = []
        for own, row in zip(mine, theirs, strict=True):
            if isinstance(own, Tensor) and id(own) not in shared:
                own = own.clone()
                own[i] = row[i]
            leaves.append(own)
        return Batch(tree_unflatten(leaves, spec), other.targets, self.shared)

    def double(self) -> Batch:
        """The batch in float64."""

        def convert(t: Tensor) -> Tensor:
            return t.double() if t.is_floating_point() else t

        return Batch(
            tree_map_only(Tensor, convert, self.inputs),
            tree_map_only(Tensor, convert, self.targets),
            self.shared,
        )


def first_tensor(outputs: Any) -> Tensor:
    """The tensor that a readout looks at: the output, or its logits, or its first tensor."""
    if isinstance(outputs, Tensor):
        return outputs
    for name in ("logits", "last_hidden_state", "image_embeds", "embeds"):
        found = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(found, Tensor):
            return found
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return next(first_tensor(v) for v in values if v is not None)


def readout(outputs: Any, _: Any = None) -> Tensor:
    """A smooth loss in which every entry of the output has a weight of its own."""
    flat = first_tensor(outputs).flatten(1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten(1)
    generator = torch.Generator().manual_seed(7)
    weights = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64).to(flat)
    return torch.tanh(flat) @ weights + 0.5 * flat.square().mean(dim=1)


@dataclass(frozen=True)
class Case:
    """name: of the case, unique in its family. model: builds it, under a seed set beforehand.

    batch: from n to samples, drawn under a seed set beforehand. loss: pointwise, or the name of one
    of the library's losses. sizes: of the three batches. options: of `gradient_norms`. stateful:
    whether a pass changes what the next one computes. tolerance: relative, of the norms.
    """

    name: str
    family: str
    model: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss: PointwiseLoss | str = readout
    sizes: tuple[int, ...] = (4, 4, 3)
    training: bool = False
    stateful: bool = False
    tolerance: float = 1e-6
    double: bool = True
    in_suite: bool = True

    @property
    def title(self) -> str:
        """Family and name."""
        return f"{self.family}: {self.name}"

    def build(self, seed: int = 0) -> nn.Module:
        """The network, from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.model()
        return (model.double() if self.double else model).train(self.training)

    def draw(self, n: int, seed: int) -> Batch:
        """A batch of n, from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            batch = self.batch(n)
        return batch.double() if self.double else batch


def vectors(*shape: int) -> Callable[[int], Batch]:
    """Draws standard normal samples of this shape."""
    return lambda n: Batch(torch.randn(n, *shape))
