"""What do the proofs of the gradient norms cost, of the time of scoring a pool?

Times are of the processor, in one thread: what else the machine does does not count.

python benchmarks/proofs.py --help
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.console import Console
from rich.table import Table

from speed.networks import NETWORKS, Network
from upslope.errors import GradientNormWarning
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.trace import recording
from upslope.gradnorm.trace.memory import PROOF_SHARE, memory_of

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
POOL = 2000


def seconds(network: Network, *, prove: bool, again: bool | None = None) -> float:
    """The time of one batch of a fresh model; with `again`, of its second one, proven or not."""
    model, x = network.model(), network.inputs(network.batch)

    def unproven(run: Any, forward: Any, reduction: Any, *rest: Any, last: bool, **_: Any) -> Any:
        _, losses, layouts, _ = rest
        return recording.reduce_unproven(run, forward, reduction, losses, layouts, last=last)

    proven = recording.reduce_proven
    with mock.patch.object(recording, "reduce_proven", proven if prove else unproven):
        if again is not None:
            gradient_norms(model, x, "entropy")
        with mock.patch.object(type(memory_of(model)), "draw_proof", return_value=bool(again)):
            start = time.process_time()
            gradient_norms(model, x, "entropy")
            return time.process_time() - start


def main(
    networks: Annotated[list[str] | None, typer.Argument(show_default=False)] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, interleaved.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Where to write the figures.")] = None,
) -> None:
    """Time first batches with and without their proof, and later ones; add up a pool of 2,000."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", GradientNormWarning)
    table = Table("network", "batch", "a batch, s", "first, proven", "first, not", "price of 2,000")
    rows = {}
    for name in networks or NETWORKS:
        network = NETWORKS[name]
        gradient_norms(network.model(), network.inputs(2), "entropy")  # warm up
        times: dict[str, list[float]] = {"proven": [], "first": [], "later": [], "again": []}
        for _ in range(repeats):
            times["proven"].append(seconds(network, prove=True))
            times["first"].append(seconds(network, prove=False))
            times["later"].append(seconds(network, prove=False, again=False))
            times["again"].append(seconds(network, prove=True, again=True))
        t = {key: statistics.median(values) for key, values in times.items()}
        batches = POOL / network.batch
        extra = t["proven"] - t["first"] + (batches - 1) * PROOF_SHARE * (t["again"] - t["later"])
        price = extra / (t["first"] + (batches - 1) * t["later"])
        rows[name] = {**t, "batch": network.batch, "price": price}
        table.add_row(
            network.title, str(network.batch),
            *(f"{t[k]:.3f}" for k in ("later", "proven", "first")), f"{price:.1%}",
        )  # fmt: skip
    out.print(table)
    out.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if json is not None:
        import json as format_

        json.write_text(format_.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
