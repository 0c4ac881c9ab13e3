"""Every network of the registry keeps the contract; a new one gets a line in `SHAPES` if it is not
for images of 3 x 32 x 32."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from upslope import models
from upslope.errors import ConfigError
from upslope.models.base import NamesStages
from upslope.seeds import global_generator

SHAPES = {
    "resnet18-3d": (1, 16, 16, 16),
    "resnet-small-3d": (1, 16, 16, 16),
    "bag-of-words": (2, 9),
    "drn-d-22": (3, 32, 32),
}
OPTIONS = {"pretrained": {"weights": False}, "pretrained-masks": {"weights": False}}
LARGE = {"resnet50-cifar", "resnet50", "vgg16", "vgg16-bn"}
"""Built without memory alone: a forward pass takes seconds; the code is that of smaller ones."""
FROM_FOLDERS = {"transformers"}
"""Read from a folder of the user's, with tests of their own."""
every_model = pytest.mark.parametrize("name", sorted(models.REGISTRY.keys() - LARGE - FROM_FOLDERS))


def build(name: str, seed: int = 0) -> nn.Module:
    with global_generator(seed, "weights", device=torch.device("cpu")):
        return models.build(
            name, num_classes=4, input_shape=SHAPES.get(name, (3, 32, 32)), **OPTIONS.get(name, {})
        )


def inputs(name: str, n: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    shape = (n, *SHAPES.get(name, (3, 32, 32)))
    if name == "bag-of-words":
        return torch.randint(0, 5, shape, generator=rng, dtype=torch.int32)
    return torch.randn(shape, generator=rng)


@every_model
def test_logits_of_a_sample_do_not_depend_on_the_others(name: str) -> None:
    model, x = build(name).eval(), inputs(name)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape[:2] == (3, 4)
        assert bool(torch.isfinite(logits).all())
        torch.testing.assert_close(model(x[[1]])[0], logits[1], atol=1e-4, rtol=1e-4)


@every_model
def test_weights_come_from_the_generator_and_all_of_them_learn(name: str) -> None:
    first, again = build(name), build(name)
    for (key, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    first.train()
    first(inputs(name)).square().sum().backward()
    assert all(p.grad is not None for p in first.parameters() if p.requires_grad)
    assert any(p.requires_grad for p in first.parameters())


@every_model
def test_it_is_copied_and_its_factory_travels_to_other_processes(name: str) -> None:
    model, x = build(name).eval(), inputs(name)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(x), model(x))
    factory = partial(models.build, name, num_classes=4, input_shape=SHAPES.get(name, (3, 32, 32)))
    assert pickle.loads(pickle.dumps(factory)).args == (name,)


@every_model
def test_it_names_its_stages_and_has_features_below_a_head(name: str) -> None:
    model, x = build(name).eval(), inputs(name)
    assert isinstance(model, NamesStages)
    stages = model.stages
    assert len({model.get_submodule(stage) for stage in stages}) == len(stages) >= 2
    if model(x).ndim == 2:
        with torch.no_grad():
            logits, features = models.with_features(model, x)
        assert torch.equal(logits, model(x))
        assert features.shape[0] == 3


@pytest.mark.parametrize("name", sorted(models.REGISTRY.keys() - FROM_FOLDERS))
def test_options_are_described_and_no_other_is_taken(name: str) -> None:
    (line,) = [line for line in models.describe() if line.name == name]
    assert line.summary
    assert all(option.help for option in line.options), name
    with pytest.raises(ConfigError, match="no_such_option"):
        models.check_options(name, {"no_such_option": 1})
    with torch.device("meta"):
        models.build(
            name, num_classes=4, input_shape=SHAPES.get(name, (3, 32, 32)), **OPTIONS.get(name, {})
        )
