"""A real Label Studio, started by the test: rounds, a kill in the middle of a push, a mask."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import make_patterns
from studio import LABEL_STUDIO, Studio, choice
from typer.testing import CliRunner

from upslope.cli import app
from upslope.errors import RunError
from upslope.labelling.annotators.base import AnnotationTask
from upslope.labelling.annotators.label_studio import LabelStudioAnnotator
from upslope.labelling.annotators.label_studio_form import ID
from upslope.labelling.exchange import Exchange
from upslope.labelling.imports import import_labels
from upslope.labelling.outlines import read_outlines
from upslope.labelling.project import Project, read_project
from upslope.labelling.samples import open_samples, samples_of
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import CANNOT_TELL, SKIP

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def colours(here: Path) -> dict[str, str]:
    return make_patterns(here / "squares", 60)


@pytest.fixture(scope="module")
def studio(here: Path, colours: dict[str, str]) -> Iterator[Studio]:
    one = Studio(here / "project", here / "squares")
    yield one
    one.kill()


def label(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["label", *map(str, arguments)], prog_name="upslope")
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_three_rounds_from_init_to_export(
    here: Path, studio: Studio, colours: dict[str, str]
) -> None:
    project = here / "rounds"
    label("init", project, "--data", here / "squares", "--classes", "red,blue")
    tool = ["--tool", "label-studio", "--url", studio.access.url, "--token", studio.access.token]
    answered: dict[str, str] = {}
    annotator = studio.annotator("rounds", "class", ("red", "blue"))
    for turn in range(3):
        assert "8 tasks" in label("next", project, *tool, "--count", 8)
        waiting = [t for t in studio.tasks(annotator) if not t["annotations"]]
        assert len(waiting) == 8
        assert [t["data"]["rank"] for t in waiting] == list(range(1, 9))
        assert all(not t["predictions"] for t in waiting)
        for task in waiting:
            id_ = task["data"][ID]
            studio.answer(annotator, id_, choice(colours[id_]), lead_time=1.5 + turn)
            answered[id_] = colours[id_]
    assert "recorded 8 answers" in label("next", project, *tool, "--count", 0)
    assert "recorded 0 answers" in label("next", project, *tool, "--count", 0)
    settings, state = read_project(project)
    told = {i: a for i, b in state.answers.items() for a in b.values()}
    assert {i: settings.classes[a.label] for i, a in told.items()} == answered  # type: ignore[index]
    assert {a.author for a in told.values()} == {studio.access.user}
    assert Counter(a.seconds for a in told.values()) == {1.5: 8, 2.5: 8, 3.5: 8}
    assert "24 samples with a label" in label("export", project, here / "labels.csv")


def test_predictions_are_sent_where_they_are_asked_for(
    here: Path, studio: Studio, colours: dict[str, str]
) -> None:
    settings = ProjectSettings(str(here / "squares"), ("red", "blue"), control=0.0)
    with Project.create(here / "guesses", settings) as project:
        for id_ in list(colours)[:30]:
            project.answer(id_, colours[id_], author="me")
        annotator = studio.annotator("guesses", "class", settings.classes)
        samples = open_samples(settings.data, settings.classes)
        Exchange(project, samples, annotator, predictions=True).push(3)
    shown = [t["predictions"][0]["result"][0]["value"] for t in studio.tasks(annotator)]
    ids = [t["data"][ID] for t in studio.tasks(annotator)]
    assert shown == [{"choices": [colours[id_]]} for id_ in ids]


def test_images_are_read_by_the_server_itself_where_it_is_ours(
    here: Path, studio: Studio, colours: dict[str, str]
) -> None:
    settings = ProjectSettings(str(here / "squares"), ("red", "blue"))
    with Project.create(here / "local", settings) as project:
        annotator = studio.annotator("local", "class", settings.classes, here / "squares")
        Exchange(project, open_samples(settings.data, settings.classes), annotator).push(2)
    for task in studio.tasks(annotator):
        request = urllib.request.Request(
            studio.access.url + task["data"]["image"],
            headers={"Authorization": f"Token {studio.access.token}"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.read() == (here / "squares" / task["data"][ID]).read_bytes()


def test_an_export_of_the_server_comes_in_with_its_skips(
    here: Path, studio: Studio, colours: dict[str, str]
) -> None:
    settings = ProjectSettings(str(here / "squares"), ("red", "blue"))
    annotator = studio.annotator("skips", "class", settings.classes)
    with Project.create(here / "skips", settings) as project:
        exchange = Exchange(project, samples_of(settings), annotator)
        exchange.push(4)
        ids = [task["data"][ID] for task in studio.tasks(annotator)]
        studio.answer(annotator, ids[0], choice(colours[ids[0]]))
        studio.answer(annotator, ids[1], [], was_cancelled=True)
        studio.answer(annotator, ids[2], [{**choice(CANNOT_TELL)[0], "from_name": "passed"}])
        assert exchange.pull().new == 3
        pulled = answers_of(project)
    path = f"/api/projects/{annotator.project}/export?exportType=JSON&download_all_tasks=true"
    (here / "skips.json").write_text(json.dumps(studio.call("GET", path)))
    with Project.create(here / "again", settings) as project:
        count = import_labels(project, here / "skips.json")
        assert (count.new, count.passed, count.empty) == (1, 2, 1)
        assert answers_of(project) == pulled
    assert pulled == {ids[0]: colours[ids[0]], ids[1]: SKIP, ids[2]: CANNOT_TELL}


def answers_of(project: Project) -> dict[str, str]:
    classes = project.settings.classes
    return {
        id_: answer.reason or classes[answer.label]  # type: ignore[index]
        for id_, by_author in project.state.answers.items()
        for answer in by_author.values()
    }


def test_a_mask_drawn_there_arrives_pixel_for_pixel(here: Path, studio: Studio) -> None:
    settings = ProjectSettings(str(here / "squares"), ("car", "tree"), kind="masks")
    rng = np.random.default_rng(2)
    masks = {"car": rng.random((24, 24)) < 0.4, "tree": rng.random((24, 24)) < 0.1}
    np.savez(here / "masks.npz", **masks)
    script = (
        "import sys, json, numpy as np\n"
        "from label_studio_sdk.converter.brush import mask2rle\n"
        "masks = np.load(sys.argv[1])\n"
        "print(json.dumps({n: [int(b) for b in mask2rle((masks[n] * 255).astype(np.uint8))]"
        " for n in masks}))\n"
    )
    done = subprocess.run(
        [str(LABEL_STUDIO / "bin" / "python"), "-c", script, str(here / "masks.npz")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    codes = json.loads(done.stdout.splitlines()[-1])
    with Project.create(here / "drawn", settings) as project:
        annotator = studio.annotator("drawn", "masks", settings.classes)
        exchange = Exchange(project, open_samples(settings.data, settings.classes), annotator)
        exchange.push(3)
        id_ = next(iter(annotator.pushed()))
        result = [
            {
                "from_name": "label", "to_name": "sample", "type": "brushlabels",
                "original_width": 24, "original_height": 24,
                "value": {"format": "rle", "rle": codes[name], "brushlabels": [name]},
            }
            for name in masks
        ]  # fmt: skip
        studio.answer(annotator, id_, result, lead_time=9.0)
        assert exchange.pull().new == 1
        ((answer,),) = (b.values() for b in project.state.answers.values())
        drawn = read_outlines(str(answer.label), "masks", settings.classes).masks
        assert drawn is not None
        for name, mask in masks.items():
            np.testing.assert_array_equal(drawn[name], mask)


def test_a_server_killed_in_the_middle_of_a_push_loses_and_doubles_nothing(
    here: Path, studio: Studio
) -> None:
    annotator = studio.annotator("killed", "class", ("red", "blue"))
    tasks = [
        AnnotationTask(f"s{i:04d}", i, "why", "image", image=bytes(4000), media_type="image/png")
        for i in range(600)
    ]
    annotator.push(tasks[:1])
    problems: list[Exception] = []

    def push() -> None:
        try:
            annotator.push(tasks)
        except RunError as error:
            problems.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not 100 < count(studio, annotator) < 550:
        time.sleep(0.02)
    studio.kill()
    thread.join()
    assert problems, "the push was over before the kill"
    studio.start()
    there = [t["data"][ID] for t in studio.tasks(annotator)]
    assert 1 < len(there) < 600
    again = studio.annotator("killed", "class", ("red", "blue"))
    again.push(tasks)
    assert sorted(t["data"][ID] for t in studio.tasks(again)) == [task.id for task in tasks]


def test_tasks_that_came_twice_lose_the_one_without_an_answer(studio: Studio) -> None:
    annotator = studio.annotator("doubles", "class", ("red", "blue"))
    one, two = (
        AnnotationTask(name, 1, "why", "image", image=b"x", media_type="image/png")
        for name in ("one", "two")
    )
    annotator.push([one])
    path = f"/api/projects/{annotator.project}/import"
    studio.call("POST", path, [annotator._body(one)])  # as a repeated request would
    last = studio.tasks(annotator)[-1]
    studio.call("POST", f"/api/tasks/{last['id']}/annotations", {"result": choice("red")})
    annotator.push([two])
    assert [t["data"][ID] for t in studio.tasks(annotator)] == ["one", "two"]
    assert [a.answer for a in annotator.pull()] == ["red"]


def count(studio: Studio, annotator: LabelStudioAnnotator) -> int:
    body: Any = studio.call("GET", f"/api/projects/{annotator.project}")
    return int(body["task_number"])


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    one = LabelStudioAnnotator("http://127.0.0.1:9", "t", "x", "class", "image", ("a", "b"))
    with pytest.raises(RunError, match="Start it"):
        one.pushed()
