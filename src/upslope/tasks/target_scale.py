"""Advice on targets of a regression that are far from what a network puts out at first.

A network begins with outputs of about 1. Squared errors of targets that are thousands make its
steps as large, so that training diverges; those of targets that are thousandths are nothing beside
its first outputs. Either way the figures say little of the data. The task's `centre` and `scale`
put that right, and only the user can state them (`upslope.tasks.regression`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_FAR = 10.0
"""Root mean square of the targets, or 1 over their deviation, from which they count as far off: a
perceptron of 5 inputs and 16 units in its default training reaches R^2 = 0.99 at 10 and diverges at
30, and reaches 0.96 at 1/10 and is below 0 on the test set at 1/100."""
_GOOD_SHARE = 0.9
"""R^2 on its own labels from which a network has learnt them, in whatever units they are."""
_POOR_SHARE = -1.0
"""R^2 on its own labels below which outputs are hardly in the units of the task."""


def scale_advice(
    targets: Tensor,
    centre: Tensor,
    scale: Tensor,
    names: Sequence[str],
    figures: Mapping[str, float] | None,
) -> str:
    """Return what to state where targets are far off, or outputs in other units; '' elsewhere.

    targets: (n, k). centre, scale: (k,), the task's. names: of the k targets. figures: of a network
    on these samples; targets that it has learnt are left out. None where there is no such network.
    """
    y = targets.detach().cpu().double()
    centre, scale = centre.detach().cpu().double(), scale.detach().cpu().double()
    mean, deviation = y.mean(dim=0), y.std(dim=0, unbiased=False)
    size = ((y - centre) / scale).square().mean(dim=0).sqrt()
    varies = deviation > 0
    is_far = varies & ((size > _FAR) | (deviation / scale < 1 / _FAR))
    shares = _shares(deviation, names, figures)
    if bool((places := is_far & (shares < _GOOD_SHARE)).any()):
        k = int(places.nonzero()[0])
        figure_words = "" if figures is None else f", and R² is {float(shares[k]):.3g} on them"
        pairs = [_in_digits(m, d) for m, d in zip(mean.tolist(), deviation.tolist(), strict=True)]
        centres, scales = (", ".join(words) for words in zip(*pairs, strict=True))
        return (
            "Expected targets from which `centre` and `scale` of the task regression make numbers "
            f"of about 1 but, of {len(y)} labelled samples, {names[k]!r} has mean "
            f"{float(mean[k]):.6g} and deviation {float(deviation[k]):.3g} with centre "
            f"{float(centre[k]):.6g} and scale {float(scale[k]):.3g}{figure_words}. State them, "
            f"about the mean and deviation of the quantity: task.centre=[{centres}] and "
            f"task.scale=[{scales}], in a new run, which may begin with these labels "
            "(--labels-from)."
        )
    has_units = figures is not None and bool((centre != 0).any() or (scale != 1).any())
    if has_units and bool((places := varies & (shares < _POOR_SHARE)).any()):
        k = int(places.nonzero()[0])
        return (
            f"Expected outputs of (target - centre) / scale but R² of {names[k]!r} is "
            f"{float(shares[k]):.3g} on {len(y)} labelled samples. A training loop of your own "
            "must bring the network there, as `context.task.losses` does, or leave `centre` and "
            "`scale` out of the task; with Upslope's, lower training.lr."
        )
    return ""


def _shares(deviation: Tensor, names: Sequence[str], figures: Mapping[str, float] | None) -> Tensor:
    """Return R^2 of each target, (k,), by its root mean squared error; -inf without figures, and 1
    where a task has others."""
    if figures is None:
        return torch.full_like(deviation, -math.inf)
    keys = ["rmse"] if len(names) == 1 else [f"rmse/{name}" for name in names]
    errors = torch.tensor([figures.get(key, 0.0) for key in keys], dtype=torch.float64)
    return 1 - (errors / deviation).square()


def _in_digits(mean: float, deviation: float) -> tuple[str, str]:
    """Return mean and deviation to two digits of the deviation, which is 1 in place of 0."""
    digits = 1 - math.floor(math.log10(deviation)) if deviation else 6
    return f"{round(mean, digits):.15g}", f"{round(deviation or 1.0, digits):.15g}"
