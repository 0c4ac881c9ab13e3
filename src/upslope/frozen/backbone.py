"""A network cut in front of its head: what makes the features, and how to tell it again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from upslope.counts import list_some
from upslope.errors import ConfigError, ModelError
from upslope.models import head, with_features
from upslope.seeds import generator, global_generator
from upslope.tasks.base import Normalises, Task
from upslope.tensor_digest import add_tensors

_MOST_NAMES = 3


@dataclass(frozen=True)
class Backbone:
    """A network in eval mode, and what tells it from others.

    network, task: the model, and the task that prepares its inputs.
    digest: SHA-256 of all weights below the head, of the structure and of the statistics by which
    images are normalised. Code is told by `probe`, as an edit need not change what it computes.
    width: features per sample. bias: whether the head has one. initial: the weights that the head
    begins with, where the network has them; else they come from the generator, in every run its
    own.
    """

    network: nn.Module
    task: Task
    digest: str
    width: int
    bias: bool
    initial: dict[str, Tensor] | None

    def features(self, inputs: Tensor) -> Tensor:
        """Return the features of raw inputs, (n, *input_shape) -> (n, width) float32, on the CPU.

        Raises:
            ModelError: the head did not run once, or takes more than one vector per sample.
        """
        with torch.no_grad():
            _, features = with_features(self.network, self.task.prepare(inputs))
        if features.shape != (len(inputs), self.width):
            raise ModelError(
                f"Expected the head of {type(self.network).__name__} to take one vector per "
                f"sample, ({len(inputs)}, {self.width}), for model.freeze but it takes "
                f"{tuple(features.shape)}. Train the network without model.freeze."
            )
        return features.float().cpu()

    def make_head(self, num_classes: int) -> Callable[[], nn.Module]:
        """Return a factory of the head alone, which a run trains; it can be pickled.

        num_classes: outputs of the head.
        """
        return partial(build_head, self.width, num_classes, self.bias, self.initial)

    def probe(self, inputs: Tensor) -> Tensor:
        """Return the features of two made-up samples in the form of `inputs`, (n, ...)."""
        rng, shape = generator(0, "probe"), (2, *inputs.shape[1:])
        if inputs.dtype == torch.uint8:
            pixels = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
        elif inputs.is_floating_point():
            pixels = torch.randn(shape, generator=rng)
        else:
            pixels = torch.ones(shape, dtype=inputs.dtype)  # token ids that every vocabulary has
        return self.features(pixels.to(inputs.device))


def build_head(
    width: int, num_classes: int, bias: bool, initial: dict[str, Tensor] | None
) -> nn.Linear:
    """Return a linear layer with given weights, or with new ones from torch's global generator."""
    layer = nn.Linear(width, num_classes, bias)
    if initial is not None:
        layer.load_state_dict(initial)
    return layer


def take_backbone(factory: Callable[[], nn.Module], task: Task, device: torch.device) -> Backbone:
    """Return what is below the head of a network, seen to begin with the same weights each time.

    factory: of the whole network. task: says how inputs are prepared. device: where to compute.

    Raises:
        ConfigError: weights below the head come from a random generator, so that there would be
            another network in every run and nothing learnt in any of them.
        ModelError: a network without a linear layer for a head.
    """
    one, other = build_trained(factory)
    layer = head(one)
    name, inside = _head_keys(one)
    first, second = one.state_dict(), other.state_dict()
    repeats = all(torch.equal(first[key], second[key]) for key in inside)
    below = {key: value for key, value in first.items() if key not in inside}
    both = (task.mean, task.std) if isinstance(task, Normalises) else ((), ())
    statistics = [list(values) for values in both]
    return Backbone(
        network=one.to(device).eval().requires_grad_(False),
        task=task,
        digest=_digest(one, name, below, statistics),
        width=layer.in_features,
        bias=layer.bias is not None,
        initial={k: v.detach().clone() for k, v in layer.state_dict().items()} if repeats else None,
    )


def build_trained(factory: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Return a network built under two seeds, seen to have the same weights below its head.

    Raises:
        ConfigError: weights below the head that come from a random generator.
        ModelError: a network without a linear layer for a head.
    """
    one, other = (_build(factory, seed) for seed in (0, 1))
    name, inside = _head_keys(one)
    first, second = one.state_dict(), other.state_dict()
    random = [k for k in first if k not in inside and not torch.equal(first[k], second[k])]
    if random:
        raise ConfigError(
            f"Expected a network with trained weights below its head {name!r} for model.freeze "
            f"but {list_some(random, _MOST_NAMES)} of {type(one).__name__} begin at random. Give "
            "the network its weights, or leave model.freeze out."
        )
    return one, other


def _head_keys(network: nn.Module) -> tuple[str, set[str]]:
    """Return the name of the head and the keys of its weights among those of the network."""
    layer = head(network)
    name = next(n for n, module in network.named_modules() if module is layer)
    return name, {f"{name}.{key}" if name else key for key in layer.state_dict()}


def _build(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with global_generator(seed, "weights", device=torch.device("cpu")):
        return factory()


def _digest(
    network: nn.Module, name: str, weights: dict[str, Tensor], statistics: Sequence[object]
) -> str:
    """Return the SHA-256 of everything that decides features, as far as it can be read off."""
    sha256 = hashlib.sha256(f"{name} {statistics} {_structure(network, name)}".encode())
    add_tensors(sha256, weights.items())
    return sha256.hexdigest()


def _structure(network: nn.Module, name: str) -> list[str]:
    """Return one line per module without children, but for the head, whose size the
    classes decide.
    """
    return [
        f"{key} {module!r}"
        for key, module in network.named_modules()
        if key != name and not any(module.children())
    ]
