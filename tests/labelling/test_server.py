"""The page's server: who is let in, what is recorded, what a request cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pictures import make_squares
from typer.testing import CliRunner

from upslope.cli import app
from upslope.errors import ConfigError
from upslope.labelling import training_process
from upslope.labelling.project import Project, read_project
from upslope.labelling.ranking import Ranking
from upslope.labelling.server import listen
from upslope.labelling.session import sample_key
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import CONTROL
from upslope.labelling.training_process import TrainingProcess

pytestmark = pytest.mark.slow


@pytest.fixture
def squares(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    colours = make_squares(tmp_path / "squares", 80)
    settings = ProjectSettings(str(tmp_path / "squares"), ("red", "blue"))
    Project.create(tmp_path / "project", settings).close()
    return tmp_path / "project", colours


def raw(server: Any, path: str, method: str = "GET", body: str = "", **headers: str) -> Any:
    """(status, headers, body) of a request as it stands, without cookies of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(
        method, path, body or None, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    response = connection.getresponse()
    answer = (response.status, dict(response.getheaders()), response.read())
    connection.close()
    return answer


def cookie(server: Any) -> str:
    _, headers, _ = raw(server, server.url.partition(str(server.port))[2])
    assert headers["set-cookie"].lower().count("httponly") == 1
    assert "samesite=strict" in headers["set-cookie"].lower()
    return str(headers["set-cookie"].partition(";")[0])


def test_the_process_that_trains_has_ended_when_the_server_has(
    squares: tuple[Path, dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """Or asyncio tells of it on the terminal, where Ctrl-C came as it started."""

    async def start_and_cancel() -> int | None:
        training = TrainingProcess(squares[0], lambda _: None)
        task = asyncio.create_task(training.run())
        while training._process is None:
            await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return training._process.returncode

    assert asyncio.run(start_and_cancel()) == -signal.SIGKILL
    time.sleep(0.1)  # the thread that waits for the process tells it now, if at all
    assert caplog.records == []


def test_a_trainer_that_is_killed_as_it_writes_a_ranking_is_told_and_started_again(
    squares: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line was read as JSON: training ended for good, and the page said nothing of it."""
    starts, torn, rankings = tmp_path / "starts", tmp_path / "torn", list[Ranking]()
    torn.write_text(json.dumps(Ranking(["a"], "margin").record())[:-20], encoding="ascii")
    trainer = tmp_path / "trainer"
    trainer.write_text(f"#!/bin/sh\necho >> {starts}\ncat {torn}\nkill -9 $$\n", encoding="ascii")
    trainer.chmod(0o755)
    monkeypatch.setattr(training_process.sys, "executable", str(trainer))
    monkeypatch.setattr(training_process, "_PAUSE", 0.0)

    training = TrainingProcess(squares[0], rankings.append)
    asyncio.run(training.run())
    assert rankings == []
    assert training.problem == "the process that trains ended with code -9"
    assert starts.read_text() == "\n" * 3  # the attempts that it has


@pytest.mark.parametrize("said", ["no JSON", "{}", "[1]", '"' + "x" * 5000 + '"'])
def test_what_a_trainer_says_and_nobody_can_read_is_told(
    squares: tuple[Path, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
) -> None:
    """A line beyond the limit, as of a ranking with a million copies, ended training untold."""
    trainer = tmp_path / "trainer"
    trainer.write_text(f"#!/bin/sh\necho '{said}'\nexec sleep 60\n", encoding="ascii")
    trainer.chmod(0o755)
    monkeypatch.setattr(training_process.sys, "executable", str(trainer))
    monkeypatch.setattr(training_process, "_PAUSE", 0.0)
    monkeypatch.setattr(training_process, "_LINE", 1000)
    training = TrainingProcess(squares[0], lambda _: None)
    asyncio.run(training.run())
    assert training.problem is not None
    assert "cannot be read" in training.problem


def test_a_trainer_that_cannot_be_started_is_told(
    squares: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training ended without a word, and the server with a traceback at Ctrl-C."""
    monkeypatch.setattr(training_process.sys, "executable", str(tmp_path / "gone"))
    monkeypatch.setattr(training_process, "_PAUSE", 0.0)
    training = TrainingProcess(squares[0], lambda _: None)
    asyncio.run(training.run())
    assert training.problem is not None
    assert "cannot be started" in training.problem
    assert "gone" in training.problem


def test_what_a_request_cannot_do(
    squares: tuple[Path, dict[str, str]], page_server: Callable[..., Any]
) -> None:
    server = page_server(squares[0])
    let_in = cookie(server)
    own = f"127.0.0.1:{server.port}"
    for path in ("/", "/page.js", "/api/status", "/image/0", "/?token=wrong"):
        assert raw(server, path)[0] == 403
    status, headers, body = raw(server, "/", Cookie=let_in)
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"http" not in body.replace(b"http-equiv", b"")  # no request leaves the machine
    assert raw(server, "/", Cookie=let_in, Host="evil.example")[0] == 421
    assert raw(server, "/", Cookie=let_in, Host=f"localhost:{server.port}")[0] == 200
    for path in ("/../../etc/passwd", "/image/..%2f..%2fetc%2fpasswd", "/page/index.html"):
        assert raw(server, path, Cookie=let_in)[0] == 404
    for path in ("/image/80", f"/image/{sample_key('gone.png')}"):
        assert raw(server, path, Cookie=let_in)[0] == 400
    # A form of another site can send text, and no JSON; and no cookie of this strictness.
    key = sample_key("square-000.png")
    sent = json.dumps({"sample": key, "label": "red"})
    for content in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""):
        status, _, _ = raw(
            server, "/api/answer", "POST", sent, Cookie=let_in, Content_Type=content, Host=own
        )
        assert status == 415
    for bad, what in (
        ("[]", "a JSON object"),
        ("{", "JSON"),
        ("[" * 60_000, "too deep"),
        ('{"sample": 0, "label": "red"}', "key of a sample"),
        ('{"sample": true, "label": "red"}', "key of a sample"),
        ('{"sample": "../x", "label": "red"}', "key of a sample"),
        ('{"sample": KEY, "label": "green"}', "'green'"),
        ('{"sample": KEY}', "`label`"),
        ('{"sample": KEY, "label": "red", "reason": "skip"}', "no other"),
        ('{"sample": KEY, "label": "red", "labels": ["red"]}', "no other"),
        ('{"sample": KEY, "reason": "tired"}', "skip, cannot tell"),
        ('{"sample": KEY, "label": "red", "seconds": "x"}', "`seconds`"),
        ('{"sample": KEY, "label": "red", "seconds": true}', "`seconds`"),
        ('{"sample": KEY, "label": "red", "seconds": NaN}', "`seconds`"),
        ('{"sample": KEY, "label": "red", "note": "\\ud800"}', "surrogates"),
        ('{"sample": KEY, "label": "red", "note": "' + "x" * 2001 + '"}', "2000 characters"),
        ('{"sample": KEY, "label": "' + "x" * 70_000 + '"}', "65,536 bytes"),
    ):
        bad = bad.replace("KEY", json.dumps(key))
        status, _, body = raw(
            server, "/api/answer", "POST", bad, Cookie=let_in, Content_Type="application/json"
        )
        assert (status, what in json.loads(body)["error"]) == (400, True), bad
    status, headers, body = raw(
        server, f"{server.url.partition(str(server.port))[2]}&name=import:+x"
    )
    assert (status, "set-cookie" in headers) == (400, False)
    assert b"does not begin with 'import: '" in body
    assert read_project(squares[0])[1].events == 0


@pytest.mark.long
def test_a_second_server_is_refused_by_name(
    squares: tuple[Path, dict[str, str]], page_server: Callable[..., Any]
) -> None:
    page_server(squares[0])
    arguments = ["label", "serve", str(squares[0]), "--no-browser"]
    done = CliRunner().invoke(app, arguments, prog_name="upslope")
    assert done.exit_code == 6
    assert "Expected to be alone" in done.stderr


@pytest.mark.long
def test_a_person_labels_the_model_learns_and_a_kill_loses_nothing(
    squares: tuple[Path, dict[str, str]], page_server: Callable[..., Any]
) -> None:
    project, colours = squares
    server = page_server(project)
    standing = server.get("/api/status")
    answered: dict[str, str] = {}
    markup = "<img src=x onerror=alert(1)>"

    def label() -> None:
        nonlocal standing
        question = standing["questions"][0]
        assert question["id"] not in answered
        assert "guess" not in json.dumps(question).replace("has_guess", "")
        answered[question["id"]] = colours[question["id"]]
        standing = server.post(
            "/api/answer",
            {
                "sample": question["sample"], "label": colours[question["id"]], "seconds": 0.5,
                "note": markup, "guess_shown": False,
            },
        )  # fmt: skip

    for _ in range(30):
        label()
    server.kill()
    settings, state = read_project(project)
    assert {i: settings.classes[a["tester"].label] for i, a in state.answers.items()} == answered  # type: ignore[index]
    assert all(a["tester"].note == markup for a in state.answers.values())

    server = page_server(project)
    standing = server.get("/api/status")
    deadline = time.monotonic() + 120
    while not (standing["model"]["accuracy"] and standing["model"]["labels"] >= 20):
        if time.monotonic() > deadline:
            raise AssertionError(standing["model"])
        time.sleep(0.2)
        standing = server.get("/api/status")
    accuracy = standing["model"]["accuracy"]
    assert accuracy["value"] == 1.0
    assert accuracy["method"] == "Wilson"
    assert 0.4 < accuracy["low"] < 1.0
    ranked = [q for q in standing["questions"][1:] if q["slice"] != CONTROL]
    assert all("margin chose it: rank" in q["why"] for q in ranked)
    assert server.get(f"/api/guess/{ranked[0]['sample']}")["classes"][0][0] in settings.classes
    while standing["questions"]:
        label()
    assert answered == colours
    slices = [a["tester"].slice for a in read_project(project)[1].answers.values()]
    assert 5 <= slices.count(CONTROL) <= 30


def test_a_host_that_is_none_is_told_with_its_option() -> None:
    """Another port does not mend it."""
    with pytest.raises(ConfigError, match=r"Expected to listen at no such host.*with --host\."):
        listen("no such host", None)
