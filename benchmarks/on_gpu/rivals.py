"""Norms beside plain passes, `torch.func.vmap` and the one-sample loop, by batch and precision."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from on_gpu.speed import milliseconds
from on_gpu.summary import Record, write
from speed.methods import by_vmap, one_by_one, ours, plain
from speed.networks import NETWORKS, Network

NAMES = ("cifar", "vit")
BATCHES = (256, 512, 1024, 2048)
LOOPED = 16
"""Samples that the one-sample loop gets: its time is that of the batch by proportion."""

Way = Callable[[], Any]


def rivals(options: argparse.Namespace) -> None:
    """Measure each network, precision and batch; what fails, for memory say, is told."""
    device, began = options.device, time.monotonic()
    cases = [
        (name, dtype, batch)
        for batch in ((4, 8) if options.dry else BATCHES)
        for name in NAMES
        for dtype in (None, torch.bfloat16)
    ]
    records, not_reached = [], []
    for name, dtype, batch in cases:
        record: Record = {"name": name, "dtype": str(dtype or torch.float32), "batch": batch}
        if time.monotonic() - began > options.seconds:
            not_reached.append(record)
            continue
        record |= compare(NETWORKS[name], dtype, batch, device, options.seconds / len(cases))
        records.append(record)
        print(json.dumps(record), flush=True)
    write(options, {"not_reached": not_reached, "cases": records})


def compare(
    network: Network, dtype: torch.dtype | None, batch: int, device: str, seconds: float
) -> Record:
    """Return median milliseconds per batch of each way, and plain passes over ours.

    dtype: of autocast; float32 if None. seconds: that the rounds may take, one at least.
    """
    x = network.inputs(batch, device)
    few = x[: min(LOOPED, batch)]
    makes = {
        "plain": (plain()(network, device), x, 1.0),
        "upslope": (ours(dtype=dtype)(network, device), x, 1.0),
        "vmap": (by_vmap(network, device), x, 1.0),
        "loop": (one_by_one(network, device), few, batch / len(few)),
    }
    ways: dict[str, Way] = {}
    failed: dict[str, str] = {}
    for name, (run, samples, _) in makes.items():
        way = in_precision(run, samples, None if name == "upslope" else dtype, device)
        try:
            for _ in range(3):  # the first batches of ours are proven
                way()
            ways[name] = way
        except Exception as error:  # no memory for it, for instance: the others are measured
            failed[name] = f"{type(error).__name__}: {error}"[:200]
    times: dict[str, list[float]] = {name: [] for name in ways}
    deadline = time.monotonic() + seconds
    while not all(times.values()) or time.monotonic() < deadline:
        for name, way in ways.items():
            times[name].append(milliseconds(way, device) * makes[name][2])
    medians = {name: statistics.median(values) for name, values in times.items()}
    record: Record = {"rounds": min(map(len, times.values()), default=0), "ms": medians}
    if "plain" in medians and "upslope" in medians:
        record["plain_over_upslope"] = medians["plain"] / medians["upslope"]
    return record | ({"failed": failed} if failed else {})


def in_precision(
    run: Callable[[torch.Tensor], Any], x: torch.Tensor, dtype: torch.dtype | None, device: str
) -> Way:
    """Return the run of these samples, under autocast where a type is given."""

    def way() -> Any:
        precision: AbstractContextManager[Any] = nullcontext()
        if dtype is not None:
            precision = torch.autocast(torch.device(device).type, dtype)
        with precision:
            return run(x)

    return way
