"""Counts the files, import levels and imports of a room, and names its circles.

    python tools/import_graph.py                        # gradnorm and reproduction, with limits
    python tools/import_graph.py gradnorm --list        # each file with its level and imports
    python tools/import_graph.py gradnorm --source ../earlier/src/upslope

A room is a folder of the package; of its files, those of a docstring alone are not counted. An
arrow goes from a file to a file of the same room that it imports, wherever in the file the import
stands, but for imports that only type checkers read. A file's level is one above the highest level
that it imports. `make check` runs this: circles, and more files, levels or arrows than `MOST`
states, end it with exit status 1.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "upslope"

MOST = {"gradnorm": (134, 23, 558), "reproduction": (34, 11, 113)}
"""Room -> the most files, levels and arrows that it may have."""


def imports_of(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, from modules of the package."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _read_at_run_time(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _read_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a tree's nodes, but for the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _read_at_run_time(child)


def _is_description(path: Path) -> bool:
    """Whether a file holds nothing but a docstring, or nothing at all."""
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) for s in statements)


def graph_of(room: Path) -> dict[str, set[str]]:
    """Return module -> the modules of the same room that it imports."""
    package = room.parent
    files = {
        f"upslope.{'.'.join(p.relative_to(package).with_suffix('').parts)}".removesuffix(
            ".__init__"
        ): p
        for p in sorted(room.rglob("*.py"))
        if not _is_description(p)
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        for name in imports_of(path):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target != module:
                graph[module].add(target)
    return graph


def levels_of(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return module -> its level, 1 for those that import nothing of the room.

    Raises:
        ValueError: there is a circle; the message has its modules.
    """
    levels: dict[str, int] = {}

    def visit(module: str, above: tuple[str, ...]) -> int:
        if module in above:
            raise ValueError(" -> ".join((*above[above.index(module) :], module)))
        if module not in levels:
            below = (visit(target, (*above, module)) for target in sorted(graph[module]))
            levels[module] = 1 + max(below, default=0)
        return levels[module]

    for module in graph:
        visit(module, ())
    return levels


def main() -> int:
    """Print a line for each room; return 1 where a limit is passed or there is a circle."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rooms", nargs="*", default=list(MOST))
    parser.add_argument("--list", action="store_true", help="each file, with what it imports")
    parser.add_argument("--source", type=Path, default=SOURCE, help="another checkout's package")
    arguments = parser.parse_args()
    status = 0
    for room in arguments.rooms:
        graph = graph_of(arguments.source / room)
        try:
            levels = levels_of(graph)
        except ValueError as error:
            print(f"{room:13} a circle: {error}   <--")
            status = 1
            continue
        counts = (len(graph), max(levels.values()), sum(map(len, graph.values())))
        most = MOST.get(room, counts)
        bad = any(count > limit for count, limit in zip(counts, most, strict=True))
        status |= int(bad)
        print(
            f"{room:13} {counts[0]} files on {counts[1]} levels with {counts[2]} arrows   "
            f"at most {most[0]}, {most[1]}, {most[2]}{'   <--' if bad else ''}"
        )
        if arguments.list:
            for module in sorted(graph, key=lambda name: (levels[name], name)):
                short = [t.removeprefix(f"upslope.{room}.") for t in sorted(graph[module])]
                print(f"{levels[module]:4} {module.removeprefix('upslope.')}: {', '.join(short)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
