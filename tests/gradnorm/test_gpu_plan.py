"""The plan for a GPU, run on a CPU: exact, and with no call for each few of the samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from upslope.gradnorm import arguments, gradient_norms
from upslope.gradnorm.core.chunks import CACHE, DEVICE_SCRATCH, SCRATCH, in_cache
from upslope.gradnorm.kernels import norm
from upslope.gradnorm.kernels.conv import arrangement, cost_model, fused
from upslope.gradnorm.kernels.conv.methods import ConvWeightGradient
from upslope.gradnorm.kernels.conv.operands import Geometry
from upslope.gradnorm.trace import microbatches


@pytest.fixture(autouse=True)
def without_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (arguments, arrangement, cost_model, fused, microbatches, norm):
        monkeypatch.setattr(module, "has_caches", lambda _: False)


class Twice(nn.Module):
    """A layer that each sample uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.conv(x).relu())
        return self.head(y.mean(dim=(2, 3)))


def images(*layers: nn.Module, out: int) -> nn.Module:
    return nn.Sequential(
        *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(out, 4)
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: images(nn.Conv2d(3, 8, 3, padding=1), out=32), (3, 9, 9)),
    "strided, dilated": (
        lambda: images(nn.Conv2d(3, 8, 3, stride=2, dilation=2, padding=2), out=32), (3, 11, 9),
    ),
    "grouped": (lambda: images(nn.Conv2d(6, 9, 3, groups=3), out=36), (6, 8, 8)),
    "depthwise": (lambda: images(nn.Conv2d(6, 12, 5, groups=6, stride=2), out=48), (6, 12, 9)),
    "single pixels": (lambda: images(nn.Conv2d(5, 7, 1, bias=False), out=28), (5, 6, 6)),
    "transposed": (
        lambda: images(nn.ConvTranspose2d(3, 5, 3, stride=2, output_padding=1), out=20), (3, 5, 5),
    ),
    "few positions": (lambda: images(nn.Conv2d(24, 32, 3, padding=1), out=128), (24, 3, 3)),
    "normalised": (
        lambda: images(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6),
            out=24,
        ), (3, 9, 9),
    ),
    "signals": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 5, padding=2), nn.ReLU(), nn.Conv1d(6, 4, 3, dilation=2, groups=2),
            nn.Flatten(), nn.Linear(4 * 8, 4),
        ), (2, 12),
    ),
    "volumes": (
        lambda: nn.Sequential(
            nn.Conv3d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv3d(5, 3, (1, 2, 2), stride=2),
            nn.Flatten(), nn.Linear(3 * 12, 4),
        ), (2, 5, 4, 5),
    ),
    "twice": (Twice, (3, 7, 7)),
    "attention": (
        lambda: nn.Sequential(
            nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            nn.Flatten(), nn.Linear(40, 4),
        ), (5, 6),
    ),
    "recurrence": (lambda: nn.Sequential(Last(), nn.Linear(7, 4)), (6, 3)),
}  # fmt: skip


class Last(nn.Module):
    """The last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 7, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0]
        return y[:, -1]


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_agree_with_autograd(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    assert_agrees(make(), torch.randn(5, *shape))


@pytest.mark.parametrize("name", ["normalised", "few positions", "attention", "volumes"])
def test_no_more_calls_for_more_samples(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model = make().eval()
    few, many = (calls(model, torch.randn(n, *shape)) for n in (32, 1024))
    assert many <= 1.1 * few  # of sketches for proofs, sizes decide


def calls(model: nn.Module, x: Tensor) -> int:
    """Return how many operators run for a batch that is not proven."""
    for _ in range(2):
        gradient_norms(model, x, "entropy")
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        gradient_norms(model, x, "entropy")
    return sum(e.count for e in profiled.key_averages() if e.key.startswith("aten::"))


def test_methods_serve_many_samples_by_one_call() -> None:
    def method(c: int, o: int, side: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        positions = (side - kernel) // stride + 1
        x, g = (
            torch.empty(1).expand(8, 1, c, side, side),
            torch.empty(1).expand(8, 1, o, positions, positions),
        )
        geometry = Geometry((stride, stride), (0, 0), (1, 1), groups)
        return cost_model.best(ConvWeightGradient(x, g, geometry, (o, c // groups, kernel, kernel)))

    assert method(64, 64, 34, 3) == "im2col"
    assert method(512, 512, 6, 3) == "shifted_ghost"
    assert method(512, 512, 7, 3, stride=2) == "ghost"
    assert method(64, 64, 34, 3, groups=64) == "windows"
    assert method(64, 64, 34, 3, groups=4) == "im2col"


def test_a_chunk_takes_all_scratch_where_no_cache_holds_it() -> None:
    assert in_cache(CACHE, SCRATCH) == CACHE
    assert in_cache(CACHE, CACHE // 2) == CACHE // 2
    assert in_cache(CACHE, DEVICE_SCRATCH) == DEVICE_SCRATCH
