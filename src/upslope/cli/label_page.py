"""`upslope label start`, `init`, `serve` and `status`: a project, and the page of it."""

from __future__ import annotations

import csv
import importlib.util
import json
import threading
import webbrowser
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from upslope.cli.console import out, telling_errors
from upslope.cli.label_options import (
    GO_ON,
    Delimiter,
    Encoding,
    IdColumn,
    Layout,
    Name,
    Project,
    ReadLimit,
    Wage,
    White,
    author_of,
    say,
    take_in_changes,
)
from upslope.display import err

Classes = Annotated[
    str | None, typer.Option(help="Names with commas between: cat,dog,bird.", metavar="A,B,C")
]
Kind = Annotated[
    str,
    typer.Option(help="class: one per sample; labels: any number; boxes, masks: in a tool."),
]
Strategy = Annotated[str, typer.Option(help="Chooses what is asked; `upslope list strategies`.")]
Control = Annotated[
    float,
    typer.Option(help="Share of the questions asked at random, which measure the model."),
]
Target = Annotated[str | None, typer.Option(help="Column of labels of a table.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Twice = Annotated[float, typer.Option(help="Share of the samples that two people label.")]
Host = Annotated[str, typer.Option(help="Address to listen at; others than loopback are open.")]
Port = Annotated[
    int | None, typer.Option(min=0, max=65535, help="Port; 8321, or a free one where it is taken.")
]
Browser = Annotated[bool, typer.Option(help="Open the page in a browser.")]


def start(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of images, CSV file, or digits.")
    ],
    classes: Classes = None,
    out_: Annotated[
        Path | None, typer.Option("--out", "-o", help="Project; DATA-labels by default.")
    ] = None,
    kind: Kind = "class",
    strategy: Strategy = "margin",
    control: Control = 0.2,
    target: Target = None,
    twice: Twice = 0.0,
    seed: Seed = 0,
    id_: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    layout: Layout = "auto",
    white: White = None,
    read_limit: ReadLimit = None,
    name: Name = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    wage: Wage = None,
    browser: Browser = True,
) -> None:
    """Make the project of DATA where there is none yet, and open its page.

    [bold]Examples[/bold]

      upslope label photos/ --classes cat,dog,bird

      upslope label reviews.csv --classes good,bad
    """
    with telling_errors(GO_ON):
        _need_page()
        from upslope.labelling.project import FORMAT
        from upslope.labelling.samples import BUILT_IN
        from upslope.labelling.settings import ReadingOptions

        folder = out_ or Path(
            f"{Path(data).resolve().name if data not in BUILT_IN else data}-labels"
        )
        options = {
            "kind": kind, "strategy": strategy, "control": control, "target": target,
            "twice": twice, "seed": seed,
            "reading": ReadingOptions(id_, encoding, delimiter, layout, white, read_limit),  # type: ignore[arg-type]
        }  # fmt: skip
        if (folder / FORMAT.file).exists():
            _check_same(folder, data, classes, options)
        else:
            _create(folder, data, classes, options)
        _serve(folder, name, host, port, browser, wage)


def init(
    project: Project,
    data: Annotated[str, typer.Option(help="Folder of images, CSV file, or digits.")],
    classes: Classes = None,
    kind: Kind = "class",
    strategy: Strategy = "margin",
    control: Control = 0.2,
    target: Target = None,
    twice: Twice = 0.0,
    seed: Seed = 0,
    id_: IdColumn = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    layout: Layout = "auto",
    white: White = None,
    read_limit: ReadLimit = None,
) -> None:
    """Make a project; labels that the data have already are taken in.

    [bold]Examples[/bold]

      upslope label init birds --data photos --classes robin,wren --strategy badge
    """
    with telling_errors():
        from upslope.labelling.settings import OUTLINES, ReadingOptions

        options = {
            "kind": kind, "strategy": strategy, "control": control, "target": target,
            "twice": twice, "seed": seed,
            "reading": ReadingOptions(id_, encoding, delimiter, layout, white, read_limit),  # type: ignore[arg-type]
        }  # fmt: skip
        _create(project, data, classes, options)
        if kind in OUTLINES:
            say(f"next: upslope label watch {project} --tool label-studio")
        else:
            say(f"next: upslope label serve {project}")


def serve(
    project: Project,
    name: Name = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    wage: Wage = None,
    browser: Browser = True,
) -> None:
    """Open the page of a project.

    [bold]Examples[/bold]

      upslope label serve birds

      upslope label serve birds --no-browser --port 9000
    """
    with telling_errors(GO_ON):
        _need_page()
        _serve(project, name, host, port, browser, wage)


def status(
    project: Project,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    wage: Wage = None,
) -> None:
    """Say how far the labels are, and what the model is worth by them.

    [bold]Examples[/bold]

      upslope label status birds
    """
    with telling_errors():
        from upslope.labelling.status import lines
        from upslope.labelling.status import status as status_of

        standing = status_of(project, wage)
        if as_json:
            typer.echo(json.dumps(standing, indent=2))
            return
        for title, text in lines(standing):
            out.print(f"{title:11} {text}", markup=False, soft_wrap=True)


def _create(
    folder: Path,
    data: str,
    classes: str | None,
    options: Mapping[str, Any],
) -> None:
    """Make a project. options: the other fields of its settings."""
    from upslope.counts import format_count
    from upslope.errors import ConfigError
    from upslope.labelling.imports import take_data_labels
    from upslope.labelling.learner import check_strategy
    from upslope.labelling.project import Project as LabelProject
    from upslope.labelling.samples import BUILT_IN, FolderImages, absolute_place, samples_of
    from upslope.labelling.settings import ProjectSettings

    if classes is None:
        if data not in BUILT_IN:
            raise ConfigError(
                "Expected the names of the classes, --classes cat,dog,bird, as files do not say "
                "which there are, but got none."
            )
        classes = ",".join("0123456789")
    place = absolute_place(data)
    names = _class_names(classes)
    settings = ProjectSettings(place, names, **options)
    check_strategy(settings)
    samples = samples_of(settings)
    for note in samples.notes:
        say(note)
    if isinstance(samples, FolderImages) and (white := samples.white()) is not None:
        settings = replace(settings, reading=replace(settings.reading, white=white))
        say(f"16-bit images are shown and learnt with the level {white:,} as white (--white)")
    with LabelProject.create(folder, settings) as project:
        count = take_data_labels(project, samples)
    say(
        f"{folder}: {format_count(len(samples.ids), 'sample')} of {data}, "
        + format_count(len(names), "class")
        + (f", {count:,} labelled already" if count else "")
    )


def _class_names(text: str) -> tuple[str, ...]:
    """Return the names between commas; one that holds a comma stands in double quotes, as in a
    CSV.
    """
    from upslope.errors import ConfigError

    try:
        (names,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise ConfigError(
            f"Expected `--classes` to be names with commas between, in double quotes where they "
            f"hold one, but got {text!r}: {error}."
        ) from error
    return tuple(name.strip() for name in names)


def _check_same(folder: Path, data: str, classes: str | None, options: Mapping[str, Any]) -> None:
    """Raise ConfigError where a command names other data, classes or options than the project has
    that it would go on with. Options at their defaults name none."""
    from upslope.errors import ConfigError
    from upslope.labelling.project import read_project
    from upslope.labelling.samples import BUILT_IN

    settings, _ = read_project(folder)
    differences = []
    if not (data == settings.data and data in BUILT_IN) and (
        Path(data).expanduser().resolve() != Path(settings.data).resolve()
    ):
        differences.append(f"data {settings.data}, not {data}")
    if classes is not None and (names := _class_names(classes)) != settings.classes:
        differences.append(f"classes {','.join(settings.classes)}, not {','.join(names)}")
    for values, there in ((options, settings), (vars(options["reading"]), settings.reading)):
        defaults = {field.name: field.default for field in fields(there)}
        differences += [
            f"{name} {getattr(there, name)}, not {value}"
            for name, value in values.items()
            if name != "reading" and value not in (getattr(there, name), defaults[name])
        ]
    if differences:
        raise ConfigError(
            f"Expected {folder} to be a project of the same but it has {'; '.join(differences)}. "
            f"Go on with it: `upslope label serve {folder}`; or make another, --out, which "
            "may take its answers: `upslope label export` a .csv, and `import` that."
        )


def _serve(
    folder: Path,
    name: str | None,
    host: str,
    port: int | None,
    browser: bool,
    wage: float | None,
) -> None:
    from upslope.errors import ConfigError
    from upslope.labelling.project import Project as LabelProject
    from upslope.labelling.samples import samples_of
    from upslope.labelling.server import LOOPBACK, listen
    from upslope.labelling.server import serve as serve_page
    from upslope.labelling.session import Session
    from upslope.labelling.settings import OUTLINES

    author = author_of(name)
    with LabelProject(folder) as project:
        settings = project.settings
        if settings.kind in OUTLINES:
            raise ConfigError(
                f"Expected classes or labels to answer on the page but this project asks for "
                f"{settings.kind}. Draw them in Label Studio: upslope label watch {folder} --tool "
                "label-studio"
            )
        samples = samples_of(settings)
        take_in_changes(project, samples)
        session = Session(project, samples, wage)
        listener = listen(host, port)
        number = listener.getsockname()[1]
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{number}/?token={project.token}"
        local = host in LOOPBACK
        if not local:
            err.print(
                f"warning {host} can be reached from other machines, unencrypted: whoever has the "
                "address with its token can answer and see the samples.",
                markup=False,
            )
        say(f"label at {url}")
        say("Ctrl-C ends; every answer is kept.")
        if browser:
            # In a thread: a browser of the terminal, as lynx, is over when people have left it, and
            # would wait for the page until then.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        serve_page(session, listener, author, LOOPBACK if local else None)


def _need_page() -> None:
    """Raise ConfigError where the packages of the page are not installed."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        from upslope.extras import missing_package

        raise missing_package(" and ".join(missing), "to serve the page", "label")
