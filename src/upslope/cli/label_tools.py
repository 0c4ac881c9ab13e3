"""`upslope label next` and `watch`: people answer in a tool beside the page."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from upslope.cli.console import out
from upslope.progress import answering_signals

if TYPE_CHECKING:
    from upslope.labelling.annotators.base import Annotator
    from upslope.labelling.exchange import Exchange, PullCount
    from upslope.labelling.project import Project
    from upslope.labelling.samples import Samples

TOKEN_VARIABLE = "LABEL_STUDIO_API_KEY"
"""The variable of the environment that holds a token, so that none stands in a command line."""


def next_tasks(
    folder: Path,
    tool: str,
    count: int,
    url: str | None,
    token: str | None,
    name: str | None,
    predictions: bool,
) -> None:
    """Take answers in, and hand the next tasks to the tool, once."""
    with _exchange(folder, tool, url, token, name, predictions) as (exchange, _):
        _say_pulled(exchange.pull())
        if count:
            pushed = exchange.push(count)
            _say(f"{pushed.new:,} tasks for {tool}, those worth most first")


def watch_tool(
    folder: Path,
    tool: str,
    count: int,
    url: str | None,
    token: str | None,
    name: str | None,
    predictions: bool,
    every: float,
) -> None:
    """Take answers in and hand tasks on until Ctrl-C, SIGTERM or SIGHUP; a server that this started
    then ends."""
    with _exchange(folder, tool, url, token, name, predictions) as (exchange, process):
        try:
            with answering_signals(_interrupt):
                while True:
                    pulled = exchange.pull()
                    if pulled.new or pulled.changed:
                        _say_pulled(pulled)
                    if exchange.waiting() <= count // 2 and (pushed := exchange.push(count)).new:
                        _say(f"{pushed.new:,} tasks for {tool}, those worth most first")
                    time.sleep(every)
        except KeyboardInterrupt:
            _say_pulled(exchange.pull())
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
    from upslope.labelling.samples import open_samples

    with Project(folder) as project:
        settings = project.settings
        samples = open_samples(settings.data, settings.classes, settings.target)
        annotator, process = _annotator(project, samples, tool, url, token, name)
        yield Exchange(project, samples, annotator, guesses), process


def _annotator(
    project: Project,
    samples: Samples,
    tool: str,
    url: str | None,
    token: str | None,
    name: str | None,
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
        _say(f"answers: {where / 'to-label.csv'}, or images moved to {where / 'images'}/<class>/")
        author = name or getpass.getuser()
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
    access, process = start(project.folder, images, _say)
    _say(f"label at {access.url} as {access.user}, password {access.password}")
    annotator = LabelStudioAnnotator(
        access.url, access.token, title, settings.kind, samples.kind, settings.classes, images
    )
    return annotator, process


def _say_pulled(pulled: PullCount) -> None:
    words = f"recorded {pulled.new:,} answers, {pulled.changed:,} changes"
    if pulled.strangers:
        words += f"; {pulled.strangers:,} of samples that the project does not have are left out"
    _say(words)


def _say(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)
