"""A weight brought to the samples' shape: y = w, broadcast.

    dL_n/dw = sum of dL_n/dy over the entries of sample n that one entry of w was broadcast to

With this, every operator that works entry by entry (a scale, a shift, a gate, a position
embedding) needs no kernel of its own: autograd differentiates the operator, the lift sums by
sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from upslope.gradnorm.layout import Samples
from upslope.gradnorm.parts import Dense, Part
from upslope.gradnorm.tape import Kernel, Tape


def lift(tape: Tape, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """`weight` broadcast to `shape`, as a tensor of the samples."""
    for dim, (size, stride) in enumerate(zip(weight.shape, weight.stride(), strict=True)):
        if stride == 0 and size > 1:  # expanded before: its entries are one entry
            weight = weight.narrow(dim, 0, 1)
    return tape.use(Lift(weight, shape))


class Lift(Kernel):
    """See the head of this file."""

    name = "broadcast"

    def __init__(self, weight: Tensor, shape: Sequence[int]):
        self.weights = (weight,)
        self.shape = tuple(shape)

    def forward(self, *_: Tensor) -> Tensor:
        """See `Kernel`. Takes no inputs."""
        return self.weights[0].detach().expand(self.shape)

    def pull(self, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG002
        """See `Kernel`."""
        return ()

    def parts(self, g: Tensor, *_: Tensor, samples: Samples) -> Iterator[tuple[Tensor, Part]]:
        """See `Kernel`."""
        (weight,) = self.weights
        yield weight, Dense(samples.summed(g, weight.shape))
