"""`upslope score` and `upslope predict`: what a trained network makes of every sample of a pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upslope.cli.console import out as console
from upslope.cli.console import told
from upslope.counts import format_count

if TYPE_CHECKING:
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


def score(
    network: Network,
    config: Configuration = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write, .parquet or .csv.")
    ] = Path("scores.parquet"),
    scores: Annotated[
        str, typer.Option(help="Strategies whose scores to compute, with commas between.")
    ] = "entropy-gradnorm",
    device: Device = None,
    sets: Sets = None,
    skip_corrupt: SkipCorrupt = False,
) -> None:
    """Score every sample of a pool with a trained network: ids and scores to a file.

    A higher score is more worth a label. A run knows its data, network, classes and statistics;
    -s data.root=FOLDER scores other samples with them. For a checkpoint from elsewhere say the
    data set and the network, which may be a function of yours in the current folder,
    -s model.name=nets:make. Of data.name=folder every image is scored, at any depth, with or
    without a label.

    [bold]Examples[/bold]

      upslope score runs/digits/margin/seed-0 --scores entropy-gradnorm,egl --out scores.csv

      upslope score runs/photos -s data.root=more-photos

      upslope score w.pt -s data.name=folder -s data.root=images -s model.name=nets:make -o s.csv
    """
    with told():
        from upslope.config import scorers
        from upslope.scoring import check_file_name, score_to_file

        chosen = scorers(scores)
        check_file_name(out)  # before anything is read that may take long

        def write(_: Any, **options: Any) -> tuple[Path, ScoreReport]:
            return out, score_to_file(out, chosen, **options)

        _write(network, config, device, sets, skip_corrupt, "scored", write)


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
    with told():
        from upslope.scoring import check_file_name, predict_masks, predict_to_file, predicts_masks

        def write(ready: Any, **options: Any) -> tuple[Path, ScoreReport]:
            if predicts_masks(ready.model, ready.task, ready.pool, ready.device):
                target = out or Path("predictions")
                return target, predict_masks(target, classes=ready.classes, **options)
            target = out or Path("predictions.csv")
            return target, predict_to_file(target, classes=ready.classes, **options)

        if out is not None and out.suffix:
            check_file_name(out)  # before anything is read that may take long
        _write(network, config, device, sets, skip_corrupt, "predicted", write)


def _write(
    network: Path,
    config: Path | None,
    device: str | None,
    sets: list[str] | None,
    skip_corrupt: bool,
    done: str,
    write: Callable[..., tuple[Path, ScoreReport]],
) -> None:
    from upslope.config import find_source, trained
    from upslope.display import watching

    overrides = {"device": device, "experiment.on_corrupt": "skip" if skip_corrupt else None}
    source = find_source(network, config, sets=sets or (), overrides=overrides)
    settings = source.config
    own = " from the current folder or PYTHONPATH" if ":" in settings.model.name else ""
    place = f" in {settings.root}" if settings.root else ""
    console.print(
        f"{source.checkpoint}: {settings.model.name}{own} on {settings.data.name}{place}",
        markup=False,
        soft_wrap=True,
    )

    def watched(work: Callable[[Observer], Any]) -> Any:
        with watching(1) as observer:
            return work(observer)

    ready = watched(lambda observer: trained(source, observer))
    out, report = watched(
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
        f"{format_count(report.scored, 'sample')} {done}: {out}", markup=False, soft_wrap=True
    )
    if report.skipped:
        names = ", ".join(report.skipped[:5])
        console.print(f"{len(report.skipped)} could not be read: {names}", markup=False)
