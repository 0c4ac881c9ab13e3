"""The network of word vectors: its definition, its mask, its gradient norms."""

import pytest
import torch

from upslope import gradient_norms, models
from upslope.errors import ModelError
from upslope.gradnorm import explain


def network(**options):
    torch.manual_seed(0)
    given = {"num_classes": 3, "input_shape": (2, 5), "rows": 11, "width": 4, "hidden": 6}
    return models.build("bag-of-words", **{**given, **options}).double().eval()


def texts():
    numbers = torch.tensor([[3, 9, 14, 7, 7], [2**31 - 1, 4, 0, 0, 0], [0] * 5])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0] * 5])
    return torch.stack((numbers, mask), dim=1).int()


def test_it_is_the_mean_of_vectors_a_layer_and_a_head():
    model, x = network(), texts()
    table = model.words.vectors.weight
    rows = ([3, 9, 3, 7, 7], [(2**31 - 1) % 11, 4])  # 14 shares the row of 3
    means = torch.stack([*(table[one].mean(0) for one in rows), torch.zeros(4).double()])
    hidden = (means @ model.hidden[0].weight.T + model.hidden[0].bias).relu()
    expected = hidden @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(x), expected)
    other = x.clone()
    other[1, 0, 2:] = 8  # behind the mask
    assert torch.equal(model(other), model(x))


def test_gradient_norms_are_autograds_without_a_fallback():
    model, x = network(), texts()
    truth = []
    for i in range(len(x)):
        p = model(x[i : i + 1]).softmax(1)
        entropy = torch.special.entr(p).sum()
        gradients = torch.autograd.grad(entropy, list(model.parameters()))
        truth.append(torch.sqrt(sum(g.square().sum() for g in gradients)))
    found = gradient_norms(model, x, "entropy")
    torch.testing.assert_close(found, torch.stack(truth), rtol=1e-9, atol=1e-12)
    assert "one by one" not in str(explain(model, x))


def test_images_are_refused():
    with pytest.raises(ModelError, match=r"\(2, t\), token ids .* `bag-of-words` .* \(3, 8, 8\)"):
        network(input_shape=(3, 8, 8))
