"""`upslope plan`: what scoring a pool at a URL and choosing from it will take."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from upslope.cli.console import telling_errors
from upslope.cli.score import (
    ArrayShape,
    Configuration,
    Device,
    IdColumn,
    ImageColumn,
    ImagesAt,
    ImageSize,
    Network,
    Sets,
    ShardFormat,
    open_source,
)


def plan(
    network: Network,
    config: Configuration = None,
    data: Annotated[
        str, typer.Option("--data", metavar="URL", help="The pool, as for `upslope score`.")
    ] = "",
    strategy: Annotated[str, typer.Option(help="That chooses.")] = "entropy-gradnorm",
    budget: Annotated[
        int, typer.Option("--budget", "-k", min=1, help="How many to choose.")
    ] = 1000,
    rows: Annotated[
        int | None,
        typer.Option(min=1, max=10**15, help="Samples of the pool; by its bytes, if not given."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=10**6, help="That score beside each other.")
    ] = 1,
    price: Annotated[float, typer.Option(min=0, help="Of a worker, per hour.")] = 0.0,
    device: Device = None,
    sets: Sets = None,
    format: ShardFormat = None,
    image: ImageColumn = None,
    id: IdColumn = None,
    shape: ArrayShape = None,
    size: ImageSize = None,
    images_at: ImagesAt = None,
) -> None:
    """Say what scoring a pool at a URL will take: time, memory, disk and money.

    The first shard is opened and some of its samples are scored here; the rest is arithmetic, which
    is printed. --rows says how many samples the pool will have.

    [bold]Examples[/bold]

      upslope plan runs/p --data s3://bucket/photos --rows 100000000 --price 2.5
    """
    with telling_errors():
        import tempfile

        from upslope.cli.shards import PoolArguments
        from upslope.config import find_strategy, plan_pool
        from upslope.display import watching
        from upslope.errors import ConfigError

        if not data:
            raise ConfigError("Expected --data, the URL of the pool, but got none.")
        if not isfinite(price):
            raise ConfigError(f"Expected --price to be an amount of money but got {price}.")
        if rows is not None and budget > rows:
            raise ConfigError(
                f"Expected --budget to be at most the {rows:,} samples of --rows but got "
                f"{budget:,}."
            )
        arguments = PoolArguments(data, format, image, id, shape, size, images_at)
        source = open_source(network, config, device, sets, False, url=True)
        with tempfile.TemporaryDirectory() as folder, watching(1) as observer:
            pool_samples, ready = arguments.open(source, Path(folder) / "images.arrow", observer)
            pool_plan = plan_pool(
                pool_samples,
                ready,
                find_strategy(strategy),
                budget=budget,
                rows=rows,
                workers=workers,
                price=price,
                batch_size=source.config.experiment.score_batch,
            )
        _show(pool_plan)


def _show(cost: Any) -> None:
    from upslope.cli.show import duration, show_rows, size

    n, w = f"{cost.rows:,}", cost.workers
    low, high = cost.score_bounds_s
    lines = [
        ("rows", n),
        ("score", f"{duration(cost.score_total_s)} = {n} x (({1e3 * cost.open_s:.3g} ms to "
                  f"read + {1e3 * cost.score_s:.3g} ms to score) / {w} worker{'s' * (w > 1)} + "
                  f"{1e3 * cost.join_s:.2g} ms to join)"),
        ("", f"{duration(low)} to {duration(high)} by the fastest and the slowest short run"),
        ("select", f"{duration(cost.select_s)} of one processor for {cost.budget:,}"),
        ("memory", f"{size(cost.score_memory)} a worker, while selecting "
                   f"{size(cost.select_memory)} beside what is mapped"),
        ("disk", f"{size(cost.disk)} = {n} x {cost.disk / cost.rows:.0f} bytes"),
    ]  # fmt: skip
    if cost.price:
        hours = (cost.score_total_s * w + cost.select_s) / 3600
        lines.append(("money", f"{cost.money:,.2f} = {hours:.3g} hours x {cost.price:g} per hour"))
    show_rows([*lines, ("measured", cost.measured)])
