"""One forward pass of a model with its tape, and backward passes over it.

A `Recording` is made once per batch and can be asked for the squared norms of several losses:
they share the forward pass. What the first batch of a model shows about the places of its samples
(`layout`) is remembered for the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from upslope.errors import GradientNormError
from upslope.gradnorm.intercept import Interceptor
from upslope.gradnorm.layout import Inseparable, Layout, LayoutProbe, Samples, halves
from upslope.gradnorm.losses import Loss
from upslope.gradnorm.parts import Part, squared_norms
from upslope.gradnorm.tape import Tape
from upslope.gradnorm.weights import Weights, combined

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]

_layouts: WeakKeyDictionary[nn.Module, dict[Any, dict[int, Layout]]] = WeakKeyDictionary()


class NormListener:
    """Turns the gradients of a backward pass into squared norms, weight by weight."""

    def __init__(self, tape: Tape, n: int, layouts: Mapping[int, Layout], scratch: int):
        self.tape, self.n, self.layouts, self.scratch = tape, n, layouts, scratch
        self.squares: dict[str, Tensor] = {}
        self._pending: dict[str, list[tuple[Tensor, Part]]] = {}

    def hear(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """See `Listener`."""
        samples = Samples(self.n, self.layouts.get(index, Layout()))
        weights = self.tape.weights
        for weight, part in self.tape.kernels[index].parts(g, *inputs, samples=samples):
            names = weights.sources(weight)
            if len(names) == 1 and self.tape.uses_of[names[0]] == 1 and weights.isometric(weight):
                self.squares[names[0]] = part.sqnorm(self.scratch)
            else:
                for name in names:
                    self._pending.setdefault(name, []).append((weight, part))

    def finish(self) -> dict[str, Tensor]:
        """name -> (n,), for every weight that a gradient reached."""
        for name, uses in self._pending.items():
            self.squares[name] = combined(self.tape.weights, name, uses, self.scratch)
        self._pending.clear()
        return self.squares


class Recording:
    """The outputs of one forward pass, and the tape that belongs to them."""

    def __init__(self, model: nn.Module, inputs: Inputs, weights: Weights, scratch: int):
        self.model, self.inputs, self.weights, self.scratch = model, inputs, weights, scratch
        self.n = _batch_size(inputs)
        self._tape = Tape(weights)
        self._interceptor = Interceptor(self._tape)
        self._rng = torch.get_rng_state()
        self._plain = False
        self._probed: dict[int, Layout] | None = None
        try:
            self.outputs = self._forward()
        except Inseparable:
            self._fall_back()

    def _fall_back(self) -> None:
        """Run the model again without the tape, on the same random numbers."""
        self._plain = True
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng)
            self.outputs = self._forward()

    def _forward(self) -> Any:
        if self._plain:
            return _call(self.model, self.inputs)
        with self._interceptor:
            return _call(self.model, tree_map_only(Tensor, self._taken, self.inputs))

    def _taken(self, tensor: Tensor) -> Tensor:
        per_sample = tensor.dim() > 0 and tensor.shape[0] == self.n
        return self._interceptor.sampled(tensor) if per_sample else tensor

    def losses(self, loss: Loss) -> Tensor:
        """(n,): the losses of the outputs; what a loss does with weights is seen as well."""
        with contextlib.nullcontext() if self._plain else self._interceptor:
            losses = loss(self.outputs)
        _check_losses(losses, self.n)
        return losses

    def squared_norms(self, loss: Loss) -> dict[str, Tensor]:
        """name -> (n,) squared norms of each weight's per-sample gradient of `loss`.

        A weight that no gradient reaches has zeros.
        """
        squares: dict[str, Tensor] | None = None
        if not self._plain:
            with contextlib.suppress(Inseparable):
                squares = self._recorded(self.losses(loss))
        if squares is None:
            squares = self._one_by_one(loss)
        zeros = torch.zeros(self.n, device=_device(self.outputs))
        return {name: squares.get(name, zeros) for name in self.weights.parameters}

    def _recorded(self, losses: Tensor) -> dict[str, Tensor] | None:
        if self._probed is None:
            self._probed = self._find_layouts(losses)
        listener = NormListener(self._tape, self.n, self._probed, self.scratch)
        escaped = self._backward(losses, torch.ones_like(losses), listener)
        return None if escaped else listener.finish()

    def _backward(self, losses: Tensor, share: Tensor, listener: Any) -> bool:
        """One backward pass; whether some gradient reached a parameter past every kernel."""
        if not losses.requires_grad:
            return False
        self._tape.listener = listener
        try:
            reached = torch.autograd.grad(
                losses,
                [self._tape.anchor, *self.weights.parameters.values()],
                share,
                retain_graph=True,
                allow_unused=True,
            )
        finally:
            self._tape.listener = None
        return any(gradient is not None for gradient in reached[1:])

    def _find_layouts(self, losses: Tensor) -> dict[int, Layout]:
        if self.n == 1:
            return {}
        known = _layouts.setdefault(self.model, {})
        uses = tuple(kernel.name for kernel in self._tape.kernels)
        shapes = tuple(t.shape[1:] for t in tree_flatten(self.inputs)[0] if isinstance(t, Tensor))
        for key in (uses, (uses, shapes)):
            if key in known:
                return known[key]
        self._refuse_mixing()
        probe = LayoutProbe(torch.ones(self.n, dtype=torch.bool))
        for kept in halves(self.n):
            probe.kept = kept
            self._backward(losses, kept.to(losses), probe)
        found = probe.layouts()
        if found is None:
            raise Inseparable
        if not probe.silent:
            plain = all(layout == Layout() for layout in found.values())
            known[uses if plain else (uses, shapes)] = found
        return found

    def _refuse_mixing(self) -> None:
        """Raise if the outputs for the first sample change when it comes alone."""
        alone = tree_map_only(
            Tensor, lambda t: t[:1] if t.dim() and t.shape[0] == self.n else t, self.inputs
        )
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            once, again = (_outputs(_call(self.model, alone)) for _ in range(2))
        together = _outputs(self.outputs)
        if not all(torch.equal(a, b) for a, b in zip(once, again, strict=True)):
            return  # dropout and the like: nothing can be said
        for one, all_ in zip(once, together, strict=True):
            if all_.shape[:1] != (self.n,) or one.shape[:1] != (1,):
                continue
            scale = all_[:1].abs().max()
            tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 3e-2
            if (one - all_[:1].detach()).abs().max() > tolerance * scale + tolerance**2:
                raise GradientNormError(
                    "Expected a model that treats each sample by itself but its output for the "
                    f"first of {self.n} samples changes when that sample comes alone: the model "
                    "mixes samples, so that none has a loss gradient of its own. Layers that "
                    "normalise or attend over the batch must be in eval mode or be replaced."
                )

    def _one_by_one(self, loss: Loss) -> dict[str, Tensor]:
        """One backward pass a sample over an ordinary forward pass: always right, and slow."""
        if not self._plain:
            self._fall_back()
        losses = self.losses(loss)
        rows: dict[str, list[Tensor]] = {name: [] for name in self.weights.parameters}
        for i in range(self.n):
            gradients = torch.autograd.grad(
                losses[i], list(self.weights.parameters.values()), retain_graph=True,
                allow_unused=True,
            )  # fmt: skip
            for name, gradient in zip(rows, gradients, strict=True):
                square = torch.zeros(1) if gradient is None else squared_norms(gradient[None])
                rows[name].append(square)
        return {name: torch.cat(row) for name, row in rows.items()}


@contextlib.contextmanager
def recording(
    model: nn.Module, inputs: Inputs, weights: Weights, scratch: int
) -> Iterator[Recording]:
    """Run the model once, with its tape; leave it as it was found, whatever happens."""
    training = [m for m in model.modules() if m.training]
    buffers = [b for m in training for b in m.buffers(recurse=False)]
    before = [b.clone() for b in buffers]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield Recording(model, inputs, weights, scratch)
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _call(model: nn.Module, inputs: Inputs) -> Any:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _batch_size(inputs: Inputs) -> int:
    tensors = [t for t in tree_flatten(inputs)[0] if isinstance(t, Tensor) and t.dim() > 0]
    if not tensors:
        raise GradientNormError(
            "Expected `inputs` to be a tensor, or a tuple or dict of tensors, with the samples in "
            f"dimension 0 but got {type(inputs).__name__} without such a tensor."
        )
    return tensors[0].shape[0]


def _outputs(outputs: Any) -> list[Tensor]:
    leaves = tree_flatten(outputs)[0]
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.dim() > 0]


def _device(outputs: Any) -> torch.device:
    found = _outputs(outputs)
    return found[0].device if found else torch.device("cpu")


def _check_losses(losses: Any, n: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (n,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        reduced = got == ()
        raise GradientNormError(
            f"Expected the loss to be one number a sample, shape ({n},), but got {got}. "
            + ('A reduced loss mixes the samples: use reduction="none".' if reduced else
               "Reduce what each sample holds (positions, pixels) and nothing else.")
        )  # fmt: skip
    if not bool(torch.isfinite(losses).all()):
        bad = (~torch.isfinite(losses)).nonzero().flatten()[:5].tolist()
        raise GradientNormError(
            f"Expected finite losses but those of samples {bad} are {losses[bad].tolist()}. Look "
            "at these inputs, and at the model's weights."
        )
