"""`explain` tells the path that is taken, for every use, in order."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import watched
from test_attention import Encoder
from test_model_structures import Hidden
from test_uses_of_parameters import Functional
from torch import nn

from upslope.gradnorm import explain, gradient_norms


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(8 * 64, 4),
    )  # fmt: skip
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    return model.eval()


def test_every_use_in_order_with_its_share():
    found = explain(net(), torch.randn(3, 3, 8, 8))
    assert [use.parameters for use in found.uses] == [
        ("0.weight", "0.bias", "1.weight", "1.bias"), ("4.weight", "4.bias"),
    ]  # fmt: skip
    assert [use.operator for use in found.uses] == ["conv2d + batch_norm (eval)", "linear"]
    assert found.path == "kernel"
    assert math.isclose(sum(use.share for use in found.uses), 1)
    assert found.uses[0].share > found.uses[1].share > 0
    assert found.uses[0].method
    assert "unused" in found.note


def test_it_prints_a_table():
    lines = str(explain(net(), torch.randn(3, 3, 8, 8))).splitlines()
    assert lines[2].split() == ["parameters", "operator", "path", "method", "work", "share"]
    assert lines[3].startswith("0: weight, bias; 1: weight, bias  ")
    assert lines[3].endswith("%")
    assert len(lines) == 5


def test_it_tells_what_the_engine_does():
    torch.manual_seed(0)
    model, ids = Encoder(False, True, "expand").double().eval(), torch.randint(0, 11, (3, 5))
    found = explain(model, ids)
    with watched() as seen:
        gradient_norms(model, ids, "entropy")
    assert [use.operator for use in found.uses] == seen.operators


def test_the_method_follows_the_shape():
    wide = explain(nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 32, 32)).uses[0].method
    deep = explain(nn.Conv2d(256, 256, 3, padding=1), torch.randn(2, 256, 3, 3)).uses[0].method
    assert "ghost" not in wide
    assert "ghost" in deep


def test_a_replayed_operator_and_a_slow_network_are_named_with_the_reason():
    torch.manual_seed(0)
    replayed = Functional(lambda m, x: -torch.cdist(x, m.w), w=(3, 4))
    assert explain(replayed, torch.randn(3, 4)).path == "replayed"
    slow = explain(Hidden(weighted=True, first=False), torch.randn(3, 4))
    assert slow.path == "one by one"
    assert "`w` is used where no operator can be seen" in slow.note


def test_without_inputs_the_modules_are_read_and_it_says_so():
    found = explain(Encoder(True, True, "expand"))
    paths = {use.parameters[0]: use.path for use in found.uses}
    assert paths["words.weight"] == "kernel"
    assert paths["scale"] == "seen when it runs"
    assert "Read from the modules alone" in found.note
    assert all(math.isnan(use.share) for use in found.uses)


@pytest.mark.parametrize("parameters", ["last", "0"])
def test_chosen_parameters_only(parameters):
    found = explain(net(), torch.randn(3, 3, 8, 8), parameters=parameters)
    assert len(found.uses) == 1
