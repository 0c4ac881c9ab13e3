"""An extractor of the user's own: imported by name, tried before training, read by strategies."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from toy import context

from upslope.errors import ConfigError, ModelError
from upslope.pool import Need
from upslope.signals import build, check
from upslope.strategies import build as build_strategy
from upslope.tasks.classification import Classification

TASK = Classification(num_classes=2)


class Maps(nn.Module):
    """Two maps a sample: the image, and its negative doubled; noise in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([x, -2 * x], dim=1)
        return maps + torch.randn_like(maps) if self.training else maps


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("upslope_test_nets")
    module.maps = lambda num_classes, input_shape: Maps()  # type: ignore[attr-defined]
    module.short = lambda num_classes, input_shape: nn.Flatten(0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "upslope_test_nets", module)
    return module


@pytest.mark.usefixtures("nets")
def test_gives_the_mean_of_each_map() -> None:
    ctx = context()
    need = Need.of("extracted-features", extractor="upslope_test_nets:maps")
    x = ctx.dataset.inputs([0, 70])
    features = build(need).fit(ctx).compute(ctx.model, TASK, x)  # type: ignore[attr-defined]
    level = x.flatten(1).mean(dim=1)
    assert torch.allclose(features, torch.stack([level, -2 * level], dim=1), atol=1e-6)


@pytest.mark.usefixtures("nets")
def test_faults_are_told_before_training() -> None:
    ctx = context()
    x = ctx.dataset.inputs([0, 70])
    state = torch.get_rng_state()
    check([Need.of("extracted-features", extractor="upslope_test_nets:maps")], ctx.model, TASK, x)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ModelError, match=r"features \(2, d\) for 2 samples but got \(128,\)"):
        check(
            [Need.of("extracted-features", extractor="upslope_test_nets:short")], ctx.model, TASK, x
        )
    with pytest.raises(ConfigError, match="no_such_package"):
        check([Need.of("extracted-features", extractor="no_such_package:f")], ctx.model, TASK, x)
    with pytest.raises(ConfigError, match="`extractor`"):
        build(Need.of("extracted-features", extractor="resnet"))


@pytest.mark.parametrize(
    "name", ["typiclust", "tcm", "prob-cover", "max-herding", "u-herding", "facility-location"]
)
def test_strategies_for_few_labels_take_it(name: str) -> None:
    strategy = build_strategy(name, features="nets:features")
    expected = Need.of("extracted-features", extractor="nets:features", labelled=True)
    assert strategy.needs[0] == expected
    assert build_strategy(name).needs[0] == Need.of("features", labelled=True)
    with pytest.raises(ConfigError, match="`features`"):
        build_strategy(name, features="resnet18")
