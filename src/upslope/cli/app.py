"""The commands of `upslope`: options in, library calls, results out; one file for each command."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from upslope import __version__
from upslope.cli.compare import compare, run
from upslope.cli.console import telling_errors
from upslope.cli.engines import check_command
from upslope.cli.help_text import lay_out_help
from upslope.cli.labelling import label
from upslope.cli.listing import list_
from upslope.cli.plan import plan as plan_pool
from upslope.cli.report import report
from upslope.cli.reproduce import reproduce
from upslope.cli.score import predict, score
from upslope.cli.select import select
from upslope.cli.status import status
from upslope.cli.tell import tell
from upslope.cli.verify import repair, verify

_FUNCTIONS = {"query": "select", "gradient_norms": "score"}
"""What is a function in Python by one name -> the command that does it."""


_EMPTY_OPTION = re.compile(r"--[\w-]+=")


class _Commands(TyperGroup):
    """Names the command where somebody asks for the function, and takes no empty text."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Fail for an empty text among the arguments, of which Path makes the current folder."""
        for before, argument in pairwise(["", *args]):
            if not argument or _EMPTY_OPTION.fullmatch(argument):
                option = argument or (before if before.startswith("-") else "an argument")
                ctx.fail(
                    f"Expected {option.rstrip('=')} to have a value but got an empty text, perhaps "
                    "of a variable that is not set. Write . for the current folder."
                )
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Fail with the command's name for a function's."""
        if args and args[0] in _FUNCTIONS:
            command = _FUNCTIONS[args[0]]
            ctx.fail(f"No such command '{args[0]}': its command is `upslope {command}`.")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Choose which unlabelled samples are worth a label, by the norm of their loss gradient."
    "\n\n[bold]Start here[/bold]\n\n"
    "  upslope compare digits --seeds 2           strategies on handwritten digits\n"
    "  upslope label photos/ --classes cat,dog    label photographs on a page\n"
    "  upslope run -s data.name=folder -s data.root=photos \\\n"
    "      -s 'data.classes=\\[cat,dog]'            photographs that people label\n"
    "  upslope status runs/photos                 where a run stands\n"
    "  upslope predict runs/digits/margin/seed-0  classes and probabilities\n"
    "  upslope select w.pt --data photos          what to label next\n"
    "  upslope score runs/digits/margin/seed-0    what is worth a label\n"
    "  upslope list                               what there is to choose from\n\n"
    "[bold]How it works[/bold]\n\n"
    "A configuration says data, network, strategies and training: a YAML file of yours, or the "
    "name of one that ships (`upslope list configs`). Without one it is handwritten digits. "
    "--set changes single values. --dry-run says what a run would cost. Everything is "
    "recorded in the folder --out; the same command goes on where it stopped.\n\n"
    "[bold]Exit codes[/bold]\n\n"
    "    0  done\n"
    "    1  a fault of Upslope's\n"
    "    2  command line or configuration\n"
    "    3  data\n"
    "    4  network or checkpoint\n"
    "    5  selection\n"
    "    6  folder of a run, or output that cannot be written\n"
    "    7  waits for labels that people give\n"
    "  130  stopped by Ctrl-C\n"
    "  141  nobody reads its output any more, as in `upslope list | head -1`",
)


def _version(wants_version: bool) -> None:
    if wants_version:
        typer.echo(f"upslope {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `upslope` itself."""
    with telling_errors():
        check_command(context.invoked_subcommand or "")


app.command()(run)
app.command()(compare)
app.command()(status)
app.command()(tell)
app.command()(select)
app.add_typer(label, name="label")
app.command()(score)
app.command("plan")(plan_pool)
app.command()(predict)
app.command()(verify)
app.command()(repair)
app.command()(report)
app.command("list")(list_)
app.command()(reproduce)

lay_out_help(app)
