"""Temperatures of posteriors: against logits divided by hand, and a model that is too sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn
from toy import context

from upslope.errors import ConfigError
from upslope.experiment.checks import describe_strategy
from upslope.pool import Need
from upslope.signals import build, check, temperature
from upslope.signals.probabilities import Probabilities
from upslope.signals.temperature import (
    calibrating_temperature,
    calibration_error,
    fit_temperature,
)
from upslope.strategies import REGISTRY
from upslope.strategies import build as strategy
from upslope.tasks.classification import Classification
from upslope.tasks.segmentation import Segmentation

TASK = Classification(num_classes=4)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).eval()


class Divided(nn.Module):
    """The network with its logits divided: what a temperature stands for."""

    def __init__(self, inner: nn.Module, temperature: float) -> None:
        super().__init__()
        self.inner, self.temperature = inner, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / self.temperature  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "need",
    [
        Need.of("probabilities"),
        Need.of("uncertainty", measure="margin"),
        Need.of("gradnorm", loss="entropy"),
        Need.of("gradnorm", loss="expected", criterion="focal"),
        Need.of("egl"),
    ],
    ids=str,
)
def test_a_temperature_divides_the_logits(need: Need) -> None:
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    tempered = build(Need.of(need.name, **dict(need.options), temperature=3.0))
    expected = build(need).compute(Divided(network(), 3.0), TASK, x)
    assert torch.allclose(tempered.compute(network(), TASK, x), expected, rtol=1e-5)
    assert not torch.allclose(build(need).compute(network(), TASK, x), expected, rtol=1e-2)


def test_calibration_error_by_hand() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [0.45, 0.55]])
    # In one bin two of confidence 0.9, one of them right; in another two of 0.55, both right.
    error = calibration_error(p, torch.tensor([0, 1, 0, 1]))
    assert error == pytest.approx((2 * 0.4 + 2 * 0.45) / 4, abs=1e-6)


def test_finds_the_temperature_of_calibrated_logits() -> None:
    rng = torch.Generator().manual_seed(0)
    calibrated = 2 * torch.randn(20_000, 4, generator=rng)
    labels = torch.multinomial(calibrated.softmax(dim=1), 1, generator=rng).flatten()
    for sharpness in (1.0, 3.0, 8.0):
        assert calibrating_temperature(sharpness * calibrated, labels) == pytest.approx(
            sharpness, rel=0.1
        )


def test_is_fitted_with_a_network_that_has_not_seen_the_held_out_labels() -> None:
    seen: list[Sequence[int]] = []

    def train(places: Sequence[int]) -> nn.Module:
        seen.append(places)
        # Sure of class 0 and wrong half of the time: only the flattest posterior comes near.
        linear = nn.Linear(64, 2)
        nn.init.zeros_(linear.weight)
        linear.bias.data = torch.tensor([30.0, 0.0])
        return nn.Sequential(nn.Flatten(), linear).eval()

    assert fit_temperature(replace(context(), train=train)) == 19.9
    assert len(seen[0]) == 21
    assert len(set(seen[0])) == 21
    signal = build(Need.of("probabilities", temperature="fitted")).fit(  # type: ignore[attr-defined]
        replace(context(), train=train)
    )
    assert signal.temperature == 19.9


def written_out(p: np.ndarray, y: np.ndarray) -> float:
    """The expected calibration error, bin by bin."""
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.sum() / len(y) * gap
    return error


@pytest.mark.parametrize("most", [100_000, 100])
@pytest.mark.parametrize("masks", [False, True])
def test_fitted_is_the_least_error_of_the_labels_held_out(
    masks: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all classes, whatever the batches; of masks without what is ignored, at every k-th
    position where there are more than so many."""
    monkeypatch.setattr(temperature, "BATCH", 4)
    monkeypatch.setattr(temperature, "POSITIONS", most)
    ctx = context(labelled=50)
    rng = torch.Generator().manual_seed(5)
    seen: list[Sequence[int]] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 3, 3, padding=1)] if masks else [nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*layers).eval()
    inputs = ctx.task.prepare(ctx.dataset.inputs(list(range(50)))).float()
    with torch.no_grad():
        layers[-1].weight.mul_(20)
        logits = model(inputs)
    # Labels that the posterior of a third of the logits calls for.
    p = (logits / 3).softmax(dim=1).movedim(1, -1)
    targets = torch.multinomial(p.reshape(-1, 3), 1, generator=rng).view(p.shape[:-1])
    if masks:
        targets[torch.rand(targets.shape, generator=rng) < 0.3] = 255
        ctx = replace(ctx, task=Segmentation(num_classes=3))
    else:
        ctx = replace(ctx, task=Classification(num_classes=3))

    def train(places: Sequence[int]) -> nn.Module:
        seen.append(places)
        return model

    fitted = fit_temperature(replace(ctx, targets=targets, train=train))
    rest = sorted(set(range(50)) - set(seen[0]))
    assert len(rest) == 15
    z = logits[rest].movedim(1, -1).reshape(-1, 3).double().numpy()
    y = targets[rest].flatten().numpy()
    z, y = z[y != 255], y[y != 255]
    step = -(-len(y) // most)
    z, y = z[::step], y[::step]
    errors = [written_out(softmax(z / (k / 10), axis=1), y) for k in range(10, 200)]
    assert fitted == (10 + int(np.argmin(errors))) / 10
    assert fitted > 1


def test_few_labels_leave_the_posterior_as_it_is() -> None:
    def train(_: Sequence[int]) -> nn.Module:
        raise AssertionError("nothing to train on")

    assert fit_temperature(replace(context(labelled=3), train=train)) == 1.0


def test_outside_a_run_a_fitted_temperature_is_refused() -> None:
    signal = build(Need.of("uncertainty", temperature="fitted"))
    with pytest.raises(ConfigError, match="Give a number"):
        signal.fit(context())  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="got 'fitted'"):
        Probabilities("fitted").compute(network(), TASK, torch.zeros(1, 6))


def test_shapes_are_checked_before_anything_is_fitted() -> None:
    need = Need.of("probabilities", temperature="fitted")
    assert check([need], network(), TASK, torch.zeros(2, 6))[need].shape == (2, 4)


@pytest.mark.parametrize("value", [0, -1, "fit"])
def test_wrong_temperatures_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        strategy("margin", temperature=value)


def test_records_of_runs_without_the_option_stay_equal() -> None:
    assert describe_strategy(strategy("margin")) == {"name": "margin"}
    assert describe_strategy(strategy("badge", temperature=2)) == {
        "name": "badge",
        "temperature": 2.0,
    }
    for name in REGISTRY:
        for need in strategy(name).needs:
            if name not in ("u-herding", "refine"):
                assert "temperature" not in dict(need.options), name
