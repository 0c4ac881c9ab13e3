"""Scoring against a plain training step of the same batch, interleaved."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from on_gpu.summary import Record, write
from speed.networks import NETWORKS, Network
from upslope.gradnorm import (
    gradient_norms,
)


def speed(options: argparse.Namespace) -> None:
    device, began = options.device, time.monotonic()
    chosen = {k: v for k, v in NETWORKS.items() if not options.dry or k in ("bert", "gru")}
    each = options.seconds / len(chosen)
    records, not_reached = [], []
    for name, network in chosen.items():
        if time.monotonic() - began > options.seconds:
            not_reached.append(name)
            continue
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            batch = 4 if options.dry else 4 * network.batch
            record = {"name": name, "tf32": tf32, "batch": batch}
            try:
                record |= time_network(network, batch, device, each / 2)
            except Exception as error:  # one network's failure is told, and the others measured
                record["failed"] = f"{type(error).__name__}: {error}"[:300]
            records.append(record)
            print(json.dumps(record), flush=True)
    write(options, {"not_reached": not_reached, "networks": records})


def time_network(network: Network, batch: int, device: str, seconds: float) -> Record:
    """Median milliseconds of a training step and of scoring the same batch, in turns."""
    x = network.inputs(batch, device)
    scored, trained = network.model(device), network.model(device).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-6, momentum=0.9)
    with torch.no_grad():
        targets = scored(x).argmax(dim=1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(trained(x), targets).backward()
        optimizer.step()

    def score(**kinds: Any) -> Callable[[], Any]:
        return lambda: gradient_norms(scored, x, "entropy", **kinds)

    ways = {
        "step": step,
        "global": score(norm="global"),
        "tensor-sum": score(norm="tensor-sum"),
        "bfloat16": score(dtype=torch.bfloat16),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    deadline = time.monotonic() + seconds
    for _ in range(2):  # the first batches learn the layout and are proven
        for way in ways.values():
            way()
    while not times["bfloat16"] or (time.monotonic() < deadline and len(times["step"]) < 60):
        for name, way in ways.items():
            times[name].append(milliseconds(way, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {f"{n}_over_step": medians[n] / medians["step"] for n in ways if n != "step"}
    return {"rounds": len(times["step"]), "ms": medians, **ratios}


def milliseconds(way: Callable[[], Any], device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        way()
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    way()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)
