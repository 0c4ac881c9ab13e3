"""`upslope label export`, `predict`, `import` and `move`: labels and predictions out, labels in,
and where the data lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upslope.cli.console import telling_errors
from upslope.cli.label_options import Project, say
from upslope.counts import format_count


def export(
    project: Project,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="File: .csv, .parquet, .json (COCO), .safetensors or .onnx (the model); or a "
            "folder.",
        ),
    ],
    merge: Annotated[
        str, typer.Option(help="Of several people's answers: majority or dawid-skene.")
    ] = "majority",
) -> None:
    """Write the labels: every answer into a table, objects as COCO's JSON, or files into a folder.

    A folder gets the images in a folder per class or, of a project of masks, images, masks and
    their class table as data set `mask-folder` reads them.

    [bold]Examples[/bold]

      upslope label export birds labels.csv

      upslope label export birds coco.json

      upslope label export birds sorted/
    """
    with telling_errors():
        from upslope.labelling.coco import export_coco
        from upslope.labelling.exported_model import SUFFIXES, export_model
        from upslope.labelling.exports import export_folders, export_table
        from upslope.labelling.mask_folders import export_masks
        from upslope.labelling.project import read_project

        suffix = target.suffix.lower()
        if suffix in SUFFIXES:
            summary = export_model(project, target)
            say(f"{target}: a model of {format_count(summary.labels, 'label')} on {summary.method}")
            return
        if suffix == ".json":
            count = export_coco(project, target, merge)  # type: ignore[arg-type]
            images, objects = (
                format_count(count.samples, "image"),
                format_count(count.rows, "object"),
            )
            say(f"{target}: {images} with {objects}")
        elif suffix:
            count = export_table(project, target, merge)  # type: ignore[arg-type]
            samples, answers = (
                format_count(count.samples, "sample"),
                format_count(count.rows, "answer"),
            )
            say(f"{target}: {samples} with a label, {answers}")
        elif read_project(project)[0].kind == "masks":
            count = export_masks(project, target, merge)  # type: ignore[arg-type]
            say(f"{target}: {count.samples:,} images with their masks")
        else:
            count = export_folders(project, target, merge)  # type: ignore[arg-type]
            say(f"{target}: {format_count(count.samples, 'image')} in folders of their classes")
        if count.passed:
            one = "sample was skipped and has no label"
            say(format_count(count.passed, one, "samples were skipped and have no label"))


def predict(
    project: Annotated[
        Path, typer.Argument(metavar="PROJECT", help="Folder of the project, or a model of it.")
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File .csv or .parquet.")],
    data: Annotated[
        str | None,
        typer.Option(help="Other images than the project's: a folder. Needed with a model."),
    ] = None,
) -> None:
    """Write what the model makes of every sample: class and probability.

    [bold]Examples[/bold]

      upslope label predict birds predictions.csv

      upslope label predict birds new.csv --data new-photos/

      upslope label predict model.safetensors new.csv --data new-photos/
    """
    with telling_errors():
        from upslope.errors import ConfigError
        from upslope.labelling.predictions import write_predictions, write_predictions_of_file

        if not project.is_file():
            count = write_predictions(project, target, data)
        elif data is None:
            raise ConfigError(
                f"Expected --data FOLDER with the images that the model {project} is to predict "
                "but got none."
            )
        else:
            count = write_predictions_of_file(project, target, data)
        say(
            f"{target}: {format_count(count.rows, 'prediction')} by a model of "
            f"{format_count(count.labels, 'label')}"
        )
        say(f"features: {count.method}")
        if count.unreadable:
            one = "sample cannot be read and is left out"
            say(format_count(count.unreadable, one, "samples cannot be read and are left out"))
        for note in count.notes:
            say(note)


def import_(
    project: Project,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="CSV with id and label, .json of COCO or Label Studio, a folder a class, or one "
            "of masks.",
        ),
    ],
) -> None:
    """Take labels in that exist already; the model is trained on them.

    [bold]Examples[/bold]

      upslope label import birds old-labels.csv

      upslope label import birds instances.json

      upslope label import birds sorted/
    """
    with telling_errors():
        from upslope.labelling.imports import import_labels
        from upslope.labelling.project import Project as LabelProject

        with LabelProject(project) as label_project:
            count = import_labels(label_project, source)
        say(
            f"recorded {format_count(count.new, 'label')}, "
            f"{format_count(count.corrected, 'correction')}"
        )
        if count.passed:
            say(
                format_count(
                    count.passed,
                    "sample was skipped or could not be told, and has no label",
                    "samples were skipped or could not be told, and have no label",
                )
            )
        if count.empty:
            one = "row has no label and says nothing"
            say(format_count(count.empty, one, "rows have no label and say nothing"))
        if count.differing:
            say(
                f"{len(count.differing):,} labels differ from answers that were there, which "
                f"count, first of {count.differing[0]!r}: correct these on the page"
            )
        for note in count.notes:
            say(note)


def move(
    project: Project,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Where the folder or the file lies now.")
    ],
) -> None:
    """Say where the data of a project lie since they were moved.

    [bold]Examples[/bold]

      upslope label move birds /mnt/photos
    """
    with telling_errors():
        from upslope.labelling.imports import move_data
        from upslope.labelling.project import Project as LabelProject

        with LabelProject(project) as label_project:
            count, absent = move_data(label_project, data)
        say(f"{project}: {format_count(count, 'sample')} of {data}")
        if absent:
            say(f"{len(absent):,} answered samples are not there, first {absent[0]!r}")
