"""`upslope label`: a page on which people label, and its project."""

from __future__ import annotations

import getpass
import importlib.util
import json
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from upslope.cli.console import out, told
from upslope.display import err

Project = Annotated[Path, typer.Argument(metavar="PROJECT", help="Folder of the project.")]
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
Name = Annotated[str | None, typer.Option(help="Who answers; your login name by default.")]
Host = Annotated[str, typer.Option(help="Address to listen at; others than loopback are open.")]
Port = Annotated[int | None, typer.Option(help="Port; 8321, or a free one where it is taken.")]
Wage = Annotated[
    float | None, typer.Option(min=0, help="For an hour of labelling: advice in money too.")
]
Browser = Annotated[bool, typer.Option(help="Open the page in a browser.")]


class _LabelGroup(TyperGroup):
    """`upslope label photos/ ...` is `upslope label start photos/ ...`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Take what is no command for data to label."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            args = ["start", *args]
        return super().resolve_command(ctx, args)


label = typer.Typer(
    cls=_LabelGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Label images, texts or rows on a page, in the order in which labels are worth most."
    "\n\n[bold]Start here[/bold]\n\n"
    "  upslope label photos/ --classes cat,dog,bird     makes the project and opens the page\n\n"
    "  upslope label digits                             to try it: scikit-learn's digits\n\n"
    "The page needs `pip install '.[label]'`. Ctrl-C ends it; the same command goes on. Every "
    "answer is on the disk before the next sample is shown.",
)


@label.command()
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
    with told(_GO_ON):
        _need_page()
        from upslope.labelling.project import FORMAT
        from upslope.labelling.samples import BUILT_IN

        folder = out_ or Path(
            f"{Path(data).resolve().name if data not in BUILT_IN else data}-labels"
        )
        if not (folder / FORMAT.file).exists():
            _create(folder, data, classes, kind, strategy, control, target, twice, seed)
        _serve(folder, name, host, port, browser, wage)


@label.command()
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
) -> None:
    """Make a project; labels that the data have already are taken in.

    [bold]Examples[/bold]

      upslope label init birds --data photos/ --classes robin,wren --strategy badge
    """
    with told():
        _create(project, data, classes, kind, strategy, control, target, twice, seed)
        _say(f"next: upslope label serve {project}")


@label.command()
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
    with told(_GO_ON):
        _need_page()
        _serve(project, name, host, port, browser, wage)


@label.command()
def status(
    project: Project,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    wage: Wage = None,
) -> None:
    """Say how far the labels are, and what the model is worth by them.

    [bold]Examples[/bold]

      upslope label status birds
    """
    with told():
        from upslope.labelling.status import lines
        from upslope.labelling.status import status as status_of

        standing = status_of(project, wage)
        if as_json:
            typer.echo(json.dumps(standing, indent=2))
            return
        for title, text in lines(standing):
            out.print(f"{title:11} {text}", markup=False, soft_wrap=True)


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


@label.command("next")
def next_(
    project: Project,
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
    with told(_GO_ON):
        from upslope.cli.label_tools import next_tasks

        next_tasks(project, tool, count, url, token, name, predictions)


@label.command()
def watch(
    project: Project,
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
    with told(_GO_ON):
        from upslope.cli.label_tools import watch_tool

        watch_tool(project, tool, count, url, token, name, predictions, every)


@label.command()
def export(
    project: Project,
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="File: .csv, .parquet, .safetensors or .onnx (the model); or a folder.",
        ),
    ],
    merge: Annotated[
        str, typer.Option(help="Of several people's answers: majority or dawid-skene.")
    ] = "majority",
) -> None:
    """Write the labels: every answer into a table, or images into a folder per class.

    [bold]Examples[/bold]

      upslope label export birds labels.csv

      upslope label export birds sorted/
    """
    with told():
        from upslope.labelling.exported_model import SUFFIXES, export_model
        from upslope.labelling.exports import export_folders, export_table

        if target.suffix in SUFFIXES:
            made = export_model(project, target)
            _say(f"{target}: a model of {made.labels:,} labels on {made.method}")
            return
        if target.suffix:
            count = export_table(project, target, merge)  # type: ignore[arg-type]
            _say(f"{target}: {count.samples:,} samples with a label, {count.rows:,} answers")
        else:
            count = export_folders(project, target, merge)  # type: ignore[arg-type]
            _say(f"{target}: {count.samples:,} images in folders of their classes")
        if count.passed:
            _say(f"{count.passed:,} samples were passed and have no label")


@label.command()
def predict(
    project: Project,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File .csv or .parquet.")],
    data: Annotated[
        str | None, typer.Option(help="Other images than the project's: a folder.")
    ] = None,
) -> None:
    """Write what the model makes of every sample: class and probability.

    [bold]Examples[/bold]

      upslope label predict birds predictions.csv

      upslope label predict birds new.csv --data new-photos/
    """
    with told():
        from upslope.labelling.predictions import write_predictions

        count = write_predictions(project, target, data)
        _say(f"{target}: {count.rows:,} predictions by a model of {count.labels:,} labels")
        _say(f"features: {count.method}")
        if count.unreadable:
            _say(f"{count.unreadable:,} samples cannot be read and are left out")


@label.command("import")
def import_(
    project: Project,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="CSV with id and label, or a folder a class.")
    ],
) -> None:
    """Take labels in that exist already; the model is trained on them.

    [bold]Examples[/bold]

      upslope label import birds old-labels.csv

      upslope label import birds sorted/
    """
    with told():
        from upslope.labelling.imports import import_labels
        from upslope.labelling.project import Project as LabelProject

        with LabelProject(project) as opened:
            count = import_labels(opened, source)
        _say(f"recorded {count.new:,} labels, {count.corrected:,} corrections")
        if count.empty:
            _say(f"{count.empty:,} rows have no label and say nothing")


@label.command()
def relabel(
    project: Project,
    count: Annotated[int, typer.Option(min=1, help="Answers to ask again at most.")] = 20,
) -> None:
    """Ask answers again that the model doubts: the page shows them first.

    [bold]Examples[/bold]

      upslope label relabel birds --count 10
    """
    with told():
        from upslope.labelling.doubt import doubtful_labels
        from upslope.labelling.predictions import learner_and_features
        from upslope.labelling.project import Project as LabelProject

        with LabelProject(project) as opened:
            doubts = doubtful_labels(
                learner_and_features(project, opened.settings)[0], opened.state
            )
            reasons = dict(list(doubts.items())[:count])
            opened.ask_again(reasons)
        for id_, why in reasons.items():
            _say(f"{id_}: {why}")
        _say(f"{len(reasons):,} answers are asked again: upslope label serve {project}")


@label.command()
def disagreements(
    project: Project,
    ask: Annotated[bool, typer.Option("--ask", help="Ask them again on the page.")] = False,
) -> None:
    """Show the samples on which people disagree, with who said what.

    [bold]Examples[/bold]

      upslope label disagreements birds --ask
    """
    with told():
        from upslope.labelling.people import disagreements as disagreements_of
        from upslope.labelling.project import Project as LabelProject
        from upslope.labelling.project import read_project

        settings, state = read_project(project)
        unsettled = disagreements_of(state, settings.classes)
        for one in unsettled:
            _say(f"{one.id}: {one.words}")
        _say(f"{len(unsettled):,} samples")
        if ask and unsettled:
            with LabelProject(project) as opened:
                opened.ask_again({one.id: one.words for one in unsettled})
            _say(f"asked again: upslope label serve {project}")


@label.command("close-control")
def close_control(project: Project) -> None:
    """Train on the control answers too, from here on; nothing measures the model any more.

    [bold]Examples[/bold]

      upslope label close-control birds
    """
    with told():
        from upslope.labelling.project import Project as LabelProject

        with LabelProject(project) as opened:
            opened.close_control()
        _say("The control slice is closed: its answers are trained on.")


_GO_ON = "Every answer is kept: the same command goes on."


def _create(
    folder: Path,
    data: str,
    classes: str | None,
    kind: str,
    strategy: str,
    control: float,
    target: str | None,
    twice: float,
    seed: int,
) -> None:
    from upslope.errors import ConfigError
    from upslope.labelling.learner import check_strategy
    from upslope.labelling.project import Project as LabelProject
    from upslope.labelling.samples import BUILT_IN, open_samples
    from upslope.labelling.settings import ProjectSettings

    if classes is None:
        if data not in BUILT_IN:
            raise ConfigError(
                "Expected the names of the classes, --classes cat,dog,bird, as files do not say "
                "which there are, but got none."
            )
        classes = ",".join("0123456789")
    place = data if data in BUILT_IN else str(Path(data).expanduser().absolute())
    names = tuple(name.strip() for name in classes.split(","))
    settings = ProjectSettings(place, names, kind, strategy, control, target, twice, seed)  # type: ignore[arg-type]
    check_strategy(settings)
    samples = open_samples(place, names, target)
    for note in samples.notes:
        _say(note)
    with LabelProject.create(folder, settings) as project:
        if samples.labels:
            given = {i: [n] if kind == "labels" else n for i, n in samples.labels.items()}
            project.take_in(given, "the data")
    _say(
        f"{folder}: {len(samples.ids):,} samples of {data}, {len(names)} classes"
        + (f", {len(samples.labels):,} labelled already" if samples.labels else "")
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
    from upslope.labelling.samples import open_samples
    from upslope.labelling.server import LOOPBACK, listen
    from upslope.labelling.server import serve as serve_page
    from upslope.labelling.session import Session
    from upslope.labelling.settings import OUTLINES

    with LabelProject(folder) as project:
        settings = project.settings
        if settings.kind in OUTLINES:
            raise ConfigError(
                f"Expected classes or labels to answer on the page but this project asks for "
                f"{settings.kind}. Draw them in Label Studio: upslope label watch {folder} --tool "
                "label-studio"
            )
        samples = open_samples(settings.data, settings.classes, settings.target)
        session = Session(project, samples, wage)
        listener = listen(host, port)
        number = listener.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{number}/?token={project.token}"
        local = host in LOOPBACK
        if not local:
            err.print(
                f"warning {host} can be reached from other machines, unencrypted: whoever has the "
                "address with its token can answer and see the samples.",
                markup=False,
            )
        _say(f"label at {url}")
        _say("Ctrl-C ends; every answer is kept.")
        if browser:
            webbrowser.open(url)
        serve_page(session, listener, name or getpass.getuser(), LOOPBACK if local else None)


def _need_page() -> None:
    """Raise ConfigError where the packages of the page are not installed."""
    from upslope.errors import ConfigError

    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"Expected the package {' and '.join(missing)}, which serves the page, but it is not "
            "installed: pip install '.[label]' in the clone."
        )


def _say(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)
