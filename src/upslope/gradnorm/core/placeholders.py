"""The mark of a tensor that stands for the output of a folded convolution (`conv_bn_fusion`)."""

from __future__ import annotations

from upslope.gradnorm.core.layout import SamplesNotSeparable

PLACEHOLDER = "_upslope_placeholder"
"""The attribute that marks it; its value is the convolution's place (`conv_bn_fusion.Pairs`)."""


class FusionMismatch(SamplesNotSeparable):
    """A model did something else with such a tensor than to normalise it.

    place: the convolution's.
    """

    def __init__(self, place: int):
        super().__init__("a convolution's output is used where none is expected")
        self.place = place
