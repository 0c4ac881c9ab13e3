"""Names that are HTML, Markdown, formulas or LaTeX end in reports as the text that they are."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from studies import made_up

from upslope.files import FORMULA, csv_text, safe_cell
from upslope.report import write
from upslope.report.summary import summarise
from upslope.report.text_tables import markdown_table
from upslope.reproduction.output.formats import to_csv
from upslope.reproduction.output.results import Row, Table, Value

NAMES = (
    '"><img src=x onerror=alert(1)>', "=cmd|' /C calc'!A0", "@SUM(1)", "+1+1", "a|b", "&amp;",
    "$x_1$ ^ {", "line\nbreak", "</svg><script>alert(1)</script>", "--><b>", "＝1+1",
)  # fmt: skip


class _Tags(HTMLParser):
    """Collects the tags, the handlers and the text of each kind of element."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.text: dict[str, str] = {}
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self._open.append(f"{tag} {dict(attrs).get('type', '')}".strip())

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text[self._open[-1]] = self.text.get(self._open[-1], "") + data

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()


ELEMENTS = {
    "html", "head", "meta", "title", "link", "style", "body", "main", "noscript", "p", "pre",
    "script",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_reports_show_names_as_text(tmp_path: Path, name: str) -> None:
    summary = summarise(made_up({"random": 0.0, name: 0.01}), reference=name)
    files = write(summary, tmp_path, title=name)
    parser = _Tags()
    parser.feed(files.page.read_text(encoding="utf-8"))
    assert set(parser.tags) == ELEMENTS
    assert parser.tags.count("script") == 2
    assert not parser.handlers
    assert parser.text["title"] == name
    stored = json.loads(parser.text["script application/json"])
    assert stored["title"] == name
    assert [one["name"] for one in stored["strategies"]] == [name, "random"]
    rows = list(csv.reader(io.StringIO(files.csv.read_text(encoding="utf-8"))))
    assert {row[0] for row in rows[1:]} == {"random", safe_cell(name)}
    assert not any(cell.startswith(("=", "@", "+", "＝")) for row in rows for cell in row)
    lines = files.markdown.read_text(encoding="utf-8").splitlines()
    marks = [line.replace(r"\|", "").count("|") for line in lines if line.startswith("|")]
    assert len(marks) == 4
    assert len(set(marks)) == 1
    assert "<img" not in files.markdown.read_text(encoding="utf-8")


def test_signs_and_links_of_markdown_stay() -> None:
    table = markdown_table(("[a](a.md)", "p"), [("*x*", "<0.001")])
    assert table.splitlines()[0] == "| [a](a.md) | p |"
    assert table.splitlines()[2] == "| *x* | <0.001 |"


@pytest.mark.parametrize(
    "cell", ["=1", "+a", "-a", "@a", "\ta", "\ra", "\na", "＝a", "＋", "－", "＠"]
)
def test_formulas_are_cells_of_text_in_every_table(cell: str) -> None:
    safe = cell if cell.startswith("a") else f"'{cell}"
    text = csv_text((cell, "n"), [(cell, -1.5), ("-1.5", "-2e-3")])
    assert list(csv.reader(io.StringIO(text, newline=""))) == [
        [safe, "n"], [safe, "-1.5"], ["-1.5", "-2e-3"],
    ]  # fmt: skip
    table = Table(cell, "", ("x",), (Row(cell, (Value(1.0),)),))
    cells = [c for row in csv.reader(io.StringIO(to_csv([table]), newline="")) for c in row]
    assert safe in cells
    assert not any(c.startswith(FORMULA) for c in cells)
