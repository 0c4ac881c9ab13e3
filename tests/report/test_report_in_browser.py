"""The page in a real browser, at three widths, light and dark: whole, quiet, and usable."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies import made_up

from upslope.report import Costs, Run, summarise, summarise_sets
from upslope.report.document import document
from upslope.report.page import page

pytestmark = pytest.mark.slow
PICTURES = os.environ.get("UPSLOPE_PAGE_PICTURES")
"""Where screenshots go; none are taken without it."""
WIDTHS = (390, 768, 1440)
NAMES = {
    "random": 0.0, "margin": 0.01, '<img src=x onerror="alert(1)">': 0.015, "__proto__": -0.01,
    "constructor": 0.005, "a-strategy-with-a-very-long-name-indeed": 0.02,
    **{f"strategy-{i}": 0.001 * i for i in range(14)},
}  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty strategies on ten sets, hostile and long names among them, one run unfinished."""
    studies = [replace(made_up(NAMES, seeds=4), name=f"set </script> {i}") for i in range(10)]
    half = Run("margin", 9, studies[0].budgets[:3], (0.8, 0.81, 0.82), 7)
    studies[0] = replace(studies[0], runs=(*studies[0].runs, half))
    path = tmp_path_factory.mktemp("page") / "report.html"
    summaries = summarise_sets(studies)
    path.write_text(page(document(summaries, "A <b>title</b>", Costs(), [None] * 10)), "utf-8")
    return path


class Opened:
    """A page, and what it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str = "light") -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(path.as_uri())
        self.tab.wait_for_selector(".chart")
        self.tab.wait_for_timeout(200)  # boxes are measured, and drawn, once they are laid out


CUT_OFF = """() => [...document.querySelectorAll('main *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 1 || box.left < -1) && !one.closest('thead');
}).map(one => one.tagName + ' ' + one.textContent.slice(0, 40))"""
LETTERS_OUTSIDE = """() => [...document.querySelectorAll('.chart text')].filter(one => {
  const box = one.getBoundingClientRect(), all = one.ownerSVGElement.getBoundingClientRect();
  return box.width > 0 && (box.right > all.right + 2 || box.left < all.left - 2
    || box.top < all.top - 2 || box.bottom > all.bottom + 2);
}).map(one => one.textContent)"""
SMALLEST_LETTERS = """() => Math.min(...[...document.querySelectorAll('.chart text')].map(one => {
  const all = one.ownerSVGElement;
  return parseFloat(getComputedStyle(one).fontSize)
    * all.getBoundingClientRect().width / all.viewBox.baseVal.width;
}))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off_and_nothing_is_asked_for(
    browser: Any, many: Path, width: int, scheme: str
) -> None:
    opened = Opened(browser, many, width, scheme)
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [many.as_uri()]
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.tab.evaluate(CUT_OFF) == []
    assert opened.tab.evaluate(LETTERS_OUTSIDE) == []
    assert opened.tab.evaluate(SMALLEST_LETTERS) >= 11
    if PICTURES:
        opened.tab.screenshot(path=f"{PICTURES}/report-{scheme}-{width}.png", full_page=True)
    opened.tab.close()


def test_names_from_runs_are_text(browser: Any, many: Path) -> None:
    opened = Opened(browser, many, 1440)
    assert opened.tab.inner_text("h1") == "A <b>title</b>"
    assert opened.tab.locator("main img, main b, main script").count() == 0
    assert opened.tab.get_by_role("button", name='<img src=x onerror="alert(1)">').count() == 1
    opened.tab.close()


def test_curves_are_switched_read_and_filtered_by_set(browser: Any, many: Path) -> None:
    tab = (opened := Opened(browser, many, 1440)).tab
    lines = tab.locator(".with-readout path.line")
    assert lines.count() == 7  # of twenty, the best six and the reference
    tab.get_by_role("button", name="all", exact=True).click()
    assert lines.count() == 20
    tab.get_by_role("button", name="best four").click()
    assert lines.count() == 5
    tab.locator(".names button", has_text="random").click()
    assert lines.count() == 4
    assert tab.locator("path.band").count() == 4
    tab.get_by_role("button", name="Bands").click()
    assert tab.locator("path.band").count() == 0
    chart = tab.locator(".with-readout .chart")
    chart.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".readout .head").inner_text() == "180 labels"
    tab.keyboard.press("ArrowRight")
    assert tab.locator(".readout .head").inner_text() == "270 labels"
    box = chart.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2)
    assert tab.locator(".readout .head").inner_text() == "630 labels"
    tab.get_by_role("button", name="Difference to random").click()
    assert "Difference to random (points)" in tab.locator(".with-readout .axis").all_text_contents()
    tab.locator(".bar-of-sets select").select_option("set </script> 3")
    assert tab.locator(".lead").inner_text().startswith("set </script> 3: 20 strategies")
    assert opened.said == []
    tab.close()


def test_names_of_usual_length_are_whole_on_a_telephone(browser: Any, tmp_path: Path) -> None:
    study = made_up({"random": 0.0, "margin": 0.01, "entropy-gradnorm": 0.011, "egl": 0.01})
    path = tmp_path / "report.html"
    path.write_text(page(document([summarise(study)], "Names", Costs(), [None])), "utf-8")
    opened = Opened(browser, path, 390)
    texts = opened.tab.evaluate(
        "() => [...document.querySelectorAll('.chart text')].map(one => one.textContent)"
    )
    assert [text for text in texts if "…" in text] == []
    assert opened.tab.evaluate(LETTERS_OUTSIDE) == []
    # No mark is drawn over a name.
    assert opened.tab.evaluate(
        """() => [...document.querySelectorAll('.chart text.name')].every(name =>
          [...name.ownerSVGElement.querySelectorAll('.dot')].every(dot =>
            dot.compareDocumentPosition(name) & Node.DOCUMENT_POSITION_FOLLOWING))"""
    )


def test_hours_and_money_follow_what_is_typed(browser: Any, tmp_path: Path) -> None:
    runs = tuple(
        Run(name, seed, (20, 60, 100), tuple(x + seed / 64 for x in (0.25, *rest)), 3)
        for seed in range(3)
        for name, rest in {"random": (0.5, 0.75), "fast": (0.75, 0.875)}.items()
    )
    study = replace(made_up({"random": 0.0}), runs=runs)
    path = tmp_path / "report.html"
    costs = Costs(seconds_per_label=90, wage=30, currency="EUR")
    path.write_text(page(document([summarise(study)], "T", costs, [None])), "utf-8")
    tab = Opened(browser, path, 1440).tab
    # 40 of 100 labels less, of 90 seconds each: an hour.
    row = tab.locator("tr", has=tab.locator("td[data-label='money saved']"))
    assert row.locator("td").all_inner_texts()[-3:] == ["40 (40%)", "1.00", "30.00 EUR"]
    tab.locator("input[type=number]").first.fill("180")
    assert row.locator("td").all_inner_texts()[-2:] == ["2.00", "60.00 EUR"]
    tab.close()


def test_no_probability_is_told_as_none_or_certain(browser: Any, tmp_path: Path) -> None:
    """A chance of 0.9994 of lying within a point stood there as 100%."""
    study = made_up({"random": 0.0, "far": 0.05, "alike": 0.0}, seeds=8)
    path = tmp_path / "report.html"
    path.write_text(page(document([summarise(study)], "T", Costs(), [None])), "utf-8")
    tab = Opened(browser, path, 1440).tab
    cells = tab.locator("td[data-label='chance within 1 point']").all_inner_texts()
    assert cells == ["<1%", ">99%"]
    tab.close()
