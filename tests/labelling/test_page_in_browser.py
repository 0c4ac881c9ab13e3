"""A person at the page, in a real browser: keys, undo, skip, reload, a server that is killed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from upslope.labelling.project import Project, read_project
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import SKIP

pytestmark = pytest.mark.slow
PICTURES = os.environ.get("UPSLOPE_PAGE_PICTURES")
"""Where screenshots go; none are taken without it."""
WIDTHS = ((390, 844), (820, 1100), (1440, 900))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


class Person:
    """Looks at the page, and answers by keys."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.asked: list[str] = []

    def shown(self) -> str:
        """Id of the sample that is shown, once its image is there."""
        self.page.wait_for_function(
            "() => { const i = document.querySelector('#sample img');"
            " return i && i.complete && i.naturalWidth > 0; }"
        )
        return str(self.page.inner_text("#file"))

    def press(self, key: str) -> str:
        """Press a key, wait for the next sample and return its id."""
        before = self.page.inner_text("#file")
        self.page.keyboard.press(key)
        self.page.wait_for_function(
            "before => document.getElementById('file').textContent !== before", arg=before
        )
        return self.shown()


def answers_in(folder: Path) -> dict[str, str]:
    settings, state = read_project(folder)
    return {
        id_: answer.reason or settings.classes[answer.label]  # type: ignore[index]
        for id_, by_author in state.answers.items()
        for answer in by_author.values()
    }


def test_thirty_labels_by_keys_with_undo_skip_reload_and_a_kill(
    hands: tuple[Path, dict[str, str]],
    tmp_path: Path,
    page_server: Callable[..., Any],
    browser: Any,
) -> None:
    folder, digits = hands
    project = tmp_path / "project"
    Project.create(project, ProjectSettings(str(folder), tuple("0123456789"))).close()
    server = page_server(project)
    page = browser.new_page()
    page.goto(server.url)
    assert "token" not in page.url
    person = Person(page)
    answered: dict[str, str] = {}
    current = person.shown()

    def label(count: int) -> None:
        nonlocal current
        for _ in range(count):
            assert current not in answered, "asked twice"
            before, answered[current] = current, digits[current]
            current = person.press(digits[before])
            assert answers_in(project) == answered  # on the disk before the next image shows

    label(10)

    skipped = current
    current = person.press("ArrowRight")
    answered[skipped] = SKIP
    label(5)

    wrong = current  # a slip of the finger, taken back
    person.press("0" if digits[wrong] != "0" else "1")
    current = person.press("ArrowLeft")
    assert current == wrong
    assert answers_in(project) == answered
    label(5)

    page.reload()
    assert person.shown() == current  # what was shown stays
    label(3)

    server.kill()
    lost = current
    page.keyboard.press(digits[lost])
    page.wait_for_selector("#problem:not([hidden])")
    assert "does not answer" in page.inner_text("#problem")
    answered[lost] = digits[lost]
    page_server(project, port=server.port)
    page.wait_for_selector("#problem", state="hidden")  # the answer was sent again
    page.wait_for_function(
        "before => document.getElementById('file').textContent !== before", arg=lost
    )
    current = person.shown()
    label(6)
    assert answers_in(project) == answered
    assert len(answered) == 31
    page.close()


@pytest.mark.skipif(PICTURES is None, reason="takes pictures where UPSLOPE_PAGE_PICTURES says")
def test_screenshots(
    hands: tuple[Path, dict[str, str]],
    tmp_path: Path,
    page_server: Callable[..., Any],
    browser: Any,
) -> None:
    folder, digits = hands
    project = tmp_path / "hands"
    Project.create(project, ProjectSettings(str(folder), tuple("0123456789"))).close()
    server = page_server(project)
    out = Path(str(PICTURES))
    out.mkdir(parents=True, exist_ok=True)
    page = browser.new_page()
    page.goto(server.url)
    person = Person(page)
    current = person.shown()
    page.wait_for_function("() => standing.model.ready", timeout=60_000)
    for _ in range(45):
        current = person.press(digits[current])
    page.wait_for_function("() => standing.model.accuracy", timeout=60_000)
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("#guess:not([hidden])")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width, height in WIDTHS:
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(300)
            page.screenshot(path=out / f"hands-{width}-{scheme}.png", full_page=width < 820)
    page.close()
