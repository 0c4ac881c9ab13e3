"""A person at the page, in a real browser: keys, undo, skip, reload, a server that is killed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from upslope.labelling.project import Project, read_project
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import SKIP

pytestmark = pytest.mark.slow
PICTURES = os.environ.get("UPSLOPE_PAGE_PICTURES")
"""Where screenshots go; none are taken without it."""
WIDTHS = ((390, 844), (820, 1100), (1440, 900))


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


@pytest.fixture
def project(hands: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """The folder of a project in which the hands are given a digit each."""
    folder = tmp_path / "project"
    Project.create(folder, ProjectSettings(str(hands[0]), tuple("0123456789"))).close()
    return folder


def answers_in(folder: Path) -> dict[str, str]:
    settings, state = read_project(folder)
    return {
        id_: answer.reason or settings.classes[answer.label]  # type: ignore[index]
        for id_, by_author in state.answers.items()
        for answer in by_author.values()
    }


def test_thirty_labels_by_keys_with_undo_skip_reload_and_a_kill(
    hands: tuple[Path, dict[str, str]],
    project: Path,
    page_server: Callable[..., Any],
    browser: Any,
) -> None:
    _, digits = hands
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


def test_an_image_that_failed_while_the_server_was_away_is_shown_all_the_same(
    project: Path,
    page_server: Callable[..., Any],
    browser: Any,
) -> None:
    page = browser.new_page()
    failures: list[str] = []
    refused: list[str] = []

    def fail_twice(route: Any) -> None:
        if failures.count(route.request.url) < 2:
            failures.append(route.request.url)
            route.abort("connectionreset")
        else:
            route.continue_()

    page.on("response", lambda answer: answer.status >= 400 and refused.append(answer.url))
    page.route("**/image/**", fail_twice)
    page.goto(page_server(project).url)
    person = Person(page)
    shown = [person.shown(), person.press("1"), person.press("2")]
    assert set(answers_in(project)) == set(shown[:2])
    assert failures
    assert refused == []  # nor does the browser ask for an icon that there is not
    page.close()


def test_requests_whose_answer_is_lost_on_the_way_count_once(
    reviews: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    """The page sends them again: an undo took back one answer more with each time."""
    server = page_server(reviews)
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("#sample .text")
    lost: list[str] = []

    def lose_the_first(route: Any) -> None:
        path = route.request.url.rpartition("/")[2]
        if path in lost:
            route.continue_()
        else:
            route.fetch()  # the server takes it
            lost.append(path)
            route.abort("connectionreset")

    def press(key: str) -> str:
        before = page.inner_text("#file")
        page.keyboard.press(key)
        page.wait_for_function(
            "before => document.getElementById('file').textContent !== before", arg=before
        )
        return str(page.inner_text("#file"))

    page.route("**/api/answer", lose_the_first)
    page.route("**/api/undo", lose_the_first)
    one = page.inner_text("#file")
    two = press("Enter")
    three = press("Enter")
    assert set(answers(reviews)) == {one, two}
    assert press("ArrowLeft") == two
    assert lost == ["answer", "undo"]
    assert set(answers(reviews)) == {one}
    assert press("Enter") == three
    assert read_project(reviews)[1].events == 4  # three answers, one of them taken back
    page.close()


def test_a_guess_that_comes_late_is_not_shown_with_another_sample(
    reviews: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    server = page_server(reviews)
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("#sample .text")
    held: list[Any] = []
    page.route("**/api/guess/*", lambda route: held.append(route))
    before = page.inner_text("#file")
    with page.expect_request("**/api/guess/*"):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "before => document.getElementById('file').textContent !== before", arg=before
    )
    with page.expect_response("**/api/guess/*") as response:
        held[0].fulfill(json={"classes": [["slow", 0.9], ["praise", 0.1]], "nearest": None})
    response.value.finished()
    assert page.evaluate("() => new Promise(go => setTimeout(() => go(guessShown), 50))") is False
    assert page.is_hidden("#guess")
    page.close()


SIDES = {"phone.HEIC": (36, 60), "turned.jpg": (30, 48), "plain.tif": (40, 24)}
"""Width and height as people see them."""


def test_pictures_of_phones_are_seen_upright(
    tmp_path: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    """A HEIC picture and a JPEG that their EXIF data turn, and a TIFF, which no browser shows."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif (extra `label`)")
    pillow_heif.register_heif_opener()
    folder = tmp_path / "photos"
    folder.mkdir()
    quarter_turn = Image.Exif()
    quarter_turn[0x0112] = 6
    exif = quarter_turn.tobytes()  # as bytes, pillow-heif turns the picture too, as phones do
    for name, (width, height) in SIDES.items():
        upright = Image.new("RGB", (width, height), (220, 30, 30))
        upright.paste((20, 20, 200), (0, height // 2, width, height))  # blue below
        if name == "plain.tif":
            upright.save(folder / name)
        else:
            upright.rotate(90, expand=True).save(folder / name, exif=exif, quality=95)
    project = tmp_path / "project"
    Project.create(project, ProjectSettings(str(folder), ("red", "blue"), control=0.0)).close()
    page = browser.new_page()
    page.goto(page_server(project).url)
    person, seen = Person(page), {}
    current = person.shown()
    for turn in range(3):
        seen[current] = page.evaluate(
            "() => { const i = document.querySelector('#sample img');"
            " const c = document.createElement('canvas');"
            " const [w, h] = [c.width, c.height] = [i.naturalWidth, i.naturalHeight];"
            " const x = c.getContext('2d'); x.drawImage(i, 0, 0);"
            " const at = y => [...x.getImageData(w / 2, y, 1, 1).data].slice(0, 3);"
            " return [w, h, at(h / 4), at(3 * h / 4)]; }"
        )
        if turn < 2:
            current = person.press("1")
    page.close()
    assert {name: tuple(size[:2]) for name, size in seen.items()} == SIDES
    for _, _, above, below in seen.values():
        assert above[0] > 180 > 60 > above[2]
        assert below[2] > 160 > 60 > below[0]
    assert answers_in(project) == dict.fromkeys(list(seen)[:2], "red")


TEXTS = [
    "A slow film, and a beautiful one.",
    "<img src=x onerror=\"document.title='run'\"> & <b>bold</b>",
    "Two hours that I would like to have back; the music is the best of it.",
    "Warm, funny, and over too soon.",
]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A project of four texts with sets of labels, one of whose names looks like markup."""
    lines = [f'{i},"{text.replace(chr(34), chr(34) * 2)}"' for i, text in enumerate(TEXTS)]
    (tmp_path / "reviews.csv").write_text("\n".join(["id,text", *lines]) + "\n")
    settings = ProjectSettings(
        str(tmp_path / "reviews.csv"), ("praise", "slow", "<i>music</i>"), kind="labels"
    )
    Project.create(tmp_path / "reviews", settings).close()
    return tmp_path / "reviews"


def test_texts_with_sets_of_labels_notes_and_a_second_look(
    reviews: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    server = page_server(reviews)
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("#sample .text")
    seen: dict[str, str] = {}
    for turn in range(4):
        id_ = page.inner_text("#file")
        seen[id_] = page.inner_text("#sample .text")
        page.keyboard.press("1")
        page.keyboard.press("3")
        assert page.get_attribute("#classes button:nth-child(3)", "aria-pressed") == "true"
        page.keyboard.press("1")  # off again
        if turn == 0:
            page.keyboard.press("/")
            page.keyboard.type("123 a note")  # digits in a note are no labels
            page.keyboard.press("Enter")
        assert answers(reviews) == {key: [0, 0, 1] for key in list(seen)[:-1]}
        page.keyboard.press("Enter")
        page.wait_for_function(
            "before => document.getElementById('file').textContent !== before", arg=id_
        )
    assert seen == {str(i): text for i, text in enumerate(TEXTS)}  # as written, never as markup
    assert page.title() == "Label reviews"
    assert "<i>music</i>" in page.inner_text("#classes")
    assert "All samples are answered" in page.inner_text("#sample")
    assert answers(reviews) == {key: [0, 0, 1] for key in seen}
    first = next(iter(seen))
    assert read_project(reviews)[1].answers[first]["tester"].note == "123 a note"

    page.click("#history button:last-child")  # a second look at the first answer
    page.wait_for_selector("#keep:not([hidden])")
    assert page.inner_text("#file") == first
    assert page.input_value("#note") == "123 a note"
    page.keyboard.press("Escape")  # its answer is kept
    page.wait_for_selector("#keep", state="hidden")
    page.click("#history button:last-child")
    page.wait_for_selector("#keep:not([hidden])")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.wait_for_selector("#keep", state="hidden")
    assert answers(reviews) == {**{key: [0, 0, 1] for key in seen}, first: [0, 1, 1]}
    page.close()


def test_the_page_can_be_used_without_eyes_or_a_mouse(
    reviews: Path, page_server: Callable[..., Any], browser: Any
) -> None:
    server = page_server(reviews)
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector("#sample .text")
    for button in page.query_selector_all("button:visible"):
        assert button.inner_text().strip() or button.get_attribute("aria-label")
    names = []
    for _ in range(12):  # everything is reached by Tab
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent.trim()"))
    for wanted in ("praise", "Save these labels", "Skip", "Cannot tell", "Show the model's guess"):
        assert any(wanted in name for name in names), (wanted, names)
    page.focus("#classes button")
    page.keyboard.press("Space")
    assert page.get_attribute("#classes button", "aria-pressed") == "true"
    page.keyboard.press("Enter")  # on a button, Enter is the button's
    assert page.get_attribute("#classes button", "aria-pressed") == "false"
    page.focus("#save")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('said').textContent.includes('Labelled')")
    assert len(answers(reviews)) == 1
    page.close()


def answers(folder: Path) -> dict[str, Any]:
    """id -> label."""
    state = read_project(folder)[1]
    return {id_: one["tester"].label for id_, one in state.answers.items()}


@pytest.mark.skipif(PICTURES is None, reason="takes pictures where UPSLOPE_PAGE_PICTURES says")
def test_screenshots(
    hands: tuple[Path, dict[str, str]],
    reviews: Path,
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
    photograph(page, out, "hands")
    page.goto(page_server(reviews).url)
    page.wait_for_selector("#sample .text")
    page.keyboard.press("1")
    page.click("#details summary")
    photograph(page, out, "reviews")
    page.close()


def photograph(page: Any, out: Path, name: str) -> None:
    """Take pictures at three widths, light and dark."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width, height in WIDTHS:
            page.set_viewport_size({"width": width, "height": height})
            page.wait_for_timeout(300)
            picture = page.screenshot(full_page=width < 820)
            assert Image.open(io.BytesIO(picture)).width == width
            (out / f"{name}-{width}-{scheme}.png").write_bytes(picture)


def test_two_windows_of_one_person_do_not_replace_each_others_answers(
    project: Path,
    page_server: Callable[..., Any],
    browser: Any,
) -> None:
    url = page_server(project).url
    first, second = Person(browser.new_page()), Person(browser.new_page())
    for person in (first, second):
        person.page.goto(url)
    shown = first.shown()
    second.page.route("**/api/status", lambda _: None)  # what it shows stays
    assert second.shown() == shown
    first.press("1")
    second.page.keyboard.press("2")
    second.page.wait_for_selector("#problem:not([hidden])")
    assert f"{shown} was answered meanwhile, as '1'" in second.page.inner_text("#problem")
    assert answers_in(project) == {shown: "1"}
    for person in (first, second):
        person.page.close()
