"""Which convolutions of a model are computed together with the normalisation of their output.

The first pass of two samples shows which kernels are followed by which normalisation. In the passes
that count, the output of such a convolution is normalised already (`kernels/conv/fused.py`), and
the model gets a placeholder for it: without values, and of use to that normalisation alone. A model
that does anything else with it is run again with that pair, and in the end all pairs, left apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules import module as hooks

from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.tensor_marks import mark, marks_of
from upslope.gradnorm.core.uses.tape import FusionMismatch, Tape
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.kernels.batch_norm import Normalisation
from upslope.gradnorm.kernels.conv.convolution import Convolution
from upslope.gradnorm.kernels.conv.fused import FusedConvolution, is_fusible

Pairs = Mapping[int, Normalisation]
"""Place of a convolution among those of a pass -> the normalisation that follows."""

_pairs: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], Pairs]] = WeakKeyDictionary()


class ConvBatchNormFusion:
    """What one forward pass folds. See `tape.Fusion`.

    pairs: what is to be folded. None in a pass that folds nothing, and shows what can be.
    """

    def __init__(self, pairs: Pairs | None):
        self.pairs = pairs or {}
        self._is_learning = pairs is None
        self.seen: dict[int, Normalisation] = {}
        """The pairs that such a pass has met."""
        self.placeholders: list[Tensor] = []
        self._waiting: dict[int, Tensor] = {}
        self._places = itertools.count()

    def on_convolution(self, tape: Tape, kernel: Convolution, x: Tensor) -> Tensor:
        """Return the output of a convolution, or its placeholder; see `tape.Fusion`."""
        place = next(self._places)
        norm = self.pairs.get(place)
        if norm is None or not is_fusible(kernel, x, norm):
            out = tape.use(kernel, x)
            if self._is_learning:
                mark(out).convolution = place
            return out
        out = tape.use(FusedConvolution(tape, kernel, norm), x)
        # NaN, so that any use other than the expected normalisation is detected.
        placeholder = out.new_full((), math.nan).expand(out.shape).requires_grad_()
        mark(placeholder).placeholder_of = place
        self.placeholders.append(placeholder)
        self._waiting[place] = out
        return placeholder

    def on_normalisation(self, conv_output: Tensor, norm: Normalisation) -> Tensor | None:
        """See `tape.Fusion`.

        Raises:
            FusionMismatch: another normalisation than the one that was folded, or once more.
        """
        place = marks_of(conv_output).placeholder_of
        if place is not None:
            if place not in self._waiting or not self.pairs[place].same(norm):
                raise FusionMismatch(place)
            return self._waiting.pop(place)
        place = marks_of(conv_output).convolution
        if place is not None:
            self.seen[place] = norm
        return None

    def check(self, outputs: list[Tensor]) -> None:
        """Refuse a pass that has left a placeholder over.

        outputs: of the model.

        Raises:
            FusionMismatch: a placeholder was not normalised, or is among the outputs.
        """
        for place in (*self._waiting, *(marks_of(t).placeholder_of for t in outputs)):
            if place is not None:
                raise FusionMismatch(place)


def pairs_of(inventory: Inventory, weights: Weights, learn: Callable[[], Pairs]) -> Pairs:
    """Return what can be folded.

    inventory: of the network. weights: those that are asked for. learn: a pass of a few samples
    with nothing folded, which returns the pairs that it met.
    """
    pairs_of_model = _pairs.setdefault(inventory.modules[0], {})
    parameter_names = tuple(weights.parameters)
    # A hook on a module would be shown NaN in place of what the convolution puts out.
    if pairs_of_model.get(parameter_names) == {} or _is_watched(inventory):
        return {}
    if parameter_names not in pairs_of_model:
        pairs_of_model[parameter_names] = learn() if _normalises(inventory) else {}
    return pairs_of_model[parameter_names]


def correct_pairs(
    inventory: Inventory, weights: Weights, wrong: int, learn: Callable[[], Pairs]
) -> Pairs:
    """Return the pairs that can be folded once one has proved wrong.

    wrong: the place of that one. The other arguments are those of `pairs_of`.
    """
    pairs_of_model, parameter_names = _pairs[inventory.modules[0]], tuple(weights.parameters)
    before, now = pairs_of_model[parameter_names], learn()
    if wrong in now and now[wrong].same(before[wrong]):  # used for something else as well
        now = {place: norm for place, norm in before.items() if place != wrong}
    pairs_of_model[parameter_names] = now
    return now


def _normalises(inventory: Inventory) -> bool:
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in inventory.modules)


def _is_watched(inventory: Inventory) -> bool:
    """Whether somebody else gets to see what single layers put out."""
    return bool(hooks._global_forward_hooks) or inventory.has_output_hooks
