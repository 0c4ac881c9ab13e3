"""The mark of a tensor that stands for the output of a folded convolution (`folding`)."""

from __future__ import annotations

from upslope.gradnorm.layout import Inseparable

TOKEN = "_upslope_token"
"""The attribute that says so; its value is the place of the convolution (`folding.Pairs`)."""


class Unfolded(Inseparable):
    """A model did something else with such a tensor than to normalise it.

    place: the convolution's.
    """

    def __init__(self, place: int):
        super().__init__("a convolution's output is used where none is expected")
        self.place = place
