"""The layout of what `--help` shows."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from upslope.cli import app
from upslope.cli.help_text import lay_out

GROUPS = (app, *(group.typer_instance for group in app.registered_groups))


def test_prose_flows_and_lists_have_no_empty_lines() -> None:
    text = """Do it.

    More of it, in two
    lines.

    [bold]Examples[/bold]

      upslope it one

      upslope it two \\
    --again

    The end.
    """
    assert lay_out(text) == (
        "Do it.\n\nMore of it, in two lines.\n\n[bold]Examples[/bold]\n\n"
        "  upslope it one\n  upslope it two \\\n--again\n\nThe end."
    )
    assert lay_out(lay_out(text)) == lay_out(text)


def test_the_help_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["--help"], prog_name="upslope").output
    first, last = shown.index("Start here"), shown.index("How it works")
    examples = [line.strip() for line in shown[first:last].splitlines()[1:] if line.strip()]
    assert len(examples) == 9  # of eight commands
    assert all(line.startswith(("upslope ", "-s ")) for line in examples)


@pytest.mark.parametrize("group", GROUPS)
def test_examples_of_commands_are_one_line_each_in_80_columns(group: typer.Typer) -> None:
    for command in group.registered_commands:
        lines = (command.help or "").replace("\\[", "[").splitlines()
        examples = [line for line in lines if line.startswith("  ")]
        assert examples
        # A terminal breaks a longer one, and a backslash at its end has blanks behind it there:
        # neither can be copied into a shell.
        assert [line for line in examples if len(line) > 78 or line.endswith("\\")] == []


@pytest.mark.parametrize("group", GROUPS)
def test_every_command_is_laid_out(group: typer.Typer) -> None:
    for command in group.registered_commands:
        assert command.help
        assert command.help == lay_out(command.help)
