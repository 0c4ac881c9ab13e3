from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from studies import BUDGETS, made_up

from upslope.report import Run, Summary, summarise, write
from upslope.report.page import page
from upslope.report.tables import as_csv, as_json, cells, header, markdown


@pytest.fixture
def summary() -> Summary:
    study = made_up({"random": 0, "margin": 0.03, "egl": 0.0})
    half = Run("egl", 9, BUDGETS[:3], (0.8, 0.81, 0.82), 7)
    config = {"data": {"name": "digits <b>"}, "experiment": {"initial": 0.1}}
    return summarise(replace(study, runs=(*study.runs, half), config=config))


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.links.append(value)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_everything_is_written(summary: Summary, tmp_path: Path) -> None:
    files = write(summary, tmp_path / "report", "Digits")
    with Image.open(files.png) as picture:
        assert picture.size[0] > 1000
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 50
    assert "<svg" in files.svg.read_text()
    assert files.page.stat().st_size < 500_000


def test_pictures_are_the_same_bytes_each_time(summary: Summary, tmp_path: Path) -> None:
    one, two = write(summary, tmp_path / "1"), write(summary, tmp_path / "2")
    assert one.svg.read_bytes() == two.svg.read_bytes()
    assert one.page.read_bytes() == two.page.read_bytes()


def test_the_page_is_whole_and_asks_the_network_for_nothing(summary: Summary) -> None:
    html = page(summary, "Digits & co")
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert parser.links == []
    assert "<script" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert "Digits &amp; co" in html
    assert "digits &lt;b&gt;" in html
    for name in ("random", "margin", "egl", "all labels: 97.0%"):
        assert name in html


def test_the_page_says_what_the_tests_say(summary: Summary) -> None:
    html = page(summary)
    assert re.search(r"margin</strong> <span class=\"verdict-better\">better</span>", html)
    assert "egl</strong> not shown to differ from random" in html
    assert "cannot fall below 0.062" in html
    assert "5 seeds are few" in html
    assert "Not counted: egl seed 9, at 3 of 7 cycles" in html


def test_ids_are_unique_across_the_two_pictures(summary: Summary) -> None:
    html = page(summary)
    clips = re.findall(r'<clipPath id="([^"]+)"', html)
    assert len(clips) == len(set(clips))


def test_table_has_a_cell_for_each_column(summary: Summary) -> None:
    for row in summary.rows:
        assert len(cells(summary, row)) == len(header(summary))
    lines = markdown(summary).splitlines()
    assert lines[2].startswith("| random | ")
    assert {line.count("|") for line in lines[:5]} == {len(header(summary)) + 1}


def test_csv_and_json_hold_the_figures_in_full(summary: Summary) -> None:
    rows = list(csv.DictReader(as_csv(summary).splitlines()))
    assert len(rows) == 3 * len(BUDGETS)
    assert float(rows[0]["mean"]) == float(summary.rows[0].curve.mean[0])
    document = json.loads(as_json(summary))
    assert document["strategies"][1]["against_reference"]["verdict"] == "better"
    assert document["incomplete"] == [{"strategy": "egl", "seed": 9, "done": 3, "cycles": 7}]
    assert document["full_data"] == pytest.approx(0.97)


def test_one_seed_without_reference_still_reports(tmp_path: Path) -> None:
    summary = summarise(made_up({"margin": 0.0}, seeds=1))
    files = write(summary, tmp_path)
    assert "One seed" in files.page.read_text()
    assert json.loads(files.json.read_text())["strategies"][0]["low"][0] is None


def test_many_strategies_keep_their_names_apart(tmp_path: Path) -> None:
    summary = summarise(made_up({"random": 0.0, **{f"strategy-{i}": 0.0 for i in range(24)}}, 2))
    svg = write(summary, tmp_path).svg.read_text()
    places = [
        float(y)
        for y in re.findall(
            r"translate\([\d.]+ ([\d.]+)\)[^>]*>(?:<tspan[^>]*>)?(?:strategy-\d+|random)<", svg
        )
    ] or [
        float(y)
        for y in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>(?:strategy-\d+|random)</text>', svg)
    ]
    assert len(places) == 25
    gaps = [b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)]
    assert min(gaps) > 6
