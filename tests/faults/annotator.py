"""A person who labels on the page of `upslope label`, by the requests that a browser sends.

The person is a thread of the server's own process, so that a kill ends both at once, with a request
on its way. Every answer that the server has taken is noted in the command's output first.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

from upslope.errors import UpslopeError
from upslope.labelling import training_process
from upslope.labelling.project import TOKEN, names_of, read_project

PROJECT = "project"
CLASSES = ("even", "odd")
_TAKEN = re.compile(r"^taken (\d+)$", re.MULTILINE)
_ROWS = 40
_PATIENCE = 60.0  # seconds for the server to listen


def write_rows(path: Path) -> None:
    """Write the table whose rows are labelled."""
    rows = [f"{i},{i * i % 7},row {i}" for i in range(_ROWS)]
    path.write_text("\n".join(["a,b,text", *rows]) + "\n", encoding="utf-8")


def begin(folder: Path) -> None:
    """Answer every question of the project of a folder that this process is about to serve."""
    _without_model()
    threading.Thread(target=_answer_all, args=(folder / PROJECT,), daemon=True).start()


def _without_model() -> None:
    """Serve without the process that trains, which takes seconds to start and writes nothing."""

    async def wait(_: training_process.TrainingProcess) -> None:
        import asyncio

        await asyncio.Event().wait()

    training_process.TrainingProcess.run = wait  # type: ignore[method-assign]


def lost_answers(folder: Path, output: str) -> str:
    """Say which answers that the server has taken are not in the project; "" where all are."""
    taken = {int(number) for number in _TAKEN.findall(output)}
    if not taken:
        return ""
    try:
        there = answers(folder / PROJECT)
    except UpslopeError as error:
        return f"{len(taken)} answers were taken, and the project cannot be read: {error}"
    gone = sorted(taken - {int(re.sub(r"\D", "", id_)) for id_ in there})
    return f"the answers of {gone} were taken and are gone" if gone else ""


def answers(project: Path) -> dict[str, str]:
    """Return the label of every sample that has one."""
    settings, state = read_project(project)
    return {
        id_: names_of(answer.label, settings.classes)
        for id_, by_author in sorted(state.answers.items())
        for answer in by_author.values()
        if answer.label is not None
    }


def _answer_all(project: Path) -> None:
    port, token = _address(project)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    cookie = {"Cookie": f"upslope_{_mark(token)}={token}", "Content-Type": "application/json"}

    def ask(method: str, path: str, body: Any = None) -> dict[str, Any]:
        connection.request(method, path, None if body is None else json.dumps(body), cookie)
        response = connection.getresponse()
        standing = json.loads(response.read())
        if response.status != 200:
            print(f"refused: {standing}", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            raise SystemExit
        return dict(standing)

    try:
        standing = ask("GET", "/api/status")
        while standing["questions"]:
            question = standing["questions"][0]
            number = int(re.sub(r"\D", "", question["id"]))
            body = {"sample": question["sample"], "label": CLASSES[number % 2], "seconds": 1.0}
            standing = ask("POST", "/api/answer", body)
            print(f"taken {number}", flush=True)
    except (OSError, http.client.HTTPException, ValueError):
        return  # the server was asked to stop, and does
    os.kill(os.getpid(), signal.SIGINT)


def _address(project: Path) -> tuple[int, str]:
    """Return the port at which this process listens, once it does, and the project's token."""
    import psutil

    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for connection in psutil.Process().net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return connection.laddr.port, (project / TOKEN).read_text("ascii")
        time.sleep(0.02)
    raise TimeoutError


def _mark(token: str) -> str:
    import hashlib

    return hashlib.sha256(token.encode()).hexdigest()[:8]
