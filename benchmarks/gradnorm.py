"""How fast are exact per-sample gradient norms? Ours, beside everything else there is.

python benchmarks/gradnorm.py --help
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from speed import memory, show
from speed.measure import Report, measure
from speed.methods import METHODS
from speed.networks import NETWORKS

out = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
err = Console(stderr=True, highlight=False)

HELP = f"""How fast are exact per-sample gradient norms? Ours, beside everything else there is.

Every network runs plain forward and backward passes, the one-sample loop, torch.func, Opacus and \
BackPACK (where installed) and upslope, in interleaved rounds in one process, on the same samples: \
the gradient of the entropy over all parameters, its global norm. Then each method runs once more \
in a process of its own, for its peak memory.

[bold]Networks[/bold] (all, by default): {", ".join(NETWORKS)}

[bold]Start here[/bold]

  gradnorm.py --quick          CIFAR ResNet-18 alone, 2 minutes

  gradnorm.py vit bert lstm    those three

  gradnorm.py --json results.json --plot results.png

The rivals are not dependencies: pip install opacus; BackPACK asks for torchvision but needs \
none here: pip install --no-deps backpack-for-pytorch einops unfoldNd. Close other programs: \
ratios within a run hold on a busy machine, samples per second do not."""


def main(
    networks: Annotated[list[str] | None, typer.Argument(show_default=False)] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, help="Samples a batch; each network has its own default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds.")] = 7,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="About how long a method runs in a round.")
    ] = 0.7,
    methods: Annotated[
        str, typer.Option(help="Only methods whose name has one of these: plain,vmap,upslope")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="CIFAR ResNet-18 alone, 5 rounds.")
    ] = False,
    peaks: Annotated[bool, typer.Option("--memory/--no-memory", help="Peak memory.")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:0.")] = "cpu",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Every time and what ran where.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="A plot of the ratios, PNG.")
    ] = None,
) -> None:
    chosen = ["cifar"] if quick and not networks else list(networks or NETWORKS)
    unknown = [name for name in chosen if name not in NETWORKS]
    if unknown:
        known = ", ".join(NETWORKS)
        raise typer.BadParameter(f"Expected networks among {known} but got {', '.join(unknown)}.")
    wanted = [part.strip() for part in methods.split(",") if part.strip()]
    picked = [m for m in METHODS if not wanted or any(w in f"{m.kind} {m.name}" for w in wanted)]
    if not picked:
        raise typer.BadParameter(
            f"Expected --methods to match some of {', '.join(m.name for m in METHODS)} "
            f"but got {methods!r}."
        )
    out.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}\n")
    out.print(show.LEGEND + "\n", markup=False)
    warnings.simplefilter("ignore")  # rivals warn of their own hooks, and of slow paths
    reports: list[Report] = []
    with err.status("starting") as status:
        for name in chosen:
            network = NETWORKS[name]
            report = measure(
                name,
                network,
                batch=batch or network.batch,
                repeats=min(repeats, 5) if quick else repeats,
                seconds=seconds,
                device=device,
                methods=picked,
                tell=status.update,
            )
            for row in report.rows if peaks else ():
                if row.times:
                    status.update(f"{name}: peak memory of {row.method}")
                    row.peak_mib = memory.peak_mib(
                        name, row.method, report.batch, row.chunk, device
                    )
            reports.append(report)
            show.table(report, out)
            if json_file is not None:  # after every network: an interrupted run keeps what it has
                show.write_json(json_file, show.record(reports, sys.argv, device))
            if plot_file is not None:
                show.plot(plot_file, reports)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})(main)
    app()
