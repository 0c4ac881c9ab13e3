"""A weight expanded to the shape of the samples: y = w, broadcast.

    dL_n/dw = sum of dL_n/dy over the entries of sample n that one entry of w was broadcast to

Called for every operator that works entry by entry (a scale, a shift, a gate, a position
embedding). Such an operator needs no kernel of its own: autograd differentiates it, and the kernel
here sums the gradient of the expanded weight by sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from upslope.gradnorm.core.layout import Samples
from upslope.gradnorm.core.per_sample_gradients import Dense, PerSampleGradient
from upslope.gradnorm.core.tape import Kernel, Tape


def expand_to_samples(tape: Tape, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Return `weight` broadcast to `shape`, as a tensor of the samples."""
    for dim, (size, stride) in enumerate(zip(weight.shape, weight.stride(), strict=True)):
        if stride == 0 and size > 1:  # expanded before: all entries are one entry of the weight
            weight = weight.narrow(dim, 0, 1)
    return tape.use(Expansion(weight, shape))


class Expansion(Kernel):
    """y = w, broadcast to `shape`. Takes no inputs."""

    name = "broadcast"

    def __init__(self, weight: Tensor, shape: Sequence[int]):
        self.weights = (weight,)
        self.shape = tuple(shape)

    def forward(self, *_: Tensor) -> Tensor:
        """Return the operator's output; see `Kernel`."""
        return self.weights[0].detach().expand(self.shape)

    def input_gradients(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG002
        """Return the gradients of the inputs; see `Kernel`."""
        return ()

    def weight_gradients(
        self, g: Tensor, *_: Tensor, samples: Samples
    ) -> Iterator[tuple[Tensor, PerSampleGradient]]:
        """Yield the per-sample gradients of the weights; see `Kernel`."""
        (weight,) = self.weights
        yield weight, Dense(samples.summed(g, weight.shape))
