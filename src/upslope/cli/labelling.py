"""`upslope label`, the group of commands: each kind of them has a file of its own."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from upslope.cli.label_doubts import close_control, disagreements, relabel
from upslope.cli.label_page import init, serve, start, status
from upslope.cli.label_results import export, import_, move, predict
from upslope.cli.label_tools import next_, watch


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
    "  upslope label photos/ --classes cat,dog,bird  make a project, open its page\n"
    "  upslope label digits                          try it on scikit-learn's\n\n"
    "The page needs `pip install '.\\[label]'`. Ctrl-C ends it; the same command goes on. Every "
    "answer is on the disk before the next sample is shown.",
)


label.command()(start)
label.command()(init)
label.command()(serve)
label.command()(status)
label.command("next")(next_)
label.command()(watch)
label.command()(export)
label.command()(predict)
label.command("import")(import_)
label.command()(relabel)
label.command()(disagreements)
label.command("close-control")(close_control)
label.command("move")(move)
