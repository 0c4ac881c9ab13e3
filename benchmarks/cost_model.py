"""Measure the constants of the convolutions' cost model, and how good its choices are.

    python benchmarks/cost_model.py [--seconds 0.3] [--threads 2]

The unit is one multiply-add of a large float32 matrix product. Each method is timed on a few
shapes. Its cost in `upslope.gradnorm.kernels.conv.cost_model` is linear in each of its constants,
so these are fitted to the times by least squares of relative errors, none below zero; all other
constants keep their values in the code. A second table compares, for the layers of known networks,
the method that the model chooses with the one that was fastest.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.utils.benchmark import Timer

from upslope.gradnorm.core import matrix_products
from upslope.gradnorm.core.chunks import SCRATCH
from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts
from upslope.gradnorm.kernels.conv import cost_model
from upslope.gradnorm.kernels.conv.gradients import group_gradients, samples_per_call
from upslope.gradnorm.kernels.conv.methods import METHODS
from upslope.gradnorm.kernels.conv.operands import ConvOperands, Geometry

SAMPLES = 8
"""Samples in a timed batch, where the method does not depend on their number."""


@dataclass(frozen=True)
class Layer:
    """A convolution with padding that keeps the size, but for its stride."""

    c: int
    o: int
    side: int
    kernel: int = 3
    dimensions: int = 2
    stride: int = 1
    groups: int = 1

    def operands(self, n: int | None = None) -> ConvOperands:
        """Return random operands of n samples, or of as many as share a call."""
        if n is None:
            n = samples_per_call(self.operands(1))
        d, pad = self.dimensions, self.kernel // 2
        positions = (self.side + 2 * pad - self.kernel) // self.stride + 1
        geometry = Geometry((self.stride,) * d, (pad,) * d, (1,) * d, self.groups)
        return ConvOperands(
            _images(n, self.c, (self.side,) * d),
            _images(n, self.o, (positions,) * d),
            geometry,
            (self.o, self.c // self.groups, *(self.kernel,) * d),
        )

    def __str__(self) -> str:
        size = " x ".join([str(self.side)] * self.dimensions)
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{self.c} to {self.o} channels, {size}, kernel {self.kernel}{stride}{groups}"


def _images(n: int, c: int, space: Sequence[int]) -> Tensor:
    """Return random images (n, 1, c, *space), channels last where the engine has them so."""
    images = torch.randn(n, c, *space)
    order = {2: torch.channels_last, 3: torch.channels_last_3d}.get(len(space))
    return (images if order is None else images.contiguous(memory_format=order))[:, None]


@dataclass(frozen=True)
class Case:
    """Something to time, and its cost by the model."""

    cost: Callable[[], float]
    run: Callable[[], object]
    n: int


def by_method(method: str, layer: Layer, n: int | None = SAMPLES) -> Case:
    """Return the case of one method on one layer."""
    operands = layer.operands(n)

    def cost() -> float:
        cost_model._costs.cache_clear()  # remembers costs with other constants
        return cost_model.costs(operands)[method]

    return Case(cost, lambda: METHODS[method](operands, SCRATCH), len(operands))


def by_call() -> Case:
    """Return the case of a grouped convolution so small that its call is all that counts."""
    operands = Layer(8, 8, 4).operands(1)
    return Case(
        lambda: cost_model.CALL + cost_model.GROUP,
        lambda: group_gradients(operands, slice(0, 1)),
        1,
    )


def by_product(t: int, i: int, o: int) -> Case:
    """Return the case of the products of (o, t) and (t, i) matrices, and their norms."""
    outer = OuterProducts(torch.randn(SAMPLES, t, i), torch.randn(SAMPLES, t, o))
    return Case(lambda: cost_model.product(t * i * o, o, i), lambda: outer.direct(SCRATCH), SAMPLES)


def experiments() -> list[tuple[tuple[str, ...], list[Case]]]:
    """Return names of constants, each with the cases that they are fitted to."""
    layers = [
        Layer(c, o, side)
        for c, o, side in (
            (3, 64, 32), (64, 64, 32), (64, 64, 8), (128, 128, 16), (16, 32, 16),
            (256, 256, 8), (256, 256, 2), (8, 8, 4), (512, 512, 4), (32, 32, 64),
        )
    ]  # fmt: skip
    group_gradients = ((32, 32, 3), (64, 16, 3), (96, 28, 3), (64, 16, 5), (32, 32, 7))
    depthwise = [Layer(c, c, side, k, groups=c) for c, side, k in group_gradients]
    few = [Layer(c, c, side, groups=c) for c, side in ((256, 2), (384, 2), (960, 3), (192, 4))]
    volumes = [Layer(c, c, side, 3, 3) for c, side in ((16, 16), (16, 32), (32, 16), (8, 32))]
    deep = [Layer(c, c, side) for c, side in ((128, 8), (256, 8), (64, 16), (512, 4))]
    grouped = [
        Layer(192, 192, 24, 31, 1, groups=4),
        *(Layer(c, c, side, groups=c // 24) for c, side in ((336, 10), (888, 5))),
    ]
    few_to_a_group = [
        Layer(c, c, side, groups=c // 8) for c, side in ((104, 12), (208, 6), (440, 3))
    ]
    first = [Layer(3, 32, 96, stride=2), Layer(3, 16, 64, stride=2), Layer(2, 8, 64)]
    wide = [layer for layer in layers if layer.c >= 64]
    direct = [by_method("direct", layer, None) for layer in layers]
    small = ((64, 128, 128), (32, 192, 192), (256, 64, 64))
    large = ((256, 256, 256), (1024, 256, 256), (64, 512, 512), (1024, 512, 576))
    thin = ((1024, 576, 8), (1024, 576, 16), (4096, 144, 16), (1024, 288, 32))
    return [
        (("BLAS",), [by_product(*sizes) for sizes in small]),
        (("ONEDNN", "ONEDNN_CALL"), [by_product(*sizes) for sizes in large]),
        (("SHORT_SIDE",), [by_product(*sizes) for sizes in thin]),
        (("CALL", "GROUP", "COPY", "WRITE"), [by_call(), *direct]),
        (("RUN",), [by_method("direct", layer) for layer in first]),
        (("PLAIN_WRITE",), [by_method("direct", layer) for layer in few_to_a_group]),
        (("SAMPLE_CALL",), [by_method("per_sample", layer) for layer in wide]),
        (("SINGLE_VOLUME",), [by_method("direct", layer, 1) for layer in volumes]),
        (("DEPTHWISE", "CHANNEL"), [by_method("depthwise", layer) for layer in depthwise]),
        (("WINDOW",), [by_method("windows", layer) for layer in few]),
        (("WIDE_DEPTHWISE",), [by_method("per_sample", layer) for layer in depthwise[-2:]]),
        (("SLICE", "SLICE_CALL"), [by_method("per_depth_slice", layer) for layer in volumes]),
        (("UNFOLD",), [by_method("im2col", layer) for layer in wide]),
        (("UNFOLD_GROUPS",), [by_method("im2col", layer) for layer in grouped]),
        (("GRAM_ENTRY",), [by_method("shifted_ghost", layer) for layer in deep]),
    ]


def seconds(run: Callable[[], object], least: float) -> float:
    """Return the seconds of the fastest of several runs: others are slowed by other processes."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=least).times)


def unit(least: float) -> float:
    """Return the seconds of one multiply-add of a large matrix product."""
    x, weight = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return seconds(lambda: matrix_products.linear(x, weight), least) / 1024**3


def fit(names: Sequence[str], cases: Sequence[Case], costs: Sequence[float]) -> list[float]:
    """Return the constants for which the model's costs are closest to the measured `costs`.

    costs: per sample, in multiply-adds, one for each case.
    """
    rows, targets = [], []
    for case, measured in zip(cases, costs, strict=True):
        total, slopes = case.cost(), []
        for name in names:
            value = getattr(cost_model, name)
            with mock.patch.object(cost_model, name, 2 * value):
                slopes.append((case.cost() - total) / value)
        values = [getattr(cost_model, name) for name in names]
        rest = total - float(np.dot(slopes, values))
        rows.append(np.array(slopes) / measured)
        targets.append(max(0.0, measured - rest) / measured)
    # Columns are scaled to like size, because constants differ by a factor of a million.
    matrix = np.array(rows)
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
    solution, _ = nnls(matrix / scale, np.array(targets))
    return [float(value) for value in solution / scale]


NETWORK_LAYERS = (
    Layer(3, 64, 32), Layer(64, 64, 32), Layer(64, 128, 32, stride=2), Layer(128, 128, 16),
    Layer(256, 256, 8), Layer(512, 512, 4), Layer(3, 64, 112, 7, stride=2), Layer(64, 64, 28),
    Layer(512, 512, 2), Layer(64, 64, 96), Layer(32, 32, 32, groups=32),
    Layer(96, 96, 14, 5, groups=96), Layer(64, 64, 128, 5, 1), Layer(16, 16, 32, 3, 3),
    Layer(32, 32, 16, 3, 3),
)  # fmt: skip
"""Layers of ResNet-18 at several sizes, and of depthwise, one- and three-dimensional networks."""
HOPELESS = 10
"""Times the cost of the cheapest method from which one is not tried: it could take minutes."""


def choice(layer: Layer, least: float) -> tuple[str, str, float]:
    """Return the method that the model chooses, the fastest, and the ratio of their times."""
    cost_model._costs.cache_clear()
    operands = layer.operands()
    costs = cost_model.costs(operands)
    times = {
        name: seconds(functools.partial(METHODS[name], operands, SCRATCH), least)
        for name, cost in costs.items()
        if cost < HOPELESS * min(costs.values())
    }
    chosen, fastest = cost_model.best(operands), min(times, key=times.__getitem__)
    return chosen, fastest, times[chosen] / times[fastest]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="least time for each figure")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)

    one = unit(3 * options.seconds)
    print(f"torch {torch.__version__}, {options.threads} threads: a multiply-add takes "
          f"{one * 1e12:.1f} ps, 1e7 of them {one * 1e10:.2f} ms\n")  # fmt: skip
    print("| constant | in the code | measured |\n| --- | --: | --: |")
    for names, cases in experiments():
        costs = [seconds(case.run, options.seconds) / case.n / one for case in cases]
        for name, value in zip(names, fit(names, cases, costs), strict=True):
            print(f"| `{name}` | {getattr(cost_model, name):.3g} | {value:.3g} |", flush=True)

    print(
        "\n| layer | chosen | fastest | time of the chosen / fastest |\n| --- | --- | --- | --: |"
    )
    ratios = []
    for layer in NETWORK_LAYERS:
        chosen, fastest, ratio = choice(layer, options.seconds)
        ratios.append(ratio)
        print(f"| {layer} | {chosen} | {fastest} | {ratio:.2f} |", flush=True)
    print(
        f"\nGeometric mean of the ratios: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}"
    )


if __name__ == "__main__":
    main()
