"""`upslope score` and `upslope predict`: what a trained network makes of every sample of a pool."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upslope.cli.console import ANEW, telling_errors
from upslope.cli.console import out as console
from upslope.cli.engines import (
    EngineArguments,
    EngineName,
    EngineWorkers,
    GpusPerWorker,
    sharing,
    starting_engine,
)
from upslope.counts import format_count
from upslope.startup import importing_libraries

if TYPE_CHECKING:
    from upslope.config.recorded import Source
    from upslope.distributed.ranks import Ranks
    from upslope.distributed.ray_engine import RayEngine
    from upslope.progress import Observer
    from upslope.scoring import ScoreReport

Network = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|CHECKPOINT",
        help="Folder of a run, a checkpoint in it, or any .safetensors, .pt or .pth with weights.",
    ),
]
Configuration = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG]", help="Of a checkpoint that belongs to no run: a YAML file, or a name."
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one value: data.root=photos"),
]
SkipCorrupt = Annotated[
    bool, typer.Option("--skip-corrupt", help="Leave out samples that cannot be read.")
]
PoolUrl = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="URL",
        help="A pool of shards: a folder, *.parquet or {000..012}.tar, here, s3://, gs://, hf://.",
    ),
]
ShardFormat = Annotated[
    str | None,
    typer.Option(metavar="FORMAT", help="Of --data: parquet, webdataset or folder, if mixed."),
]
ImageColumn = Annotated[
    str | None, typer.Option(help="Of --data: the column of images, or their extension in tars.")
]
IdColumn = Annotated[str | None, typer.Option(help="Of --data: the column of ids.")]
ArrayShape = Annotated[
    str | None, typer.Option(help="Of --data: the shape of an array in a flat list, as 3x32x32.")
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Of --data: bring images to so many pixels square.")
]
ImagesAt = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Of --data: what addresses of images in Parquet begin with."),
]

_SHARD_BY_SHARD = "Run the same command again: it goes on with the shard that was open."


def score(
    network: Network,
    config: Configuration = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            show_default="scores.parquet; with --data, the folder scores",
            help="File to write, .parquet or .csv; with --data, a folder.",
        ),
    ] = None,
    data: PoolUrl = None,
    scores: Annotated[
        str, typer.Option(help="Strategies whose scores to compute, with commas between.")
    ] = "entropy-gradnorm",
    device: Device = None,
    sets: Sets = None,
    skip_corrupt: SkipCorrupt = False,
    format: ShardFormat = None,
    image: ImageColumn = None,
    id: IdColumn = None,
    shape: ArrayShape = None,
    size: ImageSize = None,
    images_at: ImagesAt = None,
    ids_by_shard: Annotated[
        bool, typer.Option("--ids-by-shard", help="Put the shard's name before each id.")
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="STRATEGIES",
            help="Of --data: keep the signals of these in the folder, for `upslope select`.",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Of the signals that are kept: float16 or float32.")
    ] = "float32",
    engine: EngineName = None,
    workers: EngineWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
) -> None:
    """Score every sample of a pool with a trained network: ids and scores to a file.

    A higher score is more worth a label. A run knows its data, network, classes and statistics;
    -s data.root=FOLDER scores other samples with them. For a checkpoint from elsewhere say the
    data set and the network, which may be a function of yours in the current folder,
    -s model.name=nets:make. Of data.name=folder every image is scored, at any depth, with or
    without a label.

    [bold]A pool larger than memory[/bold] is given by --data, a URL of Parquet shards, tars or
    images: a file of scores for each shard, then one table, in the folder --out. Killed at any
    moment, the same command goes on with the shard that was open.

    [bold]Examples[/bold]

      upslope score runs/photos --data s3://bucket/photos --keep badge,core-set

      upslope score runs/digits/margin/seed-0 --scores egl,margin -o scores.csv

      upslope score runs/photos -s data.root=more-photos

      upslope score w.pt photos.yaml -s model.name=nets:make -o scores.csv
    """
    with telling_errors(ANEW if data is None else _SHARD_BY_SHARD):
        with importing_libraries():
            from upslope.config import scorers
            from upslope.scoring import check_file_name, score_to_file

        run_by = EngineArguments(engine, workers, gpus_per_worker)
        run_by.check(scores=True)
        if data is not None:
            from upslope.cli.shards import PoolArguments, score_shards

            pool = PoolArguments(data, format, image, id, shape, size, images_at, ids_by_shard)
            source = open_source(network, config, device, sets, skip_corrupt, url=True)
            score_shards(pool, source, scores, out or Path("scores"), keep, precision, run_by)
            return
        refuse_shard_options(format, image, id, shape, size, images_at, ids_by_shard or None, keep)
        score_functions = scorers(scores)
        path = check_file_name(out or Path("scores.parquet"))  # before what may take long

        def write(_: Any, **options: Any) -> tuple[Path, ScoreReport]:
            return path, score_to_file(path, score_functions, **options)

        _write(network, config, device, sets, skip_corrupt, "scored", write, run_by)


def predict(
    network: Network,
    config: Configuration = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            show_default="predictions.csv; of masks, the folder predictions",
            help="File to write, .parquet or .csv; of masks, a new folder.",
        ),
    ] = None,
    device: Device = None,
    sets: Sets = None,
    skip_corrupt: SkipCorrupt = False,
    engine: EngineName = None,
    workers: EngineWorkers = None,
    gpus_per_worker: GpusPerWorker = None,
) -> None:
    """Predict every sample of a pool with a trained network: classes, numbers or masks.

    One row per sample: its id, the class and its probability, and the probability of every class;
    of label sets, the labels; of regression, the numbers. Of segmentation, a folder with a grey
    PNG for each image, whose values are the positions of classes in its classes.csv. Where data,
    network and statistics come from is as for `upslope score`.

    [bold]Examples[/bold]

      upslope predict runs/digits/margin/seed-0 --out predictions.csv

      upslope predict runs/photos -s data.root=more-photos -o predictions.parquet
    """
    with telling_errors():
        with importing_libraries():
            from upslope.scoring import (
                check_file_name,
                predict_masks,
                predict_to_file,
                predicts_masks,
            )

        run_by = EngineArguments(engine, workers, gpus_per_worker)
        run_by.check(scores=True)

        def write(ready: Any, **options: Any) -> tuple[Path, ScoreReport]:
            if predicts_masks(ready.model, ready.task, ready.pool, ready.device):
                target = out or Path("predictions")
                return target, predict_masks(target, classes=ready.classes, **options)
            target = out or Path("predictions.csv")
            return target, predict_to_file(target, classes=ready.classes, **options)

        if out is not None and out.suffix:
            check_file_name(out)  # before anything is read that may take long
        _write(network, config, device, sets, skip_corrupt, "predicted", write, run_by)


def refuse_shard_options(*values: Any) -> None:
    """Raise ConfigError where an option of --data is given without it."""
    from upslope.errors import ConfigError

    if any(value is not None for value in values):
        raise ConfigError(
            "Expected --data beside --format, --image, --id, --shape, --size, --images-at, "
            "--ids-by-shard or --keep, which are about its shards, but got none. Of other data, "
            "options are set with -s data.NAME=VALUE."
        )


def open_source(
    network: Path,
    config: Path | None,
    device: str | None,
    sets: list[str] | None,
    skip_corrupt: bool,
    *,
    url: bool = False,
) -> Any:
    """Return the checkpoint with its configuration. url: the data are at one, whatever it says."""
    from upslope.config import find_source, run_folder

    overrides = {"device": device, "experiment.on_corrupt": "skip" if skip_corrupt else None}
    sets = list(sets or ())
    if url and config is None and (not network.exists() or run_folder(network) is None):
        sets = ["data.name=folder", *sets]
    return find_source(network, config, sets=sets, overrides=overrides)


def _write(
    network: Path,
    config: Path | None,
    device: str | None,
    sets: list[str] | None,
    skip_corrupt: bool,
    sentence: str,
    write: Callable[..., tuple[Path, ScoreReport]],
    engine: EngineArguments,
) -> None:
    source = open_source(network, config, device, sets, skip_corrupt)
    with starting_engine(engine, source.config.device) as run_engine:
        _write_from(source, sentence, write, run_engine)


def _write_from(
    source: Source,
    sentence: str,
    write: Callable[..., tuple[Path, ScoreReport]],
    engine: Ranks | RayEngine | None,
) -> None:
    from upslope.config import load_trained_model
    from upslope.datasets import list_ids
    from upslope.display import watching

    settings = source.config
    origin = " from the current folder or PYTHONPATH" if ":" in settings.model.name else ""
    place = f" in {settings.root}" if settings.root else ""
    console.print(
        f"{source.checkpoint}: {settings.model.name}{origin} on {settings.data.name}{place}",
        markup=False,
        soft_wrap=True,
    )

    def watch(work: Callable[[Observer], Any]) -> Any:
        with watching(1) as observer:
            return work(observer)

    ready = watch(lambda observer: load_trained_model(source, observer))
    with sharing(
        engine, {"pool": ready.pool}, ready.device, partial(deepcopy, ready.model)
    ) as leads:
        if not leads:
            return
        out, report = watch(
            lambda observer: write(
                ready,
                model=ready.model,
                task=ready.task,
                dataset=ready.pool,
                device=ready.device,
                batch_size=settings.experiment.score_batch,
                on_corrupt=settings.experiment.on_corrupt,
                observer=observer,
            )
        )
    console.print(
        f"{format_count(report.scored, 'sample')} {sentence}: {out}", markup=False, soft_wrap=True
    )
    if report.skipped:
        console.print(
            f"{len(report.skipped):,} could not be read: {list_ids(report.skipped)}",
            markup=False,
            soft_wrap=True,
        )
