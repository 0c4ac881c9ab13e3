"""`upslope score --data URL`: the scores of a pool of shards, into a folder."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.cli.console import out as console
from upslope.cli.engines import EngineArguments, sharing, starting_engine
from upslope.counts import format_count
from upslope.distributed.launch import rank_of_process

INDEX = "images.arrow"
"""In the folder of scores: the names of the images of a pool that is a folder."""


@dataclass(frozen=True)
class PoolArguments:
    """What the command line says of a pool at a URL; None for what it does not say."""

    url: str
    format: Any = None
    image: str | None = None
    id: str | None = None
    shape: str | None = None
    size: int | None = None
    images_at: str | None = None
    ids_by_shard: bool = False

    def open(self, source: Any, index: Path, observer: Any) -> tuple[Any, Any]:
        """Return (the pool, the network), as `config.open_sharded` does."""
        from upslope.config import open_sharded, parse_shape
        from upslope.pools import ReadOptions

        options = ReadOptions(
            image=self.image,
            id=self.id,
            shape=parse_shape(self.shape),
            size=self.size,
            images_at=self.images_at,
        )
        return open_sharded(
            source, self.url, options, format=self.format, index=index, observer=observer
        )


def score_shards(
    pool: PoolArguments,
    source: Any,
    scores: str,
    out: Path,
    keep: str | None,
    precision: str,
    run_by: EngineArguments,
) -> None:
    """Score the shards that are left, into a folder, and tell what there is."""
    from upslope.batches import resolve_device
    from upslope.config import find_strategies, scorers
    from upslope.errors import ConfigError

    if out.suffix in (".csv", ".parquet") or out.is_file():
        raise ConfigError(
            f"Expected --out to be a folder for a pool at a URL, a file a shard, but got {out}."
        )
    if precision not in ("float16", "float32"):
        raise ConfigError(f"Expected --precision float16 or float32 but got {precision!r}.")
    signals_to_store = tuple(n for strategy in find_strategies(keep or "") for n in strategy.needs)
    what = {"scores": scorers(scores), "keep": signals_to_store, "precision": precision}
    with starting_engine(run_by, source.config.device) as engine:
        if rank_of_process():  # shards travel with their places, and the network with them
            with sharing(engine, {}, resolve_device(source.config.device), None):
                return
        _score(pool, source, what, out, engine)


def _score(pool: PoolArguments, source: Any, what: dict[str, Any], out: Path, engine: Any) -> None:
    """Score the shards that are left. what: the arguments of `ShardScorer` of that."""
    from upslope.display import watching
    from upslope.progress import stop_on_signals
    from upslope.scoring import ShardScorer, score_pool

    with ExitStack() as stack:
        observer, stop = stack.enter_context(watching(1)), stack.enter_context(stop_on_signals())
        pool_samples, ready = pool.open(source, out / INDEX, observer)
        console.print(
            f"{source.checkpoint} on {pool.url}: {format_count(len(pool_samples), 'shard')} of "
            f"{pool_samples.format}, {pool_samples.column}, "
            f"{'x'.join(map(str, pool_samples.input_shape))}",
            markup=False,
            soft_wrap=True,
        )
        settings = source.config.experiment
        scorer = ShardScorer(
            pool_samples,
            out,
            model=ready.model,
            task=ready.task,
            device=ready.device,
            batch_size=settings.score_batch,
            on_corrupt=settings.on_corrupt,
            classes=ready.classes,
            **what,
        )
        stack.enter_context(sharing(engine, {}, ready.device, None))
        report = score_pool(scorer, ids_by_shard=pool.ids_by_shard, observer=observer, stop=stop)
    console.print(
        f"{format_count(report.scored, 'sample')} scored, {report.new:,} of "
        f"{format_count(len(pool_samples), 'shard')} by this call: {report.table}",
        markup=False,
        soft_wrap=True,
    )
    if report.skipped:
        console.print(f"{report.skipped:,} could not be read", markup=False)
