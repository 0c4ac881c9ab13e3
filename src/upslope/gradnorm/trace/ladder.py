"""The ladder of fallbacks: what the next attempt at a batch leaves out, and why.

    1  kernels, with the layouts that are remembered of the program, or guessed from other shapes
       |  a gradient came where none had come before, a proof failed, or any fault after a guess
    2  kernels, with layouts probed on this batch
       |  the model or the loss looked at a placeholder's NaN, and numbers were refused
    3  no convolution fused with its normalisation
       |  an operator that the engine cannot follow, and weights held to be copied to every sample
    4  no weight held to be copied: the sizes may have agreed by chance
       |  an operator that the engine cannot follow
    5  one pass per sample, by autograd alone; told by a warning

Every rung is exact. A batch only goes down, and each step leaves out one thing, so that no batch is
tried more than five times for one loss. Which step is taken follows from the error alone; what the
model itself raises, it raises again on the last rung, where nobody catches it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from upslope.errors import GradientNormError, first_line
from upslope.gradnorm.core.layouts.layout import GradientsHooked, SamplesNotSeparable
from upslope.gradnorm.core.layouts.layout_probe import LayoutUnknown
from upslope.gradnorm.proofs.kernel_results import ProofFailed

FALLS = (SamplesNotSeparable, GradientNormError, RuntimeError)
"""What may lead to a lower rung. RuntimeError: what torch raises where an operator cannot be
differentiated in the way that a kernel asks for. Anything else is the caller's own."""


class KnownSlow(SamplesNotSeparable):
    """An earlier batch of the same program went sample by sample."""


@dataclass
class Ladder:
    """The rung that a batch is on."""

    remembers: bool = True
    """Whether layouts that are remembered of the program are used."""
    fuses: bool = True
    """Whether convolutions and their normalisation may be one kernel."""
    copies: bool = True
    """Whether weights may be held to be copied to every sample."""
    fallback_reason: str | None = None
    """Why the samples go one by one, if they do: the last rung."""
    is_known: bool = False
    """Whether that was found with an earlier batch."""
    has_hooks: bool = False
    """Whether they go one by one because hooks may change gradients."""

    def step_down(
        self,
        error: Exception,
        *,
        used_memory: bool,
        is_guess: bool,
        has_placeholders: bool,
        has_copies: bool,
    ) -> None:
        """Go to the next rung that may do without what failed.

        error: what was raised. used_memory: whether the attempt had its layouts from memory.
        is_guess: whether they were those of batches of other shapes (`layout_probe.FrontGuess`).
        has_placeholders, has_copies: whether it fused convolutions, and held weights to be copies.

        Raises:
            Exception: the error itself, where no rung does without its cause.
        """
        if isinstance(error, torch.OutOfMemoryError):
            raise error  # lower rungs need no less memory, but for the last, which may be hours
        if isinstance(error, GradientNormError):
            # A refusal is the answer, unless NaN of ours was refused.
            if not has_placeholders:
                raise error
            self.fuses = False
        # Under a wrong guess kernels may fail in any way.
        elif used_memory and (is_guess or isinstance(error, (LayoutUnknown, ProofFailed))):
            self.remembers = False
        elif has_copies and self.copies and not isinstance(error, KnownSlow):
            self.copies = False
        else:
            self.fallback_reason = first_line(error)
            self.is_known = isinstance(error, KnownSlow)
            self.has_hooks = isinstance(error, GradientsHooked)
