"""The page in a real browser: what is in sight, what is told, and keys that are no answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import make_squares

from upslope.labelling.project import Project, read_project
from upslope.labelling.settings import AnswerKind, ProjectSettings

pytestmark = pytest.mark.slow
SIZES = ((1440, 900), (1280, 800), (1366, 650), (1280, 500), (820, 1100), (390, 844), (320, 568))
FEW, LONG = ("cat", "dog"), tuple(f"{i} {'averylongword' * 4} and more" for i in range(12))
PLACES = """() => {
  const at = id => { const r = document.getElementById(id).getBoundingClientRect();
    return [r.top, r.bottom]; };
  const parts = ["stage", "filter-row", "classes", "save", "actions", "note-row"];
  const { scrollWidth, scrollHeight } = document.documentElement;
  return {
    parts: parts.map(at).filter(([top, bottom]) => bottom > top),
    about: at("about"), beyond: scrollWidth - innerWidth, screens: scrollHeight / innerHeight,
  };
}"""


@pytest.mark.parametrize(
    ("classes", "kind"),
    [
        (FEW, "class"),
        (LONG, "class"),
        (tuple(f"species {i}" for i in range(200)), "labels"),
    ],
)
def test_nothing_lies_over_another_part_nor_far_away(
    tmp_path: Path,
    page_server: Callable[..., Any],
    browser: Any,
    classes: tuple[str, ...],
    kind: AnswerKind,
) -> None:
    make_squares(tmp_path / "squares", 6)
    settings = ProjectSettings(str(tmp_path / "squares"), classes, kind)
    Project.create(tmp_path / "project", settings).close()
    page = browser.new_page()
    page.goto(page_server(tmp_path / "project").url)
    page.wait_for_selector("#sample img")
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        places = page.evaluate(PLACES)
        edges = [edge for part in places["parts"] for edge in part]
        assert edges == sorted(edges), (width, height)  # one below the other
        assert places["beyond"] <= 0, (width, height)
        if width <= 820:
            assert places["about"][0] >= edges[-1], (width, height)
        if kind == "labels":  # the button that saves is in reach, as is what is below it
            assert places["screens"] <= 2, (width, height)
    page.close()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A project of four texts that are longer than a screen."""
    lines = [f"{i},{i} {'word ' * 3000}" for i in range(4)]
    (tmp_path / "texts.csv").write_text("\n".join(["id,text", *lines]) + "\n")
    settings = ProjectSettings(str(tmp_path / "texts.csv"), ("good", "bad"))
    Project.create(tmp_path / "project", settings).close()
    return tmp_path / "project"


def test_arrows_in_a_long_text_move_it(
    texts: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    """By the keyboard alone, they were taken for "cannot tell", and the text could not be read."""
    page = browser.new_page()
    page.goto(page_server(texts).url)
    page.wait_for_selector("#sample .text")
    page.focus("#sample .text")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => document.querySelector('#sample .text').scrollTop > 0")
    assert read_project(texts)[1].events == 0
    page.evaluate("() => document.activeElement.blur()")
    before = page.inner_text("#file")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(
        "before => document.getElementById('file').textContent !== before", arg=before
    )
    assert list(read_project(texts)[1].answers) == [before]
    page.close()


def test_keys_that_put_letters_together_are_no_answers(
    texts: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    """As of Japanese: Enter takes the letters, and left the note while they were chosen."""
    page = browser.new_page()
    page.goto(page_server(texts).url)
    page.wait_for_selector("#sample .text")
    page.focus("#note")
    press = "composing => document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: "
    press += "'Enter', isComposing: composing, bubbles: true, cancelable: true}))"
    page.evaluate(press, True)
    assert page.evaluate("() => document.activeElement.id") == "note"
    page.evaluate(press, False)
    assert page.evaluate("() => document.activeElement.id") != "note"
    page.close()


def test_what_failed_is_told_until_it_has_come_through(
    texts: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    """A full disk was told for four seconds at most, and a page that met one first was dead."""
    page = browser.new_page()
    refusals = dict.fromkeys(("project", "status", "answer"), 1)

    def refuse_once(route: Any) -> None:
        path = route.request.url.rpartition("/")[2]
        if refusals.get(path):
            refusals[path] -= 1
            route.fulfill(status=500, json={"error": f"no room for {path}"})
        else:
            route.continue_()

    page.route("**/api/*", refuse_once)
    page.goto(page_server(texts).url)
    for path in ("project", "status"):
        page.wait_for_function(f"() => $('problem').textContent === 'no room for {path}'")
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#sample .text")
    assert page.is_hidden("#problem")
    page.keyboard.press("1")
    page.wait_for_selector("#problem:not([hidden])")
    with page.expect_response("**/api/status") as response:
        response.value.finished()
    page.wait_for_timeout(100)
    assert page.inner_text("#problem") == "no room for answer"
    page.keyboard.press("1")
    page.wait_for_selector("#problem", state="hidden")
    assert read_project(texts)[1].tally.labelled == 1
    page.close()


def test_texts_are_written_in_their_own_direction(
    tmp_path: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    (tmp_path / "texts.csv").write_text("id,text\n1,אבג (דה) 12.\n2,אבג (דה) 12.\n", "utf-8")
    settings = ProjectSettings(str(tmp_path / "texts.csv"), ("טוב!", "bad"))
    Project.create(tmp_path / "project", settings).close()
    page = browser.new_page()
    page.goto(page_server(tmp_path / "project").url)
    page.wait_for_selector("#sample .text")
    ends = """selector => { const node = document.querySelector(selector).firstChild;
      return [0, node.length - 1].map(i => { const range = new Range();
        range.setStart(node, i); range.setEnd(node, i + 1);
        return range.getBoundingClientRect().left; }); }"""
    for selector in ("#sample .text", "#classes button span"):
        begin, end = page.evaluate(ends, selector)
        assert begin > end, selector
    page.close()
