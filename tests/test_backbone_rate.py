"""A lower rate for what is below the head, and its place among what runs have recorded."""

import pytest
import torch

from upslope import datasets, models
from upslope.errors import ConfigError
from upslope.tasks import Classification
from upslope.training import TrainingSettings, train
from upslope.training.optimizers import make_optimizer


def network():
    torch.manual_seed(0)
    return models.build("mlp", num_classes=10, input_shape=(1, 8, 8), hidden=8)


def test_one_step_moves_the_head_as_before_and_the_rest_by_a_share():
    """Of plain SGD without momentum: a step is rate times gradient."""
    splits = datasets.load("digits", limit=60, test_limit=10)
    steps = {}
    for rate in (1.0, 0.1):
        model, settings = (
            network(),
            TrainingSettings(
                epochs=1, batch_size=30, momentum=0, weight_decay=0, lr=0.1, backbone_rate=rate
            ),
        )
        before = {k: v.clone() for k, v in model.state_dict().items()}
        train(
            model,
            Classification(10),
            splits.pool,
            range(30),
            settings,
            seed=0,
            device=torch.device("cpu"),
        )
        steps[rate] = {k: v - before[k] for k, v in model.state_dict().items()}
    for key, step in steps[1.0].items():
        factor = 1.0 if key.startswith("head") else 0.1
        torch.testing.assert_close(steps[0.1][key], factor * step, rtol=1e-3, atol=1e-7)
        assert step.abs().max() > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_groups_are_the_head_and_the_rest(optimizer):
    model = network()
    settings = TrainingSettings(optimizer=optimizer, lr=0.2, backbone_rate=0.05)
    first, second = make_optimizer(model, settings).param_groups
    assert {id(p) for p in first["params"]} == {id(p) for p in model.head.parameters()}
    assert (first["lr"], second["lr"]) == (0.2, pytest.approx(0.01))
    rest = [p for p in model.parameters() if all(p is not q for q in model.head.parameters())]
    assert len(second["params"]) == len(rest)
    for parameter in rest:
        parameter.requires_grad_(False)
    assert len(make_optimizer(model, settings).param_groups) == 1


def test_muon_refuses_and_records_compare_as_before():
    with pytest.raises(ConfigError, match="`backbone_rate` to be 1 with optimizer muon"):
        TrainingSettings(optimizer="muon", backbone_rate=0.1)
    assert "backbone_rate" not in TrainingSettings().record()
    assert TrainingSettings(backbone_rate=0.1).record()["backbone_rate"] == 0.1
