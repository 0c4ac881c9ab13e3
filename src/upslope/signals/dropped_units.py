"""T passes of a network in each of which some units are dropped, the same ones for every sample.

Three ways, from fast to slow, give the same numbers:

1. what lies before the first dropout layer runs once, and the T passes as one batch from there on;
2. T whole forwards as one batch, where a branch goes around that layer (a residual block);
3. one sample and one pass at a time, where a dropout layer gets several samples folded into one
   dimension (windows, patches), so that which row is whose cannot be told.

Where the samples are at a layer is read off its shapes for one sample and for two, unless they
are in front beyond doubt: sequence models have them in dimension 1.

Called by `mc_dropout`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.tasks.base import Task

INPUT_ROWS = 2**10
"""Most rows, samples times passes, of whole forwards at once."""

CHANNELWISE: dict[type[nn.Module], bool] = {
    nn.Dropout: False,
    nn.Dropout1d: True,
    nn.Dropout2d: True,
    nn.Dropout3d: True,
}
"""Kind of layer -> whether it drops all positions of a channel, dimension 1, together."""

Hook = Callable[[nn.Module, int, Tensor], Tensor]
"""What a dropout layer puts out: of the layer, its place among them, and its output in eval mode.
"""


class _SamplesUnclearError(Exception):
    """A dropout layer got a tensor whose samples may lie in another dimension than the first."""


@dataclass(frozen=True)
class DroppedUnits:
    """A network in eval mode, T sets of units to drop, and the task that reads its logits.

    The masks depend on the seed, on the place of the layer among the dropout layers and on the
    shape of a sample there.
    """

    model: nn.Module
    task: Task
    passes: int
    seed: int

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (n T, C, ...) of samples (n, ...), sample by sample.

        Raises:
            ModelError: no dropout layer drops anything, or none of them runs.
        """
        with suppress(_SamplesUnclearError):
            logits = self._behind_the_first(x)
            if logits is not None:
                return logits
        dims = self._dimensions_of_samples(x)
        if dims is not None:
            with suppress(_SamplesUnclearError):  # other shapes than those of the first sample
                logits = self._behind_the_first(x, dims)
                return self._from_the_start(x, dims) if logits is None else logits
        return self._one_by_one(x)

    @property
    def layers(self) -> list[nn.Module]:
        """The dropout layers that drop something.

        Raises:
            ModelError: there is none.
        """
        layers = [m for m in self.model.modules() if type(m) in CHANNELWISE and _rate(m) > 0]
        if not layers:
            raise ModelError(
                f"Expected {type(self.model).__name__} to have a dropout layer that drops "
                "something but none of its modules is an nn.Dropout with p above 0. Build the "
                "network with dropout, as with `--set model.dropout=0.5`; functional dropout "
                "cannot be seen."
            )
        return layers

    def _behind_the_first(self, x: Tensor, dims: Sequence[int] | None = None) -> Tensor | None:
        """Return the logits of n T rows; None where a branch past the dropout layer, which still
        has n rows, meets the T passes of the other.

        dims: the dimension of the samples at each call of a dropout layer; None: in front.
        """
        n = len(x)
        calls = 0

        def drop(layer: nn.Module, place: int, output: Tensor) -> Tensor:
            nonlocal calls
            dim = 0 if dims is None else _dimension(dims, calls)
            if dims is None:
                _require_in_front(output, n, n * self.passes, is_first=calls == 0)
            calls += 1
            if output.shape[dim] == n:
                output = output.repeat_interleave(self.passes, dim=dim)
            return self._drop_units(layer, place, output, dim, n * self.passes)

        with self._with_hook(drop):
            try:
                logits = self.task.logits(self.model(x))
            # Branches of n and of n T rows do not fit; a model may say so in its own way. What is
            # wrong with the model itself, the whole forwards tell.
            except _SamplesUnclearError:
                raise
            except Exception:
                return None
        if not calls:
            raise ModelError(
                f"Expected {type(self.model).__name__} to run one of its dropout layers but it ran "
                "none, so that all passes would be the same. Call the nn.Dropout module itself; "
                "functional dropout, with the rate of a layer too, cannot be seen."
            )
        return logits if len(logits) == n * self.passes else None

    def _from_the_start(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Return the same at the price of T whole forwards. dims: as of `_behind_the_first`."""
        return torch.cat(
            [
                self._whole_forward(part.repeat_interleave(self.passes, dim=0), dims)
                for part in x.split(max(1, INPUT_ROWS // self.passes))  # type: ignore[no-untyped-call]
            ]
        )

    def _whole_forward(self, rows: Tensor, dims: Sequence[int]) -> Tensor:
        """Return the logits of n T rows, of which each pass drops its own units."""
        calls = 0

        def drop(layer: nn.Module, place: int, output: Tensor) -> Tensor:
            nonlocal calls
            dim = _dimension(dims, calls)
            calls += 1
            return self._drop_units(layer, place, output, dim, len(rows))

        with self._with_hook(drop):
            return self.task.logits(self.model(rows))

    def _one_by_one(self, x: Tensor) -> Tensor:
        """Return the same by a forward for each sample and pass, wherever the samples are."""
        masks: dict[Any, Tensor] = {}

        def drop(layer: nn.Module, place: int, output: Tensor, number: int) -> Tensor:
            key = place, output.shape
            if key not in masks:
                masks[key] = self._masks(layer, place, output)
            return output * masks[key][number]

        logits = []
        for sample in x.split(1):  # type: ignore[no-untyped-call]
            for number in range(self.passes):
                with self._with_hook(partial(drop, number=number)):
                    logits.append(self.task.logits(self.model(sample)))
        return torch.cat(logits)

    def _dimensions_of_samples(self, x: Tensor) -> list[int] | None:
        """Return the dimension of the samples at each call of a dropout layer, read off the shapes
        for one sample and for two; None where one has no dimension that counts them alone."""
        shapes: list[list[tuple[int, ...]]] = [[], []]

        def note(_layer: nn.Module, _place: int, output: Tensor, rows: int) -> Tensor:
            shapes[rows - 1].append(tuple(output.shape))
            return output

        for rows in (1, 2):
            with self._with_hook(partial(note, rows=rows)):
                self.model(x[:1].repeat_interleave(rows, dim=0))
        of_one, of_two = shapes
        if len(of_one) != len(of_two):
            return None
        dims = [_growing_dimension(*pair) for pair in zip(of_one, of_two, strict=True)]
        return None if None in dims else [dim for dim in dims if dim is not None]

    def _drop_units(
        self, layer: nn.Module, place: int, output: Tensor, dim: int, count: int
    ) -> Tensor:
        """Return the output of a layer with units dropped, of n T rows in dimension `dim`.

        count: n T.

        Raises:
            _SamplesUnclearError: there are not so many rows.
        """
        rows = output.movedim(dim, 0)
        if len(rows) != count:
            raise _SamplesUnclearError
        of_passes = rows.reshape(-1, self.passes, *rows.shape[1:])
        masks = self._masks(layer, place, rows[:1])[:, 0]
        return (of_passes * masks).flatten(0, 1).movedim(0, dim)

    def _masks(self, layer: nn.Module, place: int, sample: Tensor) -> Tensor:
        """Return what a sample's numbers at a layer are multiplied by in each pass, (T, ...).

        The same for every batch. sample: of which the shape counts.
        """
        shape = list(sample.shape)
        if CHANNELWISE[type(layer)]:
            shape[2:] = [1] * len(shape[2:])
        rng = torch.Generator().manual_seed(self.seed + 7919 * place)
        keep = 1 - _rate(layer)
        masks = torch.rand(self.passes, *shape, generator=rng)
        return (masks < keep).to(sample) / max(keep, 1e-12)

    @contextmanager
    def _with_hook(self, hook: Hook) -> Iterator[None]:
        """Have every dropout layer put out what `hook` makes of its output."""

        def at(place: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
            return lambda layer, _args, output: hook(layer, place, output)

        handles = [m.register_forward_hook(at(i)) for i, m in enumerate(self.layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _require_in_front(output: Tensor, n: int, rows: int, *, is_first: bool) -> None:
    """Raise _SamplesUnclearError unless dimension 0 counts the samples beyond doubt.

    n: samples. rows: of all passes. is_first: whether no layer has dropped anything yet: were the
    samples elsewhere then, the logits would come out with another number of rows.
    """
    if is_first and len(output) == n:
        return
    # Of a single sample a branch of other rows would be spread over all passes unseen.
    if is_first or n == 1 or output.dim() > 2 or len(output) not in (n, rows):
        raise _SamplesUnclearError


def _dimension(dims: Sequence[int], call: int) -> int:
    """Return the dimension of the samples at a call; more calls than were noted are unclear."""
    if call >= len(dims):
        raise _SamplesUnclearError
    return dims[call]


def _growing_dimension(one: Sequence[int], two: Sequence[int]) -> int | None:
    """Return the dimension that is 1 for one sample and 2 for two, if all others are the same."""
    if len(one) != len(two):
        return None
    growing = [dim for dim, sizes in enumerate(zip(one, two, strict=True)) if len({*sizes}) > 1]
    if len(growing) != 1 or (one[growing[0]], two[growing[0]]) != (1, 2):
        return None
    return growing[0]


def _rate(layer: nn.Module) -> float:
    return float(layer.p)  # type: ignore[arg-type]
