"""An estimate of what each method for a convolution's per-sample norms costs.

A cost is a number of multiply-adds: the work that the processor would do in the same time in a
large matrix product of float32. It depends on shapes and on the number of threads, never on a
timing, so that a resumed run takes the same methods, and rounds, as the one that was interrupted.

All constants are in multiply-adds of one thread, and rounded; 1e7 take 0.1 to 0.2 ms. The two
processors of benchmarks/RESULTS.md, one of AMD and one of Intel, differ in them by factors of two
to seven. The constants here are near to both: those with which the choices for the layers of known
networks lose the least time on the latter. `benchmarks/cost_model.py` measures them again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Mapping

import torch

from upslope.gradnorm import torch_faults
from upslope.gradnorm.core.chunks import has_caches
from upslope.gradnorm.core.matrix_products import WORTH
from upslope.gradnorm.kernels.conv.gradients import prefers_plain, samples_per_call
from upslope.gradnorm.kernels.conv.operands import ConvOperands, Geometry

CALL = 3.5e6
"""Cost of one call of a grouped convolution, times the number of threads: it stays, and theirs work
together."""
GROUP = 1e5
"""Cost of one more group in such a call."""
COPY = 18.0
"""Cost of moving one entry of an image to where a grouped convolution expects it. In three
dimensions it counts twice: volumes come from beyond the cache."""
RUN = 150.0
"""Cost of moving the channels of one pixel, beside that of the entries: they lie together, and are
copied by themselves."""
WRITE = 270.0
"""Cost of one entry of the weight gradient, which the library writes in an order of its own and
then copies to the usual one."""
PLAIN_WRITE = 80.0
"""Cost of such an entry where images have their positions last: of signals, and of some layers
with groups."""
SINGLE_VOLUME = 5
"""Factor for the weight gradient of a single volume that PyTorch unfolds."""
SAMPLE_CALL = 0.75
"""Cost of the call of an ordinary weight gradient for one sample, in units of `CALL`."""
DEPTHWISE = 300
"""Cost of one multiply-add of a depthwise convolution, times the square of the width of its kernel:
the library vectorises along that width."""
WIDE_DEPTHWISE = 10
"""Factor for depthwise weight gradients of kernels that are wider than 3."""
CHANNEL = 5e3
"""Cost of one more channel in such a convolution."""
WINDOW = 50.0
"""Cost of one entry of a window of a channel, which is multiplied, written and summed."""
SLICE = 1.5
"""Cost of one multiply-add of a weight gradient of slices of a volume."""
SLICE_CALL = 2.1
"""Cost of the calls for the slices of one sample, in units of `CALL`."""
UNFOLD = 33.0
"""Cost of copying one entry of a patch."""
UNFOLD_GROUPS = 100.0
"""Cost of copying one entry where a layer has groups: of their few channels, less lies together in
memory."""
GRAM_ENTRY = 40.0
"""Cost of one entry of a Gram matrix, which is written, summed and multiplied."""
BLAS = 1.2
"""Cost of one multiply-add of a matrix product by BLAS (`core/matrix_products`)."""
ONEDNN = 1.2
"""Cost of one multiply-add of a matrix product by oneDNN."""
ONEDNN_CALL = 1e6
"""Cost of one call of such a product."""
SHORT_SIDE = 5.5
"""Length of a side of a product's result at which the product costs twice as much per
multiply-add as with long sides."""


def best(operands: ConvOperands, among: Container[str] | None = None) -> str:
    """Return the name of the cheapest method.

    among: the methods that are asked about; all by default.
    """
    estimates = costs(operands)
    names = estimates if among is None else [name for name in estimates if name in among]
    return min(names, key=estimates.__getitem__)


def costs(operands: ConvOperands) -> Mapping[str, float]:
    """Return the estimated cost per sample of every method that applies, by its name."""
    if not has_caches(operands.x):
        return _costs_on_gpu(operands.x.shape, operands.g.shape, operands.shape, operands.geometry)
    return _costs(
        operands.x.shape,
        operands.g.shape,
        operands.shape,
        operands.geometry,
        max(1, min(len(operands), samples_per_call(operands))),
        torch.get_num_threads(),
    )


@functools.lru_cache(4096)  # every layer of every batch asks, and networks have few shapes
def _costs(
    x: torch.Size,
    g: torch.Size,
    shape: tuple[int, ...],
    geometry: Geometry,
    together: int,
    threads: int,
) -> Mapping[str, float]:
    """Return the costs for images and gradients of these shapes, `together` samples per call."""
    t, taps = math.prod(g[3:]), math.prod(shape[2:])
    o, c, *kernel = shape
    n, images = g[:2]
    volumes = len(kernel) == 3
    stride, groups, call = geometry.stride, geometry.groups, threads * CALL
    work, weights = images * t * taps * o * c, math.prod(shape)
    entries_moved = math.prod(x[1:]) + math.prod(g[1:])
    # The library computes blocks of so many output and input channels, whole ones.
    rows, columns = (8, 8) if volumes else (16, 4)
    entries_of_tiles = images * t * taps * max(o, rows) * max(c, columns)
    entries_copied = (2 if volumes else 1) * COPY * entries_moved + RUN * images * (
        math.prod(x[3:]) + t
    )
    write = PLAIN_WRITE if prefers_plain(x, g, shape, groups) else WRITE
    if len(kernel) == 1:  # signals have their positions last, and are groups as they lie
        entries_copied, write = 0.0, PLAIN_WRITE
    direct = entries_of_tiles + entries_copied + write * weights + GROUP + call / together
    unfolds = volumes and math.prod(x[2:5]) <= torch_faults.LARGE_VOLUME  # one sample by itself
    estimates = {"direct": direct * (SINGLE_VOLUME if unfolds and n == 1 else 1)}
    if not unfolds:
        blocks = images * t * taps * max(o, 4) * max(c, 4)
        of_one = WRITE if len(kernel) > 1 else PLAIN_WRITE
        estimates["per_sample"] = blocks + of_one * weights + SAMPLE_CALL * call
    if images == 1 and c == 1 and groups > 1:
        if max(kernel) > 3:  # for which the library has no fast form
            estimates = {name: WIDE_DEPTHWISE * cost for name, cost in estimates.items()}
        convolution = DEPTHWISE / kernel[-1] ** 2 * work
        estimates["depthwise"] = convolution + COPY * entries_moved + CHANNEL * o + call / n
        estimates["windows"] = WINDOW * work
    if images > 1 or "depthwise" in estimates:
        return estimates
    unfolding = (UNFOLD if groups == 1 else UNFOLD_GROUPS) * t * taps * c * groups
    estimates["im2col"] = product(work, o // groups, taps * c) + unfolding
    if groups > 1:
        return estimates
    estimates["ghost"] = product(t * t * (taps * c + o)) + GRAM_ENTRY * t * t + unfolding
    if volumes:
        estimates["per_depth_slice"] = SLICE * t * taps * o * max(c, 4) + SLICE_CALL * call
    if stride == (1,):
        estimates["per_tap"] = taps * product(work // taps, o, c)
    if all(s == 1 for s in stride):
        pixels = math.prod(x[3:])
        estimates["shifted_ghost"] = (
            product(pixels * pixels * c) + product(t * t * o) + GRAM_ENTRY * sum(kernel) * t * t
        )
    return estimates


TRAFFIC = 50.0
"""Multiply-adds in whose time a GPU reads and writes one number. From data sheets (an H100 has
33e12 multiply-adds of float32 a second, and reads or writes 0.8e12 numbers), not measured."""


@functools.lru_cache(4096)
def _costs_on_gpu(
    x: torch.Size, g: torch.Size, shape: tuple[int, ...], geometry: Geometry
) -> Mapping[str, float]:
    """Return the costs per sample of the methods that serve many samples by one call.

    By arithmetic and by numbers moved: a GPU has room for calls that are large enough.
    """
    t, taps = math.prod(g[3:]), math.prod(shape[2:])
    o, c, *kernel = shape
    images, groups = g[1], geometry.groups
    if images > 1:
        return {"direct": images * t * taps * o * c}
    if c == 1 and groups > 1:
        return {"windows": TRAFFIC * t * taps * o}
    unfolding = TRAFFIC * t * taps * c * groups
    estimates = {"im2col": t * taps * o * c + unfolding}
    if groups > 1:
        return estimates
    estimates["ghost"] = t * t * (taps * c + o) + TRAFFIC * 2 * t * t + unfolding
    if all(s == 1 for s in geometry.stride):
        pixels = math.prod(x[3:])
        sums = TRAFFIC * ((1 + sum(kernel)) * t * t + pixels * pixels)
        estimates["shifted_ghost"] = pixels * pixels * c + t * t * o + sums
    return estimates


def product(work: int, *sides: int) -> float:
    """Return the cost of a matrix product of `work` multiply-adds by the library that does it.

    sides: those of its result, where one may be short.
    """
    price = BLAS * work if work < WORTH else ONEDNN * work + ONEDNN_CALL
    return price * (1 + SHORT_SIDE / min(sides)) if sides else price
