"""`upslope list`: tables that fit a screen, and one entry in full."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from upslope.cli.console import out, telling_errors
from upslope.errors import ConfigError

TABLES = ("strategies", "datasets", "models", "tasks", "signals", "settings", "configs")
_COLUMNS = 100  # of a table at most: longer lines are hard to follow
_WORDS = {
    "strategies": "strategy",
    "datasets": "data set",
    "models": "model",
    "tasks": "task",
    "signals": "signal",
    "settings": "settings",
    "configs": "configuration",
}

Entry = Mapping[str, Any]


def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[WHAT|NAME]",
            help="strategies, datasets, models, tasks, signals, settings or configs; or an entry, "
            "such as margin or training, to see it in full.",
        ),
    ] = "strategies",
) -> None:
    """List what there is to choose from, or one entry in full: options, costs, references.

    [bold]Examples[/bold]

      upslope list models

      upslope list configs

      upslope list entropy-gradnorm
    """
    with telling_errors():
        show_list(what)


def show_list(what: str) -> None:
    """Show a table, or every entry of that name in full.

    Raises:
        ConfigError: neither a table nor an entry has this name.
    """
    if what in TABLES:
        _show_table(what)
        return
    from upslope.registry import did_you_mean

    names: list[str] = []
    count = 0
    for table in TABLES:
        for entry in _entries(table):
            names.append(str(entry["name"]))
            if entry["name"] == what:
                if count:
                    out.print()
                _show_entry(entry, _WORDS[table])
                count += 1
    if not count:
        raise ConfigError(
            f"Expected one of {', '.join(TABLES)}, or the name of an entry of these, but got "
            f"{what!r}{did_you_mean(what, [*TABLES, *names]) or '.'}"
        )


def _entries(table: str) -> Iterator[Entry]:
    if table == "configs":
        from upslope.config import list_shipped

        for name, (summary, text) in list_shipped().items():
            yield {"name": name, "summary": summary, "text": text}
        return
    if table == "settings":
        from upslope.config import describe_settings

        yield from map(dataclasses.asdict, describe_settings())
        return
    for entry in importlib.import_module(f"upslope.{table}").describe():
        yield entry if isinstance(entry, dict) else dataclasses.asdict(entry)


def _show_table(table: str) -> None:
    """Print one line per entry, cut where the screen ends; whole in a pipe."""
    entries = list(_entries(table))
    wide = max(len(entry["name"]) for entry in entries)
    room = min(_COLUMNS, out.width) - wide - 2 if out.is_terminal else None
    for entry in entries:
        summary = str(entry["summary"]).split(". ")[0]
        if room is not None and len(summary) > room:
            summary = summary[: room - 1].rstrip() + "…"
        line = Text.assemble((entry["name"].ljust(wide), "bold"), f"  {summary}")
        out.print(line, soft_wrap=True)
    out.print()
    use = {
        "strategies": "upslope compare --strategies NAME,NAME",
        "datasets": "-s data.name=NAME",
        "models": "-s model.name=NAME, or one of your own: -s model.name=nets:make",
        "tasks": "-s task.name=NAME",
        "signals": "what a strategy of your own may ask for",
        "settings": "-s training.lr=0.02, or TrainingSettings(lr=0.02) in Python",
        "configs": "upslope compare NAME",
    }[table]
    out.print(Text("use       " + use, style="dim"))
    out.print(Text("in full   upslope list NAME: options, and where it comes from", style="dim"))
    others = ", ".join(name for name in TABLES if name != table)
    out.print(Text(f"others    upslope list WHAT: {others}", style="dim"))


def _show_entry(entry: Entry, kind: str) -> None:
    if "text" in entry:  # a configuration is its own description, and a file of its own
        out.print(Text.assemble("# ", (str(entry["name"]), "bold"), f"  {kind}"))
        out.print(Text(str(entry["text"])), soft_wrap=True)
        return
    out.print(Text.assemble((str(entry["name"]), "bold"), f"  {kind}"))
    for key, value in _with_evidence(entry, kind).items():
        if key in ("name", "options") or not value:
            continue
        label = "" if key == "summary" else f"{_KEYS.get(key, key)}: "
        out.print(Text(f"  {label}{value}"), soft_wrap=True)
    options = entry.get("options") or ()
    if not options:
        out.print(Text("  no options", style="dim"))
        return
    out.print(Text("  options, with their defaults", style="dim"))
    for option in options:
        _show_option(option)


def _with_evidence(entry: Entry, kind: str) -> Entry:
    """Return the entry of a strategy with what was measured of it; else its use is told as
    published.
    """
    if kind != _WORDS["strategies"] or entry["name"] == "random":
        return entry
    from upslope.config.evidence import EVIDENCE

    evidence = EVIDENCE.get(str(entry["name"]))
    if evidence is not None:
        return {**entry, "best_for": str(evidence)}
    return {
        "published for, not measured here" if key == "best_for" else key: value
        for key, value in entry.items()
    }


_KEYS = {"best_for": "best for", "reference": "source"}


def _show_option(option: Entry) -> None:
    out.print(
        Text.assemble(
            ("    " + str(option["name"]), "bold"), f"={_value(option['default'])}  ",
            (f"({option['type']})", "dim"),
        ),
        soft_wrap=True,
    )  # fmt: skip
    if option["help"]:
        out.print(Text(f"        {option['help']}"), soft_wrap=True)


def _value(value: Any) -> str:
    """Return a default as it is written on the command line."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
