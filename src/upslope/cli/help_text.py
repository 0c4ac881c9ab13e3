"""The help of commands as a terminal should show it: prose flows, lists keep their lines."""

from __future__ import annotations

import inspect

import typer

_LIST = "  "
"""What a line of a list, such as an example, begins with in the help of a command."""


def lay_out_help(app: typer.Typer) -> None:
    """Lay out the help of every command of an application and of its groups, in place."""
    for command in app.registered_commands:
        command.help = lay_out(command.help or inspect.getdoc(command.callback) or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            lay_out_help(group.typer_instance)


def lay_out(text: str) -> str:
    """Return a help text whose prose has no line breaks and whose lists have no empty lines.

    typer shows every line break but those of the first paragraph. Prose would so be broken where
    its docstring is, and again where the terminal ends.
    """
    parts: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        in_list = paragraph.startswith(_LIST)
        if in_list and parts and parts[-1].startswith(_LIST):
            parts[-1] += "\n" + paragraph
        else:
            parts.append(paragraph if in_list else " ".join(paragraph.split("\n")))
    return "\n\n".join(parts)
