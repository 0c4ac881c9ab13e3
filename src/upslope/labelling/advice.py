"""Advice to who labels: what the strategy has saved, and whether more labels will pay.

Both are measured on the control slice, and computed by the process that trains. `sentences` says
them to people, with labels turned into hours and money.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from upslope.evaluation import PredictedGain, Saving, measure_saving, predict_gain
from upslope.labelling.learner import Learner
from upslope.labelling.state import BY_IMPORT, LabelState

MORE = 50
"""Labels that the gain is predicted for."""
WORTH = 0.01
"""The gain of `MORE` labels below which they are said to hardly pay: one point."""
FEWEST_LABELS, FEWEST_CONTROL = 40, 15
"""Training labels and control answers from which there is advice."""
_GRID = 8  # models on the curve, from a quarter of the labels to all of them
_SAVING_GRID = 8  # models of the strategy's first labels
_SPLITS, _TRAIN_SHARE = 15, 0.75  # of the control slice: how many splits, and the share learnt from


@dataclass(frozen=True)
class Advice:
    """gain: of the next labels. saving: against random; None where labels that were imported make
    the strategy's labels no sequence of its own, or where the control slice is too small."""

    gain: PredictedGain
    saving: Saving | None

    @property
    def hardly_pays(self) -> bool:
        """Say whether the interval of the predicted gain lies below one point."""
        return self.gain.high < WORTH

    def record(self) -> dict[str, Any]:
        """Return the advice as JSON holds it; infinity and NaN are null."""
        saving = None if self.saving is None else _without_infinity(asdict(self.saving))
        return {"gain": asdict(self.gain), "saving": saving}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Advice:
        """Return the advice that `record` returned."""
        saving = record["saving"]
        if saving is not None:
            for name, missing in _MISSING.items():
                saving = {**saving, name: missing if saving[name] is None else saving[name]}
        return cls(PredictedGain(**record["gain"]), None if saving is None else Saving(**saving))


_MISSING = {
    "needed": math.inf,
    "needed_low": math.inf,
    "needed_high": math.inf,
    "difference": math.nan,
    "difference_low": math.nan,
    "difference_high": math.nan,
}
"""What null stands for in the record of a saving."""


def advise(learner: Learner, state: LabelState) -> Advice | None:
    """Return advice on the labels so far; None where there are too few to say anything.

    Some thirty small models are trained, which takes seconds.
    """
    if state.closed:
        return None
    training = learner.usable(state.labels(control=False))
    control = learner.usable(state.labels(control=True))
    if len(training) < FEWEST_LABELS or len(control) < FEWEST_CONTROL:
        return None
    ids = list(training)

    def curve(grid: list[int]) -> list[list[bool]]:
        return [learner.agreement({i: training[i] for i in ids[:n]}, control) for n in grid]

    grid = _geometric(len(ids) / 4, len(ids), _GRID)
    gain = predict_gain(grid, curve(grid), MORE, seed=learner.settings.seed)
    if state.tally.slices[BY_IMPORT]:
        return Advice(gain, None)
    count = round(_TRAIN_SHARE * len(control))
    grid = _geometric(max(5, count / 4), min(len(ids), 2 * count), _SAVING_GRID)
    names = np.array(list(control))
    rng = np.random.default_rng(learner.settings.seed)
    random_correct = np.full((_SPLITS, len(names)), np.nan)
    for row in random_correct:
        order = rng.permutation(len(names))
        train_names, rest = names[order[:count]].tolist(), order[count:]
        test_answers = {names[i]: control[names[i]] for i in rest}
        row[rest] = learner.agreement({i: control[i] for i in train_names}, test_answers)
    return Advice(gain, measure_saving(grid, curve(grid), count, random_correct))


def sentences(
    advice: Advice, seconds: float | None, control: float, wage: float | None
) -> list[str]:
    """Return the advice in sentences.

    seconds: that one answer takes, None where unknown. control: share of the questions that
    measure. wage: for an hour of labelling, in any currency; None leaves money out.
    """
    lines = []
    saving, gain = advice.saving, advice.gain
    if saving is not None:
        lines.append(_saving_words(saving, seconds, wage))
    answers = gain.more / (1 - control)
    lines.append(
        f"The next {gain.more} labels are predicted to bring {_points(gain.value)} (95% interval "
        f"{100 * gain.low:.1f} to {100 * gain.high:.1f}); with the control slice's share they are "
        f"{answers:.0f} answers{_cost(answers, seconds, wage)}. {gain.of} control answers can show "
        f"a gain of {_points(gain.detectable)} or more."
    )
    if advice.hardly_pays:
        lines.append(
            f"More labels will hardly pay: {gain.more} of them are predicted to bring less than "
            f"{100 * WORTH:.0f} point."
        )
    return lines


def _saving_words(saving: Saving, seconds: float | None, wage: float | None) -> str:
    k = saving.random_labels
    start = f"Random labels reach {100 * saving.accuracy:.0f}% with {k} of them"
    if math.isinf(saving.needed):
        return f"{start}; the labels asked so far have not been shown to do as much."
    difference = k - saving.needed
    has_no_bound = math.isinf(saving.needed_high)
    low = "unknown" if has_no_bound else f"{100 * (1 - saving.needed_high / k):.0f}%"
    interval = f"95% interval {low} to {100 * (1 - saving.needed_low / k):.0f}%"
    what = "fewer" if difference >= 0 else "more"
    cost = _cost(difference, seconds, wage) if difference > 0 else ""
    return (
        f"{start}, the labels asked by the strategy with {saving.needed:.0f}: "
        f"{100 * abs(difference) / k:.0f}% {what} (saving: {interval}){cost}."
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _cost(answers: float, seconds: float | None, wage: float | None) -> str:
    """In hours and money, as an apposition."""
    if seconds is None:
        return ""
    hours = answers * seconds / 3600
    time = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    return f", {time}" + ("" if wage is None else f", {wage * hours:,.2f} at {wage:g} an hour")


def _geometric(low: float, high: float, count: int) -> list[int]:
    return sorted({round(n) for n in np.geomspace(min(low, high), high, count)})


def _without_infinity(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(v, float) and not math.isfinite(v) else v
        for name, v in values.items()
    }
