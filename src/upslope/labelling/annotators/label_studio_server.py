"""A server of Label Studio of one's own: installed into an environment of its own, and started on
loopback.

The environment is made once per version, in the cache folder of the user; Label Studio's pins are
old and would change the packages of any other. Data, password and token of the server lie in the
project's folder, which its owner alone can read.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from upslope.errors import RunError
from upslope.files import disk_errors, make_folder, write_text
from upslope.ledger.lock import HeldElsewhereError, RunLock

VERSION = "1.23.2"
FOLDER, ACCESS = "label-studio", "access.json"
_MARK = "upslope-unfinished"
"""The file in an environment whose installation was begun and not ended."""
_LOG = "server.log"
_USER = "upslope@localhost.localdomain"
_START_SECONDS = (
    1200.0  # a first start makes the database: 40 s on a free core, 5 min on a busy one
)


@dataclass(frozen=True)
class ServerAccess:
    """How to reach a server. user, password: for the page. token: for the interface."""

    url: str
    user: str
    password: str
    token: str


def environment() -> Path:
    """Return the folder of Label Studio's environment. UPSLOPE_LABEL_STUDIO names another."""
    if folder_option := os.environ.get("UPSLOPE_LABEL_STUDIO"):
        return Path(folder_option)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "upslope" / f"label-studio-{VERSION}"


def executable() -> Path:
    """Return where the program is, or will be."""
    folder = "Scripts" if os.name == "nt" else "bin"
    return environment() / folder / "label-studio"


def install(say: Callable[[str], None]) -> None:
    """Make the environment and install Label Studio in it, where it is not yet.

    say: is told before what takes minutes.

    Raises:
        RunError: pip cannot install it, and the message ends with its last lines; or another
            command is installing it.
    """
    if _is_installed():
        return
    where = environment()
    with disk_errors(where):
        make_folder(where)
    lock = RunLock(where)
    try:
        if not _is_installed():
            _install(where, say, lock)
    finally:
        lock.release()


def _is_installed() -> bool:
    return executable().is_file() and not (environment() / _MARK).exists()


def _install(where: Path, say: Callable[[str], None], lock: RunLock) -> None:
    say(f"installing Label Studio {VERSION} into {where}, once: about three minutes and 1 GB")
    mark = where / _MARK
    # Where an installation was broken off, packages may be there by half, and pip would take those
    # whose description is there for whole.
    again = ["--ignore-installed"] if mark.exists() else []
    write_text(mark, "")
    python = executable().with_name("python")
    for command in (
        [sys.executable, "-m", "venv", str(where)],
        [str(python), "-m", "pip", "install", "-q", *again, f"label-studio=={VERSION}"],
    ):
        process = subprocess.run(
            command, capture_output=True, text=True, check=False, **lock.shared_with_child()
        )
        if process.returncode:
            last = " ".join(process.stderr.strip().splitlines()[-3:])
            raise RunError(
                f"Expected to install Label Studio {VERSION} but {command[0]} says: {last}. "
                "Install it yourself and name its environment in UPSLOPE_LABEL_STUDIO, or use a "
                "server that runs: --url and --token."
            )
    with disk_errors(mark):
        mark.unlink()


def start(
    project: Path, images: Path | None, say: Callable[[str], None], port: int = 0
) -> tuple[ServerAccess, subprocess.Popen[bytes] | None]:
    """Return a running server of a project, and its process where it was started now.

    images: folder whose files it may show. port: of a new server; 0 for any.

    Raises:
        RunError: it does not start in time.
    """
    folder = project / FOLDER
    access = _access(folder, port)
    if _answers(access.url):
        return access, None
    install(say)
    try:
        lock = RunLock(folder)
    except (
        HeldElsewhereError
    ):  # a command started it and was killed: a second one would use its data
        say("waiting for Label Studio, which another command has started")
        _await_answer(access, folder, lambda: not _is_held(folder))
        return access, None
    try:
        say("starting Label Studio: a minute the first time, then seconds")
        process = _start_process(access, folder, images, lock)
    finally:
        lock.release()
    try:
        _await_answer(access, folder, lambda: process.poll() is not None)
    except BaseException:  # Ctrl-C too: nobody else would end it
        process.kill()
        process.wait()
        raise
    return access, process


def _start_process(
    access: ServerAccess, folder: Path, images: Path | None, lock: RunLock
) -> subprocess.Popen[bytes]:
    """Start the server, which holds the lock of its folder from here on."""
    number = access.url.rpartition(":")[2]
    log = folder / _LOG
    with disk_errors(log), log.open("ab") as out:
        return subprocess.Popen(
            [
                str(executable()), "start", "--no-browser", "--internal-host", "127.0.0.1",
                "--port", number, "--data-dir", str(folder), "--username", access.user,
                "--password", access.password, "--user-token", access.token,
                "--enable-legacy-api-token",
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, **_settings(folder, images)}, **lock.shared_with_child(),
        )  # fmt: skip


def _is_held(folder: Path) -> bool:
    try:
        RunLock(folder).release()
    except HeldElsewhereError:
        return True
    return False


def _await_answer(access: ServerAccess, folder: Path, has_ended: Callable[[], bool]) -> None:
    """Wait until the server answers; RunError where it has ended, or does not in time."""
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(access.url):
        if has_ended() or time.monotonic() > deadline:
            raise RunError(
                f"Expected Label Studio to start at {access.url} but it did not. Its words are in "
                f"{folder / _LOG}; another program may have the port: remove {folder / ACCESS} for "
                "a new one."
            )
        time.sleep(0.3)


def _settings(folder: Path, images: Path | None) -> dict[str, str]:
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
    }
    if images is not None:
        settings["LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"] = "true"
        # What is shown must lie below the root; of the root nothing but what a project names.
        settings["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] = str(images.resolve().parent)
    return settings


def _access(folder: Path, port: int) -> ServerAccess:
    """Read how the project's server is reached, or decide it and write it down."""
    with disk_errors(folder):
        make_folder(folder)
        folder.chmod(0o700)
    path = folder / ACCESS
    if path.is_file():
        try:
            return ServerAccess(**json.loads(path.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"Expected {path} to say how Label Studio is reached but it is damaged: {error}. "
                "Restore it from a copy."
            ) from error
    access = ServerAccess(
        f"http://127.0.0.1:{port or _free_port()}", _USER, secrets.token_urlsafe(12),
        secrets.token_hex(20),
    )  # fmt: skip
    write_text(path, json.dumps(access.__dict__))
    path.chmod(0o600)
    return access


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return b"UP" in response.read()
    except (OSError, ValueError):
        return False
