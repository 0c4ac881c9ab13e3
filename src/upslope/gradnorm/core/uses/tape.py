"""The tape: every use of a weight in one forward pass, in order.

A `Kernel` stands for one use of one or more weights by one operator. In the forward pass it
computes the operator's output; in the backward pass it hands on the gradient of its inputs, as
autograd would, and can tell the per-sample gradient of its weights as `PerSampleGradient`s. The
gradient of a weight itself, summed over the batch, is never formed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from upslope.gradnorm.core.chunks import SCRATCH
from upslope.gradnorm.core.gradients.per_sample_gradients import PerSampleGradient
from upslope.gradnorm.core.half_precision import autocast_type
from upslope.gradnorm.core.layouts.layout import Layout, Samples, SamplesNotSeparable
from upslope.gradnorm.core.weights.weights import Weights

# Asked at each use of a weight.
_is_transforming: Callable[[], bool] = torch._C._are_functorch_transforms_active


class ComputeOptions(NamedTuple):
    """How to compute: what changes speed and memory, and results by rounding alone."""

    scratch: int = SCRATCH
    """Bytes of scratch beyond what an ordinary forward and backward pass takes."""
    dtype: torch.dtype | None = None
    """The half precision in which products of matrices and convolutions are computed, if any."""


class Kernel(ABC):
    """One operator that meets weights. Add one in `kernels/`, one file, one line in its table."""

    name: str
    """The operator's name, for `explain`."""
    weights: tuple[Tensor, ...]
    """The weights that are differentiated: parameters, or tensors made of parameters alone."""
    layout: Layout | None = None
    """Where the samples are in the output, if the operator itself tells."""
    dim: int | None = None
    """The dimension along which they must be, if no other makes sense."""
    is_replayed: ClassVar[bool] = False
    """Whether the operator is run again for each sample's share of the gradient."""
    makes_memory: ClassVar[bool] = False
    """Whether the output never lies in the memory of an input or a weight."""

    kept: ClassVar[tuple[str, ...]] = ()
    """The attributes in which `forward` keeps activations for the backward pass."""

    @property
    def joint_key(self) -> Hashable | None:
        """What is equal for uses that are one use of the same weights, with the rows of all.

        The rows are those of dimension 0 of inputs and output; of each, the operator computes by
        itself. None where an operator does not, or where its operands need not be kept for its
        weights.
        """
        return None

    def arrange(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs in the memory format in which the methods below are fastest.

        A copy lives for one pass: what is kept between them is what the model made.
        """
        return inputs

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the operator's output. Runs without autograd."""

    @abstractmethod
    def input_gradients(self, g: Tensor, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the inputs, from that of the output; None where there is none."""

    @abstractmethod
    def weight_gradients(
        self, g: Tensor, *inputs: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield each of `weights` with its per-sample gradients, from that of the output."""

    def release(self) -> None:
        """Let go of what `forward` has kept, behind the last backward pass that comes by."""
        for name in self.kept:
            vars(self).pop(name, None)


class Listener(Protocol):
    """Hears the gradient that reaches each use, during a backward pass."""

    def on_gradient(self, index: int, g: Tensor, inputs: tuple[Tensor, ...]) -> None:
        """`g` is the gradient of the output of use `index`; `inputs` are that use's inputs."""
        ...


class Fusion(Protocol):
    """Makes one kernel of a convolution and the normalisation of its output (`conv_bn_fusion`)."""

    def on_convolution(self, tape: Tape, kernel: Any, x: Tensor) -> Tensor:
        """The output of a convolution, or what stands for it until it is normalised.

        tape: which has this fusion; one that kept the tape would keep it from going with a pass.
        """
        ...

    def on_normalisation(self, conv_output: Tensor, norm: Any) -> Tensor | None:
        """The normalised output, where the convolution has it already."""
        ...


class FusionMismatch(SamplesNotSeparable):
    """A model did something else with a placeholder than to normalise it.

    place: that of the convolution for whose output it stands.
    """

    def __init__(self, place: int):
        super().__init__("a convolution's output is used where none is expected")
        self.place = place


class Tape:
    """The uses of the weights in one forward pass, in order."""

    def __init__(self, weights: Weights, options: ComputeOptions):
        self.weights, self.options = weights, options
        self.kernels: list[Kernel] = []
        self._uses_of: Counter[str] = Counter()
        self._kernels_in_uses = 0
        """How many of the kernels are counted in it."""
        self.anchors = [torch.zeros((), requires_grad=True)]
        """Keep an edge to every use, also where the input needs no gradient: one to all uses, or
        one to those before and one to those after the samples' entries are mixed by the data."""
        self.expansions: dict[tuple[int, Sequence[int]], tuple[Tensor, Tensor, int]] | None = {}
        """Weights that were expanded to samples, with their expansions and how often these were
        written to by then (`kernels/expand`); None where the samples of two tensors of one shape
        may be in different places."""
        self.has_shared_expansion = False
        """Whether several operators took one of these."""
        self.routed_from: int | None = None
        """The first use whose samples are where no other batch has them; see `route`."""
        self.types: set[torch.dtype] = set()
        """The types of what depends on samples, and of autocast where one ran."""
        self.listener: Listener | None = None
        self.is_last = False
        """Whether no backward pass follows that which runs, so that activations go on its way."""
        self.fusion: Fusion | None = None

    def route(self) -> None:
        """Note that entries were chosen by the data: from here on, no batch is like another."""
        if self.routed_from is None:
            self.routed_from = len(self.kernels)
            self.expansions = None
            self.anchors.append(torch.zeros((), requires_grad=True))

    @property
    def uses_of(self) -> Mapping[str, int]:
        """Return name of a parameter -> in how many places a use takes it."""
        if self._kernels_in_uses < len(self.kernels):  # asked once all are there, of every use
            for kernel in self.kernels[self._kernels_in_uses :]:
                for weight in kernel.weights:
                    for name in self.weights.sources(weight):
                        self._uses_of[name] += 1
            self._kernels_in_uses = len(self.kernels)
        return self._uses_of

    def use(self, kernel: Kernel, *inputs: Tensor) -> Tensor:
        """Run the kernel on its inputs; the output carries the gradient edge."""
        index = len(self.kernels)
        self.kernels.append(kernel)
        # Under `vmap` and its like PyTorch has more to ask; of each use, that takes as long as a
        # small product.
        apply: Callable[..., Tensor] = _apply_record
        if _is_transforming():
            apply = _Record.apply
        output: Tensor = apply(self, index, self.anchors[-1], *inputs)
        self.types.add(output.dtype)
        # Autocast computes in half precision and may put out float32: what is proven must know.
        half = autocast_type(output)
        if half is not None:
            self.types.add(half)
        return output


class _Record(torch.autograd.Function):
    """Autograd's view of a kernel: an operator of its inputs alone."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, index: int, _anchor: Tensor, *inputs: Tensor) -> Tensor:
        ctx.tape, ctx.index = tape, index
        ctx.save_for_backward(*inputs)
        kernel = tape.kernels[index]
        output = kernel.forward(*kernel.arrange(*inputs))
        if not output._is_view():
            return output
        return output.data if kernel.makes_memory else _writable(output, (*inputs, *kernel.weights))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        # Where a backward pass is differentiated, it refuses; to ask in others takes too long.
        return (_pull_once if torch.is_grad_enabled() else _pull)(ctx, g)


_apply_record: Callable[..., Tensor] = super(torch.autograd.Function, _Record).apply


def _pull(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    """Tell the listener of the gradient of a use, and return those of its inputs."""
    tape, kernel = ctx.tape, ctx.tape.kernels[ctx.index]
    inputs = kernel.arrange(*ctx.saved_tensors)
    if tape.listener is not None:
        tape.listener.on_gradient(ctx.index, g, inputs)
    gradients: tuple[Tensor | None, ...] = (None,) * len(inputs)
    # The first layer's input needs none, and that gradient is the dearest of all.
    if any(ctx.needs_input_grad[3:]):
        gradients = kernel.input_gradients(g, *inputs)
    if tape.is_last:
        kernel.release()
    return (None, None, None, *gradients)


_pull_once = torch.autograd.function.once_differentiable(_pull)


def _writable(view: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    """Return an output that is no view, so that the model may write into it.

    Autograd refuses writes to a view that was made in a kernel, even where nobody else knows its
    memory: of a product that was brought to another shape, for instance. An output in the memory
    of an input or a weight stays a view.

    view: the output. others: inputs and weights.
    """
    base, place = view._base, view.untyped_storage().data_ptr()
    for other in others:
        if other is base or other.untyped_storage().data_ptr() == place:
            return view
    return view.data
