"""Networks that know their fastest order of memory: the same numbers, resumed and sent with it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope import datasets, models, tasks
from upslope.distributed.parcels import Holdings
from upslope.gradnorm import gradient_norms
from upslope.models.memory_order import WIDE, ArrangesMemory
from upslope.models.resnet import BasicBlock, ResNet
from upslope.progress import Interrupted, Progress, Stop
from upslope.seeds import global_generator
from upslope.training import TrainingSettings, place, train
from upslope.training.evaluate import _Evaluation

CPU = torch.device("cpu")
SETTINGS = TrainingSettings(epochs=2, batch_size=16, lr=0.05, momentum=0.9)
TASK = tasks.build("classification", num_classes=10, augmentation="shift", pad=1)


def wide_network() -> ResNet:
    """A network with a narrow stage, a wide one, and a wide one of single pixels."""
    return ResNet(BasicBlock, (1, 1, 1), (8, WIDE, WIDE), 10, 1)


def small_network() -> nn.Module:
    return models.build("resnet-small", num_classes=10, input_shape=(1, 8, 8), width=8)


def fresh(make: object = small_network) -> nn.Module:
    with global_generator(0, "weights", device=CPU):
        return make()  # type: ignore[operator]


def has_channels_last(weight: Tensor) -> bool:
    return weight.stride(1) == 1 and not weight.is_contiguous()


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), torch.arange(len(x)) % 10).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["resnet-small", "resnet18-cifar", "cnn-small", "cnn-fast", None])
def test_an_arranged_network_is_the_same_function(name: str | None) -> None:
    torch.manual_seed(0)
    shape = {None: (1, 8, 8), "resnet18-cifar": (3, 16, 16)}.get(name, (3, 32, 32))
    build = wide_network
    plain = build() if name is None else models.build(name, num_classes=10, input_shape=shape)
    plain = plain.double()
    arranged = copy.deepcopy(plain)
    assert isinstance(arranged, ArrangesMemory)
    arranged.arrange_memory()
    strides = [p.stride() for p in arranged.parameters()]
    arranged.arrange_memory()
    assert strides == [p.stride() for p in arranged.parameters()]
    for one, other in zip(plain.parameters(), arranged.parameters(), strict=True):
        assert torch.equal(one, other)
    x = torch.randn(3, *shape, dtype=torch.float64)
    for mode in (True, False):
        torch.testing.assert_close(arranged.train(mode)(x), plain.train(mode)(x))
        for one, other in zip(gradients(plain, x), gradients(arranged, x), strict=True):
            torch.testing.assert_close(other, one)
    norms = gradient_norms(arranged.eval(), x, "entropy")
    for i in range(len(x)):  # by autograd, one sample at a time
        log_p = plain.eval()(x[i : i + 1]).log_softmax(1)
        weights = [p for p in plain.parameters() if p.requires_grad]
        each = torch.autograd.grad(-(log_p.exp() * log_p).sum(), weights)
        expected = torch.stack([g.square().sum() for g in each]).sum().sqrt()
        torch.testing.assert_close(norms[i], expected, rtol=1e-9, atol=1e-12)


def test_wide_stages_keep_their_positions_last() -> None:
    network = wide_network()
    network.arrange_memory()
    assert has_channels_last(network.layer1[0].conv2.weight)
    assert network.layer2[0].conv2.weight.is_contiguous()
    images = {}
    for stage in ("layer1", "layer2"):
        network.get_submodule(stage)[0].conv2.register_forward_hook(
            lambda _m, _i, out, stage=stage: images.update({stage: out})
        )
    network(torch.randn(2, 1, 8, 8))
    assert not images["layer1"].is_contiguous()
    assert images["layer2"].is_contiguous()


def test_it_is_chosen_for_a_cpu_unless_the_settings_say_otherwise() -> None:
    network = place(small_network(), SETTINGS, CPU)
    assert has_channels_last(network.layer2[0].conv2.weight)
    every = TrainingSettings(channels_last=True)
    assert has_channels_last(place(wide_network(), every, CPU).layer2[0].conv2.weight)
    other = place(nn.Sequential(nn.Conv2d(3, 4, 3)), SETTINGS, CPU)
    assert other[0].weight.is_contiguous()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("batch", [1, 5, 7])
def test_stopped_in_that_order_it_goes_on_bit_for_bit(
    tmp_path: Path, optimizer: str, batch: int
) -> None:
    data = datasets.load("digits").pool
    settings = TrainingSettings(epochs=2, batch_size=16, lr=0.01, optimizer=optimizer)

    def fit(**options: object) -> Tensor:
        model = fresh()
        train(model, TASK, data, range(70), settings, seed=3, device=CPU, **options)  # type: ignore[arg-type]
        return torch.cat([t.detach().flatten() for t in model.state_dict().values()])

    whole, stop, checkpoint = fit(), Stop(), tmp_path / "training.safetensors"

    def watch(progress: Progress) -> None:
        if progress.done == batch:
            stop.request()

    with pytest.raises(Interrupted):
        fit(observer=watch, stop=stop, checkpoint=checkpoint)
    assert torch.equal(fit(checkpoint=checkpoint), whole)


@pytest.mark.parametrize("make", [small_network, wide_network])
def test_another_process_gets_weights_in_the_same_order(make: object) -> None:
    data = datasets.load("digits").pool
    model = place(fresh(make), SETTINGS, CPU).eval()
    work = _Evaluation(model, TASK, data, range(8), CPU)
    here, there = (Holdings({"pool": data}, make, CPU) for _ in range(2))  # type: ignore[arg-type]
    parcel = here.pack(work)
    received = there.unpack(parcel)
    for (name, one), other in zip(
        model.named_parameters(), received.model.parameters(), strict=True
    ):
        assert torch.equal(one, other), name
        assert one.stride() == other.stride(), name
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), received.model(x))
