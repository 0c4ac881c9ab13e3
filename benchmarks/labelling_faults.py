"""Labels told to the page's server under faults: how many are lost, doubled or changed.

    python benchmarks/labelling_faults.py [--labels 10000] [--seed 0]

Two people answer at once through a line that breaks: now and then an answer or its receipt is lost
on the way, and they send it again, as the page does. Meanwhile the server is killed (SIGKILL) and
started again, and the disk is full for a while (no file may grow, RLIMIT_FSIZE). At the end the
project is read from the disk and compared with what each person was told to be saved. Prints the
counts as JSON; exit status 1 where a label was lost, doubled or changed. Ctrl-C ends it early, and
compares what was told until then.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import random
import re
import resource
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

from upslope.labelling.project import Project, read_project
from upslope.labelling.settings import ProjectSettings

PEOPLE = ("ann", "bob")
CLASSES = ("good", "bad", "neither")
_PATIENCE = 300.0  # seconds that one answer may take with all its repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--full", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = campaign(Path(folder), options.labels, options.kills, options.full, options.seed)
    print(json.dumps(result, indent=2))
    raise SystemExit(any(result[name] for name in ("lost", "doubled", "changed", "asked_twice")))


def label_of(author: str, id_: str) -> str:
    """What a person says of a sample: another person may say something else."""
    return CLASSES[hashlib.sha256(f"{author}/{id_}".encode()).digest()[0] % len(CLASSES)]


@dataclass
class Line:
    """A connection between people and server that loses requests and receipts.

    port: where people connect. target: the port of the server. share: of the connections that
    break, half of them before the request has arrived, half of them after.
    """

    target: int
    share: float
    rng: random.Random
    broken: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        fate = self.rng.random()
        with client, socket.socket() as server:
            try:
                client.settimeout(60)
                request = _read_request(client)
                if fate < self.share / 2:
                    self.broken["requests"] += 1
                    return
                server.settimeout(60)
                server.connect(("127.0.0.1", self.target))
                server.sendall(request)
                answer = b""
                while part := server.recv(1 << 16):
                    answer += part
                if fate < self.share:
                    self.broken["receipts"] += 1
                    return
                client.sendall(answer)
            except OSError:
                return

    def close(self) -> None:
        self._listener.close()


def _read_request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    match = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
    size = int(match[1]) if match else 0
    while len(body) < size:
        body += client.recv(1 << 16)
    return head + b"\r\n\r\n" + body


class Server:
    """The page's server in a process, which can be killed, and whose disk can be full."""

    def __init__(self, project: Path) -> None:
        self._project = project
        with socket.create_server(("127.0.0.1", 0)) as one:
            self.port = one.getsockname()[1]
        self.url = ""
        self.start()

    def start(self) -> None:
        command = [
            sys.executable, "-m", "upslope", "label", "serve", str(self._project), "--no-browser",
            "--port", str(self.port),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        lines = self.process.stdout
        self.url = next(m[0] for line in lines if (m := re.search(r"http://\S+", line)))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def fill_disk(self, seconds: float) -> None:
        """No file of the server may grow for so long."""
        pid = self.process.pid
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        time.sleep(seconds)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


class Person:
    """Answers what is shown, again and again until the server says that it is saved."""

    def __init__(self, name: str, line: Line, server: Server) -> None:
        self.name, self._line, self._server = name, line, server
        self.saved: dict[str, str] = {}
        self.repeats = 0
        self.refused = 0
        self._jar = CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._jar))

    def work(self, stop: threading.Event) -> None:
        """Answer until told to stop, or until nothing is left."""
        token = self._server.url.partition("?")[2]
        self._send(f"/?{token}&name={self.name}", None)
        standing = json.loads(self._send("/api/status", None))
        while standing["questions"] and not stop.is_set():
            question = standing["questions"][0]
            label = label_of(self.name, question["id"])
            body = {"sample": question["sample"], "label": label, "seconds": 0.1}
            standing = json.loads(self._send("/api/answer", body))
            self.saved[question["id"]] = label

    def _send(self, path: str, body: Any) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + _PATIENCE
        while True:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self._line.port}{path}", data,
                {"Content-Type": "application/json", "Connection": "close"},
            )  # fmt: skip
            try:
                with self._opener.open(request, timeout=60) as response:
                    return bytes(response.read())
            except urllib.error.HTTPError as error:
                said = error.read().decode("utf-8", "replace")
                if error.code != 500:
                    raise AssertionError(f"{path}: {error.code} {said}") from error
                self.refused += 1  # the disk is full: the page shows it, and people try again
            except (OSError, ValueError, http.client.HTTPException):  # cut off, or cut short
                self.repeats += 1
            assert time.monotonic() < deadline, path
            time.sleep(0.05)


def campaign(folder: Path, labels: int, kills: int, full: int, seed: int) -> dict[str, Any]:
    """Have two people give so many labels under faults, and count what went wrong."""
    rng = random.Random(seed)
    data = folder / "texts.csv"
    rows = (f"t{i:05d},text {i} of {rng.choice(('sun', 'rain', 'snow'))}" for i in range(labels))
    data.write_text("id,words\n" + "\n".join(rows) + "\n")
    project = folder / "project"
    Project.create(project, ProjectSettings(str(data), CLASSES)).close()
    server = Server(project)
    line = Line(server.port, 0.02, random.Random(seed + 1))
    people = [Person(name, line, server) for name in PEOPLE]
    stop = threading.Event()
    problems: list[BaseException] = []

    def work(person: Person) -> None:
        try:
            person.work(stop)
        except BaseException as error:
            problems.append(error)
            stop.set()

    started = time.monotonic()
    threads = [threading.Thread(target=work, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    faults = ["kill"] * kills + ["full"] * full
    rng.shuffle(faults)
    done: Counter[str] = Counter()
    try:
        for number, fault in enumerate(faults, 1):
            due = labels * number / (len(faults) + 1)
            while sum(len(p.saved) for p in people) < due and any(t.is_alive() for t in threads):
                time.sleep(0.01)
            if fault == "kill":
                server.kill()
                server.start()
            else:
                server.fill_disk(rng.uniform(0.1, 0.4))
            done[fault] += 1
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stop.set()
        for thread in threads:
            thread.join()  # what was sent is heard of
    finally:
        stop.set()
        server.kill()
        line.close()
    if problems:
        raise problems[0]
    return {
        **compare(project, people),
        "kills": done["kill"],
        "full_disks": done["full"],
        **line.broken,
        "repeats": sum(p.repeats for p in people),
        "refused": sum(p.refused for p in people),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def compare(project: Path, people: list[Person]) -> dict[str, int]:
    """Count what the disk holds against what people were told to be saved."""
    settings, state = read_project(project)  # checks the chain of all events too
    there = {
        (a.author, a.id): settings.classes[a.label]
        for by_author in state.answers.values()
        for a in by_author.values()
        if isinstance(a.label, int)
    }
    told = {(p.name, id_): label for p in people for id_, label in p.saved.items()}
    with sqlite3.connect(project / "labels.sqlite") as db:
        recorded = Counter(
            (json.loads(body)["author"], id_)
            for (body,) in db.execute("SELECT body FROM events WHERE kind = 'labelled'")
            for id_ in json.loads(body)["labels"]
        )
    return {
        "labels": len(told),
        "lost": sum(key not in there for key in told),
        "doubled": sum(count > 1 for count in recorded.values()) + len(there.keys() - told.keys()),
        "changed": sum(there.get(key, label) != label for key, label in told.items()),
        "asked_twice": sum(len(by_author) > 1 for by_author in state.answers.values()),
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
