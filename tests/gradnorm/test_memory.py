"""Scratch memory stays within what is asked for, at any batch size."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.uses.tape import Kernel, Tape
from upslope.gradnorm.trace.memory import Memory

MEASURE = """
import resource, sys, torch
from torch import nn
from torch.nn import functional as F
from upslope.gradnorm import gradient_norms
torch.manual_seed(0)
torch.set_num_threads(1)
what, n = sys.argv[1], int(sys.argv[2])
model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                      nn.Linear(1024, 10)).eval()
x = torch.randn(n, 24, 1024)
loss = lambda out: out.square().sum(dim=(1, 2))
def work(x):
    if what == "plain":
        loss(model(x)).sum().backward()
    else:
        gradient_norms(model, x, loss, max_memory=4 << 20)
work(x[:2])  # what the libraries take once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def peak(what: str, n: int, script: str = MEASURE) -> float:
    """MiB beyond the model and its input, in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script), what, str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory as Linux counts it")
@pytest.mark.long
def test_peak_memory_is_that_of_a_plain_pass_plus_the_bound():
    # One gradient per sample is 8 MiB here: 96 samples would take 770 MiB.
    plain, ours = peak("plain", 96), peak("norms", 96)
    assert ours < plain + 4 + 9 + 32, (plain, ours)  # the bound, a copy of the input, noise


VOLUMES = """
import resource, sys, torch
from torch import nn
from upslope.gradnorm import gradient_norms, entropy
torch.manual_seed(0)
torch.set_num_threads(1)
def block(c, o): return [nn.Conv3d(c, o, 3, padding=1), nn.GroupNorm(4, o), nn.ReLU()]
model = nn.Sequential(*block(1, 8), *block(8, 8), *block(8, 8), *block(8, 8), nn.Conv3d(8, 2, 1),
                      nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
x = torch.randn(4, 1, 40, 40, 40)
def work(x):
    if sys.argv[1] == "plain":
        torch.autograd.grad(entropy(model(x)).sum(), list(model.parameters()))
    else:
        gradient_norms(model, x, "entropy", max_memory=1 << 20)
work(x[:2, ..., :8, :8, :8])  # what the libraries take once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(int(sys.argv[2])):
    work(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory as Linux counts it")
@pytest.mark.long
@pytest.mark.parametrize("calls", [1, 4])
def test_a_few_large_volumes_stay_within_the_bound_from_the_first_call_on(calls: int) -> None:
    # Single volumes were unfolded by the proofs, and the heap kept holes as large as what is alive.
    plain, ours = peak("plain", calls, VOLUMES), peak("norms", calls, VOLUMES)
    assert ours < plain + 1, (plain, ours)


def test_the_bound_does_not_change_the_result():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(72, 5)
    ).double()
    x = torch.randn(6, 3, 9, 9).double()
    free = gradient_norms(model, x, "entropy")
    for memory in (1, 1000, 1 << 20):
        assert torch.allclose(
            gradient_norms(model, x, "entropy", max_memory=memory), free, rtol=1e-12
        )


@pytest.mark.parametrize("shape", [(2, 6, 7, 5), (32, 27, 27, 3)])
def test_a_volume_alone_and_in_company_have_the_same_norms(shape: tuple[int, ...]) -> None:
    # Alone, a small float32 volume goes through convolutions in another way; a large one does not.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(shape[0], 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose3d(6, 4, 2, stride=2),
        nn.Conv3d(4, 4, 3, groups=2, dilation=2), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
    ).eval()  # fmt: skip
    x = torch.randn(3, *shape)
    exact = gradient_norms(copy.deepcopy(model).double(), x.double(), "entropy")
    for memory in (None, 1):
        rows = [gradient_norms(model, x[i : i + 1], "entropy", max_memory=memory) for i in range(3)]
        torch.testing.assert_close(torch.cat(rows).double(), exact, rtol=1e-4, atol=0)
        together = gradient_norms(model, x, "entropy", max_memory=memory)
        torch.testing.assert_close(together.double(), exact, rtol=1e-4, atol=0)


class Shifted(nn.Module):
    """A scale that is used twice with one shape, and a weight made of another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.direction = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.direction / self.direction.norm(dim=1, keepdim=True)
        return (x * self.scale) @ weight.t() + x * self.scale


class Added(nn.Module):
    """A layer of the sum of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x + y)
        return out


def test_a_known_batch_leaves_no_circle_of_objects_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "draw_proof", lambda _: False)
    torch.manual_seed(0)
    model, inputs = Added(), (torch.randn(4, 6), torch.randn(4, 6))
    for _ in range(3):
        gradient_norms(model, inputs, "entropy")
    gc.collect()
    gradient_norms(model, inputs, "entropy")
    assert gc.collect() == 0


class Chosen(nn.Module):
    """Experts, each of which is asked whether some row has chosen it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 2)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        which = self.router(x).softmax(dim=1).topk(1)[1].flatten()
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = which == number
            if mask.any():
                out[mask] = expert(x[mask])
        return out


class Prototypes(nn.Module):
    """Distances to learned places, by an operator that is run again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.places = nn.Parameter(torch.randn(3, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x * self.scale, self.places)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(1, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 1)),
        Shifted(),
        Chosen(),
        Prototypes(),
    ],
    ids=[
        "fused convolution", "weights of a weight", "experts that are asked for", "prototypes",
    ],
)  # fmt: skip
def test_what_a_pass_keeps_goes_with_it(model: nn.Module) -> None:
    # Without the garbage collector, which would take as long as the pass, and come too late.
    x = torch.randn(4, 1, 5, 5) if isinstance(model, nn.Sequential) else torch.randn(4, 6)
    gc.disable()
    try:
        loss = lambda out: out.flatten(1).square().sum(dim=1)  # noqa: E731
        gradient_norms(model.eval(), x, loss)  # which also proves the program, in passes of others
        gc.collect()
        gradient_norms(model, x, loss)
        left = [x for x in gc.get_objects() if issubclass(type(x), (Tape, Kernel))]
    finally:
        gc.enable()
    assert not left
