"""Options that several commands of `upslope label` take, and how these speak."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upslope.cli.console import out
from upslope.counts import format_count

if TYPE_CHECKING:
    from upslope.labelling.project import Project as LabelProject
    from upslope.labelling.samples import Samples

Project = Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of the project.")]
Name = Annotated[str | None, typer.Option(help="Who answers; your login name by default.")]
Wage = Annotated[
    float | None,
    typer.Option(min=0, max=1e6, help="For an hour of labelling: advice in money too."),
]

IdColumn = Annotated[
    str | None, typer.Option("--id", help="Of a table: its column of ids; `id`, or rows counted.")
]
Encoding = Annotated[
    str | None, typer.Option(help="Of a table's text, such as cp1252; UTF-8 where not given.")
]
Delimiter = Annotated[
    str | None, typer.Option(help="Of a CSV: comma, semicolon, tab, bar or one character.")
]
Layout = Annotated[
    str, typer.Option(help="Folders of images: classes, splits, or auto, which goes by names.")
]
White = Annotated[
    int | None, typer.Option(help="Of 16-bit images: the level that is white, such as 4095.")
]
ReadLimit = Annotated[
    float | None, typer.Option(help="GiB of memory that one file may take; 4 where not given.")
]

GO_ON = "Every answer is kept: the same command goes on."
"""What is said where a command was stopped."""


def author_of(name: str | None) -> str:
    """Return who answers: the name that was given, or the login name.

    Raises:
        ConfigError: none was given, and the system has none for the user, as in a container.
        DataError: a name by which answers would be taken for imported labels.
    """
    import getpass

    from upslope.errors import ConfigError
    from upslope.labelling.project import check_author

    if name is None:
        try:
            name = getpass.getuser()
        except (KeyError, OSError) as error:  # the former before Python 3.13
            raise ConfigError(
                "Expected a login name, by which answers are recorded, but the system has none for "
                "this user. Say who answers: --name NAME."
            ) from error
    check_author(name)
    return name


def say(line: str) -> None:
    """Print a line as it is: no markup, no wrapping."""
    out.print(line, markup=False, soft_wrap=True)


def take_in_changes(project: LabelProject, samples: Samples) -> None:
    """Take new labels of the data in, and say what became of the data since it was last open."""
    from upslope.datasets.paths import list_ids
    from upslope.labelling.contents import replaced_samples
    from upslope.labelling.imports import answered_but_absent, take_data_labels

    if count := take_data_labels(project, samples):
        say(f"{count:,} labels of the data are new")
    if absent := answered_but_absent(project, samples):
        one = "answered sample is not in the data any more"
        many = "answered samples are not in the data any more"
        say(
            f"{format_count(len(absent), one, many)}, first {absent[0]!r}: the answers are kept, "
            "and train no model"
        )
    if others := replaced_samples(samples, project.state.contents):
        one = "sample has other content than when it was answered"
        many = "samples have other content than when they were answered"
        say(
            f"{format_count(len(others), one, many)}: {list_ids(others)}. Answers are kept; "
            f"`upslope label relabel {project.folder}` asks again for those that the model doubts"
        )
