"""What exact norms cost of a training step, on networks of many kinds.

    python benchmarks/training_step.py                      all small ones, one thread
    python benchmarks/training_step.py mixtral gpt2-full --threads 2
    python benchmarks/training_step.py --full-size          at the sizes in which they are published
    python benchmarks/training_step.py --no-memory --json results/step.json

For each network: plain forward and backward passes of the sum of the losses, and our norms of the
same batch, each in both memory formats where the network has images, interleaved. Times of one
thread are of the processor, so that what else the machine does counts little; of more they are of
the clock, for threads that wait for work are busy waiting. The median round is taken, of the better
format of each. The first batches, which are proven, are not among them: `proofs.py` has their
price. Before anything is timed, norms in float64 are held against autograd of one sample at a time.
Peak memory is that of a process of its own, beyond model and samples. Networks whose samples go one
by one say why.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from speed.peak import forget_peak, peak
from speed.zoo import FULL_SIZE, SMALL, ZOO, check_networks
from speed.zoo.entry import loss
from upslope.errors import GradientNormWarning
from upslope.gradnorm import gradient_norms

ROOM = 64 << 20
"""Bytes beside a tenth of the plain step's that the norms may take."""

Run = Callable[[], Any]


def main() -> None:
    """Measure the networks, each in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", help=f"of {', '.join(ZOO)}; all small ones by default"
    )
    parser.add_argument("--full-size", action="store_true", help="by default those of full size")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--one", choices=("plain", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    check_networks(parser, options.networks)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.one is not None:
        (name,) = options.networks
        print(json.dumps(memory(name, options.one)))
        return
    by_default = FULL_SIZE if options.full_size else SMALL
    print(HEADER, flush=True)
    rows = [measure(name, options) for name in options.networks or by_default]
    ratios = sorted(row["ratio"] for row in rows if "ratio" in row)
    print(f"median {statistics.median(ratios):.2f}, least {ratios[0]:.2f}, {len(ratios)} networks")
    print(f"torch {torch.__version__}, {options.threads} threads")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


HEADER = (
    "| network | samples | plain, ms | ours, ms | plain / ours | error "
    "| plain, MiB | ours, MiB | |\n| --- | --: | --: | --: | --: | --: | --: | --: | --- |"
)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return and print a network's row."""
    row: dict[str, Any] = {"network": name, "batch": ZOO[name].batch}
    try:
        row |= times(name, options.repeats)
    except Exception as error:  # whatever a network raises belongs into its row
        row["failed"] = f"{type(error).__name__}: {error}"
    else:
        row["ratio"] = row["plain"] / row["ours"]
        for what in ("plain", "ours") if options.memory else ():
            row[f"{what}_mib"] = memory_of_a_process(name, what, options.threads) / 2**20
    print(as_markdown(row), flush=True)
    return row


def memory_of_a_process(name: str, what: str, threads: int) -> int:
    """Return the bytes that `memory` finds in a process of its own."""
    command = [sys.executable, __file__, name, "--one", what, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def as_markdown(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    if "failed" in row:
        return f"| {row['network']} | {row['batch']} | | | | | | | {row['failed']} |"
    cells = [row["network"], row["batch"], f"{1e3 * row['plain']:.1f}", f"{1e3 * row['ours']:.1f}"]
    cells += [f"{row['ratio']:.2f}", f"{row['error']:.0e}"]
    cells += [f"{row[key]:.0f}" if key in row else "" for key in ("plain_mib", "ours_mib")]
    remarks = list(row["told"])
    if row.get("ours_mib", 0) > 1.1 * row.get("plain_mib", 0) + ROOM / 2**20:
        remarks.append("more memory than a tenth and 64 MiB beyond plain")
    return f"| {' | '.join(map(str, [*cells, '; '.join(remarks)]))} |"


def variants(name: str) -> dict[str, Run]:
    """Return what is timed, by name: plain and ours, in each memory format."""
    entry, inputs = ZOO[name], ZOO[name].inputs()
    formats = [torch.contiguous_format, *([entry.memory_format] if entry.memory_format else [])]
    runs: dict[str, Run] = {}
    for k, memory_format in enumerate(formats):
        x = inputs.contiguous(memory_format=memory_format) if k else inputs
        for what, run in (("plain", plain), ("ours", ours)):
            model = entry.model()
            if k:
                model.to(memory_format=memory_format)  # type: ignore[call-overload]
            runs[f"{what} {k}"] = lambda run=run, model=model, x=x: run(model, x)  # type: ignore[misc]
    return runs


def call(model: nn.Module, inputs: Any) -> Tensor:
    """Return the outputs of a model for inputs in a tensor or a tuple."""
    outputs: Tensor = model(inputs) if isinstance(inputs, Tensor) else model(*inputs)
    return outputs


def plain(model: nn.Module, inputs: Any) -> None:
    """Run a plain training step, but for the optimiser."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    loss(call(model, inputs)).sum().backward()


def ours(model: nn.Module, inputs: Any) -> None:
    """Compute the norms of the same batch."""
    gradient_norms(model, inputs, loss)


def times(name: str, repeats: int) -> dict[str, Any]:
    """Return the seconds per batch of plain and ours, the error in float64, and what was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", GradientNormWarning)
        error = largest_error(name)
        runs = variants(name)
        for run in runs.values():
            for _ in range(5):  # the first batches of ours are proven, of routed rows four
                run()
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(repeats):
        for key, run in runs.items():
            start = clock()
            run()
            seconds[key].append(clock() - start)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    best = {
        what: min(value for key, value in medians.items() if key.startswith(what))
        for what in ("plain", "ours")
    }
    words = dict.fromkeys(str(warning.message) for warning in told)
    reasons = [w.partition("because ")[2].partition(". ")[0] or w for w in words]
    return {**best, "medians": medians, "error": error, "told": reasons}


def largest_error(name: str) -> float:
    """Return how far norms are from autograd of one sample at a time, in float64, relative."""
    model = copy.deepcopy(ZOO[name].model()).double()
    count = min(4, ZOO[name].batch)
    rows = tree_map_only(Tensor, lambda x: x[:count], ZOO[name].inputs())
    inputs = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, rows)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = []
    for i in range(count):
        one = tree_map_only(Tensor, lambda x, i=i: x[i : i + 1], inputs)
        losses = loss(call(model, one))
        gradients = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        squares = [g.square().sum() for g in gradients if g is not None]
        expected.append(torch.stack(squares).sum().sqrt())
    truth = torch.stack(expected)
    return float(((gradient_norms(model, inputs, loss) - truth) / truth).abs().max())


def memory(name: str, what: str) -> int:
    """Return the peak bytes of two batches, of plain or of ours, beyond model and samples."""
    entry = ZOO[name]
    model, inputs = entry.model(), entry.inputs()
    run = plain if what == "plain" else ours
    forget_peak()
    before = peak()
    for _ in range(2):
        run(model, inputs)
    return peak() - before


if __name__ == "__main__":
    main()
