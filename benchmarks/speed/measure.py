"""Times of several methods, interleaved, so that a machine that slows down slows all of them.

A round goes through the methods once. A method takes part with as many samples as fill about
`seconds`, at least one chunk, and sits out rounds when even one chunk takes much longer; how many
samples and how many rounds it had is told with its figure, which is the median.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speed.methods import METHODS, Method, loop
from speed.networks import Network, Run
from speed.rivals import NotInstalledError
from upslope.gradnorm import entropy, gradient_norms

CHECKED = 8
"""Samples whose norms are compared with the one-sample loop in float64."""


@dataclass
class Row:
    """What is known of one method on one network."""

    method: str
    kind: str
    aside: bool
    chunk: int = 0
    samples: int = 0
    times: list[float] = field(default_factory=list)  # seconds per sample, one per round
    error_median: float | None = None  # relative, to the one-sample loop in float64
    error_max: float | None = None
    peak_mib: float | None = None
    refused: str | None = None

    @property
    def rate(self) -> float:
        """Samples a second; not a number where there is no time."""
        return 1 / statistics.median(self.times) if self.times else math.nan


@dataclass
class Exactness:
    """Largest relative difference of our norms to the one-sample loop, both in float64."""

    samples: int
    global_norm: float
    tensor_sum: float


@dataclass
class Report:
    """One network's rows, and the exactness of ours in float64."""

    network: str
    title: str
    batch: int
    rows: list[Row]
    exactness: Exactness

    def best(self, *names: str) -> float:
        """The highest rate among methods whose names begin with one of these."""
        rates = [r.rate for r in self.rows if r.method.startswith(names) and not r.aside]
        return max((rate for rate in rates if rate == rate), default=math.nan)


@dataclass
class _Entry:
    row: Row
    run: Run
    samples: int
    stride: int


def measure(
    name: str,
    network: Network,
    *,
    batch: int,
    repeats: int,
    seconds: float,
    device: str,
    methods: Iterable[Method] = METHODS,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Every method that applies to the network. tell: hears what is being done."""
    x = network.inputs(4 * batch, device)
    tell(f"{name}: one-sample loop in float64")
    expected, exactness = _exact(network, x[: min(CHECKED, batch)])
    entries, rows = [], []
    for method in methods:
        if method.applies(network):
            tell(f"{name}: {method.name}, warming up")
            row = Row(method.name, method.kind, method.aside)
            rows.append(row)
            entry = _warm_up(method, row, network, x, expected, batch, seconds)
            if entry is not None:
                entries.append(entry)
    for turn in range(repeats):
        for entry in entries:
            if turn % entry.stride == 0:
                tell(f"{name}: round {turn + 1} of {repeats}, {entry.row.method}")
                taken = _timed(entry.run, x[: entry.samples], entry.row.chunk)
                entry.row.times.append(taken / entry.samples)
    return Report(name, network.title, batch, rows, exactness)


def _exact(network: Network, x: Tensor) -> tuple[Tensor, Exactness]:
    model = network.model(str(x.device)).double()
    wide = x.double() if x.is_floating_point() else x
    lengths = loop(model, wide)
    reference = {"global": lengths.norm(dim=1), "tensor-sum": lengths.sum(dim=1)}
    worst = {
        norm: float(_relative(gradient_norms(model, wide, entropy, norm=norm), expected).max())
        for norm, expected in reference.items()
    }
    return reference["global"], Exactness(len(x), worst["global"], worst["tensor-sum"])


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    return ((found.double() - expected).abs() / expected.abs()).detach()


def _warm_up(
    method: Method,
    row: Row,
    network: Network,
    x: Tensor,
    expected: Tensor,
    batch: int,
    seconds: float,
) -> _Entry | None:
    """Builds the method, finds its chunk, checks its norms; None, and why, where it refuses."""
    try:
        run = method.make(network, str(x.device))
        taken = math.inf
        for size in method.sizes(batch):
            run(x[:size])
            now = _timed(run, x[:size], size) / size
            if now < taken:
                row.chunk, taken = size, now
            elif now > 1.2 * taken:  # clearly past its best
                break
        _check(run, row, x, expected)
    except NotInstalledError as error:
        row.refused = str(error)
        return None
    except Exception as error:  # whatever a library raises is what its user sees
        row.refused = f"refused: {type(error).__name__}: {' '.join(str(error).split())}"
        return None
    chunks = max(1, min(len(x) // row.chunk, round(seconds / (taken * row.chunk))))
    row.samples = chunks * row.chunk
    stride = max(1, round(taken * row.samples / (2 * seconds)))
    return _Entry(row, run, row.samples, stride)


def _check(run: Run, row: Row, x: Tensor, expected: Tensor) -> None:
    found = [run(x[i : i + row.chunk]) for i in range(0, len(expected), row.chunk)]
    norms = [part for part in found if part is not None]
    if norms:
        error = _relative(torch.cat(norms)[: len(expected)], expected)
        row.error_median, row.error_max = float(error.median()), float(error.max())


def _timed(run: Run, x: Tensor, chunk: int) -> float:
    chunks = x.split(chunk)
    _wait(x)
    start = time.perf_counter()
    for part in chunks:
        run(part)
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
