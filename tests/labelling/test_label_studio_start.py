"""Commands that are killed while they install or start Label Studio, with programs in its place."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from upslope.errors import RunError
from upslope.labelling.annotators import label_studio_server

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a lock that a child holds too")

PYTHON = """#!/bin/sh
# What pip and venv do, in short. As pip, it works for as long as the file `hold` is there.
here=$(dirname "$(dirname "$0")")
if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; fi
echo "$@" >> "$here/calls"
cp "$here/server" "$here/bin/label-studio"
while [ -e "$here/hold" ]; do sleep 0.05; done
"""
SERVER = """#!{python}
import http.server, os, pathlib, sys, time
here = pathlib.Path(__file__).parents[1]
with (here / "starts").open("a") as file:
    file.write(f"{{os.getpid()}}\\n")
while (here / "hold").exists():
    time.sleep(0.05)
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"UP")
    def log_message(self, *_):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Answers).serve_forever()
"""


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment that is to be made, and a Python that makes it quickly."""
    folder = tmp_path / "environment"
    folder.mkdir()
    (folder / "server").write_text(SERVER.format(python=sys.executable))
    (folder / "server").chmod(0o755)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    monkeypatch.setattr(label_studio_server.sys, "executable", str(python))
    monkeypatch.setenv("UPSLOPE_LABEL_STUDIO", str(folder))
    return folder


def killed(folder: Path, until: Path) -> None:
    """Start Label Studio in a process that is killed once a file is there."""
    process = multiprocessing.get_context("fork").Process(target=_start, args=(folder,))
    process.start()
    _await(until)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def _start(folder: Path) -> None:
    label_studio_server.start(folder, None, lambda _: None)


def _await(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _install_when_free() -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return label_studio_server.install(lambda _: None)
        except RunError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_a_killed_installation_left_is_not_taken_for_whole(
    where: Path, tmp_path: Path
) -> None:
    """The program was there, so that it counted as installed; or a second pip ran beside the
    first, which outlives the command."""
    (where / "hold").touch()
    killed(tmp_path / "project", where / "bin" / "label-studio")
    with pytest.raises(RunError, match="working there"):
        label_studio_server.install(lambda _: None)
    (where / "hold").unlink()
    _install_when_free()
    first, second = (where / "calls").read_text().splitlines()
    assert "--ignore-installed" not in first
    assert "--ignore-installed" in second
    label_studio_server.install(lambda _: None)
    assert len((where / "calls").read_text().splitlines()) == 2


def test_a_server_that_a_killed_command_was_starting_is_waited_for(
    where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one was started on the same data and the same port."""
    label_studio_server.install(lambda _: None)
    (where / "hold").touch()
    killed(tmp_path, where / "starts")
    said: list[str] = []
    monkeypatch.setattr(label_studio_server, "_START_SECONDS", 0.0)
    with pytest.raises(RunError, match="did not"):
        label_studio_server.start(tmp_path, None, said.append)
    (where / "hold").unlink()
    monkeypatch.setattr(label_studio_server, "_START_SECONDS", 60.0)
    _, process = label_studio_server.start(tmp_path, None, said.append)
    (started,) = (where / "starts").read_text().split()
    os.kill(int(started), signal.SIGKILL)
    assert process is None
    assert "waiting" in said[0]
