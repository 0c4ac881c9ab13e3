"""`upslope label next` and `watch`: people answer in a tool beside the page."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upslope.cli.console import telling_errors
from upslope.cli.label_options import GO_ON, Name, author_of, say, take_in_changes
from upslope.cli.label_options import Project as ProjectFolder
from upslope.counts import format_count
from upslope.progress import answering_signals

if TYPE_CHECKING:
    from upslope.labelling.annotators.base import Annotator, PushCount
    from upslope.labelling.exchange import Exchange, PullCount
    from upslope.labelling.project import Project
    from upslope.labelling.samples import Samples

TOKEN_VARIABLE = "LABEL_STUDIO_API_KEY"
"""The variable of the environment that holds a token, so that none stands in a command line."""

Tool = Annotated[str, typer.Option(help="files: a CSV and a folder; label-studio: a server of it.")]
Count = Annotated[int, typer.Option(min=0, help="Tasks that the tool gets; 0 takes answers only.")]
Url = Annotated[
    str | None, typer.Option(help="Of a Label Studio that runs; without it, one is started.")
]
Token = Annotated[
    str | None, typer.Option(help="Of that Label Studio; better in LABEL_STUDIO_API_KEY.")
]
Predictions = Annotated[
    bool, typer.Option("--predictions", help="Send the model's guesses, which sway people.")
]


def next_(
    project: ProjectFolder,
    tool: Tool = "files",
    count: Count = 50,
    url: Url = None,
    token: Token = None,
    name: Name = None,
    predictions: Predictions = False,
) -> None:
    """Take answers of a tool in, and hand it the samples worth most, once.

    [bold]Examples[/bold]

      upslope label next birds --tool files

      upslope label next birds --tool label-studio --count 100

      upslope label next birds --tool label-studio --url http://studio:8080
    """
    with (
        telling_errors(GO_ON),
        _exchange(project, tool, url, token, name, predictions) as (exchange, _),
    ):
        _say_pull(exchange.pull())
        if count:
            push_count = exchange.push(count)
            _say_push(push_count, tool)
            if unreadable := exchange.project.state.unreadable:
                one = "sample cannot be read and is not asked"
                several = "samples cannot be read and are not asked"
                say(f"{format_count(len(unreadable), one, several)}, first {min(unreadable)!r}")


def watch(
    project: ProjectFolder,
    tool: Tool = "label-studio",
    count: Count = 50,
    url: Url = None,
    token: Token = None,
    name: Name = None,
    predictions: Predictions = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
) -> None:
    """Take answers of a tool in and hand it tasks, until Ctrl-C.

    [bold]Examples[/bold]

      upslope label watch birds --tool label-studio
    """
    exchanging = _exchange(project, tool, url, token, name, predictions)
    with telling_errors(GO_ON), exchanging as (exchange, process):
        try:
            with answering_signals(_interrupt):
                while True:
                    pull_count = exchange.pull()
                    if pull_count.new or pull_count.changed:
                        _say_pull(pull_count)
                    if (
                        exchange.waiting() <= count // 2
                        and (push_count := exchange.push(count)).new
                    ):
                        _say_push(push_count, tool)
                    time.sleep(every)
        except KeyboardInterrupt:
            _say_pull(exchange.pull())
        finally:
            if process is not None:
                process.terminate()
                process.wait()


def _interrupt(_number: int, _frame: object) -> None:
    """Answer SIGTERM and SIGHUP as Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def _exchange(
    folder: Path, tool: str, url: str | None, token: str | None, name: str | None, guesses: bool
) -> Iterator[tuple[Exchange, subprocess.Popen[bytes] | None]]:
    from upslope.labelling.exchange import Exchange
    from upslope.labelling.project import Project
    from upslope.labelling.samples import samples_of

    author = author_of(name)
    with Project(folder) as project:
        settings = project.settings
        samples = samples_of(settings)
        take_in_changes(project, samples)
        annotator, process = _annotator(project, samples, tool, url, token, author)
        yield Exchange(project, samples, annotator, guesses), process


def _annotator(
    project: Project,
    samples: Samples,
    tool: str,
    url: str | None,
    token: str | None,
    author: str,
) -> tuple[Annotator, subprocess.Popen[bytes] | None]:
    from upslope.errors import ConfigError
    from upslope.labelling.annotators import TOOLS
    from upslope.labelling.annotators.files import FilesAnnotator
    from upslope.labelling.annotators.label_studio import LabelStudioAnnotator
    from upslope.labelling.annotators.label_studio_server import start
    from upslope.labelling.samples import FolderImages

    settings = project.settings
    if tool == "files":
        where = project.folder / "files"
        say(f"answers: {where / 'to-label.csv'}, or images moved to {where / 'images'}/<class>/")
        return FilesAnnotator(where, settings.kind, settings.classes, author), None
    if tool != "label-studio":
        raise ConfigError(f"Expected --tool to be one of {', '.join(TOOLS)} but got {tool!r}.")
    title = project.folder.resolve().name
    if url is not None:
        token = token or os.environ.get(TOKEN_VARIABLE)
        if not token:
            raise ConfigError(
                f"Expected a token of Label Studio for {url}, in {TOKEN_VARIABLE} or by --token, "
                "but got none. Its account page shows it."
            )
        annotator = LabelStudioAnnotator(
            url, token, title, settings.kind, samples.kind, settings.classes
        )
        return annotator, None
    images = samples.root if isinstance(samples, FolderImages) else None
    access, process = start(project.folder, images, say)
    say(f"label at {access.url} as {access.user}, password {access.password}")
    annotator = LabelStudioAnnotator(
        access.url, access.token, title, settings.kind, samples.kind, settings.classes, images
    )
    return annotator, process


def _say_push(push_count: PushCount, tool: str) -> None:
    say(f"{format_count(push_count.new, 'task')} for {tool}, those worth most first")


def _say_pull(pull_count: PullCount) -> None:
    words = (
        f"recorded {format_count(pull_count.new, 'answer')}, "
        f"{format_count(pull_count.changed, 'change')}"
    )
    if pull_count.strangers:
        words += (
            f"; {pull_count.strangers:,} of samples that the project does not have are left out"
        )
    say(words)
