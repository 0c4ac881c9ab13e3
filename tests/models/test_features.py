"""The head of a classifier and its input."""

import pytest
import torch
from torch import nn

from upslope import models
from upslope.errors import ModelError


@pytest.mark.parametrize("name", ["resnet-small", "cnn-small", "mlp"])
def test_features_times_head_are_the_logits(name):
    torch.manual_seed(0)
    model = models.build(name, num_classes=5, input_shape=(1, 8, 8)).eval()
    x = torch.randn(4, 1, 8, 8)
    outputs, features = models.with_features(model, x)
    head = models.head(model)
    assert features.shape == (4, head.in_features)
    torch.testing.assert_close(features @ head.weight.T + head.bias, outputs)
    torch.testing.assert_close(outputs, model(x))


class TwoHeads(nn.Module):
    """Its unused head is registered last, as in the authors' network."""

    def __init__(self, name=None):
        super().__init__()
        self.body, self.fc, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        if name:
            self.head_name = name

    def forward(self, x):
        return {"aux": x, "logits": self.fc(self.body(x).relu())}


def test_a_wrong_guess_is_refused_and_can_be_put_right():
    with pytest.raises(ModelError, match=r"ran 0 times.*`head_name`"):
        models.with_features(TwoHeads(), torch.zeros(2, 3))
    with pytest.raises(ModelError, match="'head' is NoneType"):
        models.with_features(TwoHeads("head"), torch.zeros(2, 3))
    outputs, features = models.with_features(TwoHeads("fc"), torch.ones(2, 3))
    assert outputs["logits"].shape == (2, 2)
    assert features.shape == (2, 4)


def test_changed_outputs_and_models_without_head_are_refused():
    with pytest.raises(ModelError, match="changed or not returned"):
        models.with_features(nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)), torch.zeros(2, 3))
    with pytest.raises(ModelError, match=r"has no nn\.Linear"):
        models.head(nn.Conv2d(1, 1, 1))


def test_hooks_are_left_as_found_also_on_errors():
    model = nn.Sequential(nn.Linear(3, 2))
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    before = dict(model[0]._forward_hooks)
    models.with_features(model, torch.zeros(1, 3))
    with pytest.raises(RuntimeError):
        models.with_features(model, torch.zeros(1, 4))
    assert dict(model[0]._forward_hooks) == before
    assert seen == [1]
