"""What tests of labelling share: photographs of hands, and the page's server in a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest

HANDS = Path(os.environ.get("UPSLOPE_DATA", "data")) / "sign-digits"


@pytest.fixture(scope="session")
def hands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A flat folder of 300 photographs, and the digit that each shows: file name -> digit."""
    if not (HANDS / "9").is_dir():
        pytest.skip(f"needs the photographs sign-digits in {HANDS.parent} (UPSLOPE_DATA)")
    folder = tmp_path_factory.mktemp("data") / "hands"
    folder.mkdir()
    digits = {}
    for digit in map(str, range(10)):
        for i, file in enumerate(sorted((HANDS / digit).glob("*.JPG"))[:30]):
            name = f"hand-{(7 * int(digit) + 31 * i) % 1000:03d}-{i}{digit}.jpg"
            (folder / name).write_bytes(file.read_bytes())
            digits[name] = digit
    return folder, digits


class PageServer:
    """`upslope label serve` in a process, and a client that it has let in."""

    def __init__(self, project: Path, port: int = 0, name: str = "tester") -> None:
        self.project = project
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "upslope", "label", "serve", str(project),
                "--no-browser", "--port", str(port), "--name", name,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if match := re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S+", line):
                self.url, self.port = match[0], int(match[1])
                break
        else:
            raise AssertionError("".join(lines))
        jar = urllib.request.HTTPCookieProcessor(CookieJar())
        self._opener = urllib.request.build_opener(jar)
        deadline = time.monotonic() + 60
        while True:
            try:
                self._opener.open(self.url, timeout=30).read()
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        with self._opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
            return json.load(response)

    def post(self, path: str, body: Any) -> Any:
        """What comes back for a JSON body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=30) as response:
            return json.load(response)

    def kill(self) -> None:
        """End it without a word (SIGKILL)."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def page_server() -> Iterator[Callable[..., PageServer]]:
    """Starts servers, and ends those that a test leaves."""
    pytest.importorskip("starlette", reason="needs the extra `label`: starlette")
    pytest.importorskip("uvicorn", reason="needs the extra `label`: uvicorn")
    servers: list[PageServer] = []

    def start(project: Path, **options: Any) -> PageServer:
        servers.append(PageServer(project, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
