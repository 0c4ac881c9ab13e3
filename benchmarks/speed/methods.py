"""The methods: a line each in `METHODS`. To add one, write a function that makes a `Run`.

    def make(network, device) -> Run         # Run: samples (n, ...) -> norms (n,), or None

It builds its own model, so that hooks and memory formats of one method do not meet another's.
All take the entropy's gradient over all parameters and its global norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from speed import rivals
from speed.networks import Network, Run
from upslope.gradnorm import entropy, gradient_norms

Make = Callable[[Network, str], Run]


@dataclass(frozen=True)
class Method:
    """chunks: "batch", the whole batch at once; "one"; or "best", the fastest size, searched for.

    kind: "plain" computes no norms, "rival" or "ours" does.
    """

    name: str
    make: Make
    kind: str
    chunks: str = "batch"
    channels_last: bool = False
    aside: bool = False  # of lower precision: never the yardstick of a ratio

    def applies(self, network: Network) -> bool:
        """Whether the method differs from another on this network: words have no channels."""
        return not self.channels_last or network.memory_format is not None

    def sizes(self, batch: int) -> list[int]:
        """Chunk sizes to try, ascending."""
        if self.chunks == "best":
            return sorted({c for c in (batch // 8, batch // 4, batch // 2, batch) if c > 1})
        return [1 if self.chunks == "one" else batch]


def _laid_out(make: Callable[[nn.Module, Network], Run], channels_last: bool) -> Make:
    """A method on a model and samples in this memory format."""

    def made(network: Network, device: str) -> Run:
        model = network.model(device)
        if not channels_last:
            return make(model, network)
        memory_format = network.memory_format
        assert memory_format is not None
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        run = make(model, network)
        return lambda x: run(x.contiguous(memory_format=memory_format))

    return made


def forward(*, channels_last: bool = False) -> Make:
    """Outputs alone."""

    def make(model: nn.Module, _: Network) -> Run:
        def run(x: Tensor) -> None:
            with torch.no_grad():
                model(x)

        return run

    return _laid_out(make, channels_last)


def plain(*, channels_last: bool = False) -> Make:
    """One gradient for the whole batch: what a step of training costs."""

    def make(model: nn.Module, _: Network) -> Run:
        parameters = list(model.parameters())

        def run(x: Tensor) -> None:
            torch.autograd.grad(entropy(model(x)).sum(), parameters)

        return run

    return _laid_out(make, channels_last)


def one_by_one(network: Network, device: str) -> Run:
    """Forward and backward for each sample on its own, as the authors' code has it."""
    model = network.model(device)
    return lambda x: loop(model, x).norm(dim=1)


def loop(model: nn.Module, x: Tensor) -> Tensor:
    """(n, tensors): norms by batches of one; also what every other method is compared with."""
    parameters = list(model.parameters())
    norms = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(entropy(model(x[i : i + 1])).sum(), parameters)
        norms.append(torch.stack([g.norm() for g in gradients]))
    return torch.stack(norms)


def by_vmap(network: Network, device: str) -> Run:
    """torch.func: every sample's whole gradient, vectorised."""
    model = network.model(device)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return entropy(functional_call(model, (parameters, buffers), (x.unsqueeze(0),)))[0]

    gradients = vmap(grad(loss), in_dims=(None, 0))

    def run(x: Tensor) -> Tensor:
        found = gradients(parameters, x)
        return torch.stack([g.flatten(1).norm(dim=1) for g in found.values()]).norm(dim=0)

    return run


def ours(*, channels_last: bool = False, **options: Any) -> Make:
    """upslope.gradnorm. options: more arguments of `gradient_norms`."""

    def make(model: nn.Module, _: Network) -> Run:
        return lambda x: gradient_norms(model, x, entropy, **options)

    return _laid_out(make, channels_last)


METHODS: tuple[Method, ...] = (
    Method("forward", forward(), "plain"),
    Method("forward, channels_last", forward(channels_last=True), "plain", channels_last=True),
    Method("forward + backward", plain(), "plain"),
    Method(
        "forward + backward, channels_last",
        plain(channels_last=True),
        "plain",
        channels_last=True,
    ),
    Method("one-sample loop", one_by_one, "rival", "one"),
    Method("torch.func vmap", by_vmap, "rival", "best"),
    Method("Opacus, hooks", rivals.opacus_hooks, "rival", "best"),
    Method("Opacus, ghost", rivals.opacus_ghost, "rival", "best"),
    Method("BackPACK", rivals.backpack, "rival", "best"),
    Method("upslope", ours(), "ours"),
    Method("upslope, channels_last", ours(channels_last=True), "ours", channels_last=True),
    Method("upslope, bf16", ours(dtype=torch.bfloat16), "ours", aside=True),
)
"""In this order: a round of the measurement goes through them once."""
