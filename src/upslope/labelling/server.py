"""The page's server: starlette and uvicorn, on loopback, one process per project.

A browser is let in by the token in the address, and by a cookie from then on. Nothing that a
request says becomes a path: samples are named by keys, and the page's files are told by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib import resources
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from upslope.errors import ConfigError, DataError, UpslopeError
from upslope.files import from_json
from upslope.labelling.project import check_author
from upslope.labelling.samples import TableRows
from upslope.labelling.session import Session
from upslope.labelling.training_process import TrainingProcess
from upslope.progress import answering_signals
from upslope.reading import said

PORT = 8321
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src "
    "'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_BODY = 1 << 16  # bytes of a request's body at most
_CACHE = "private, max-age=86400"
"""Of images. A page that is loaded after the server was started again has new addresses for them,
so that pictures of another project, or of a replaced file, are not shown in their place."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Page:
    """The page of a session, as an ASGI application.

    author: who answers where the address has no name. hosts: names that a request may come to,
    None for any; a page that is served on loopback answers to loopback's names alone, so that no
    other site can reach it by a name of its own (DNS rebinding).
    """

    def __init__(self, session: Session, author: str, hosts: tuple[str, ...] | None) -> None:
        self.session, self._author, self._hosts = session, author, hosts
        self._token = session.project.token
        mark = hashlib.sha256(self._token.encode()).hexdigest()[:8]
        self._cookie, self._name_cookie = f"upslope_{mark}", f"upslope_name_{mark}"
        self._training = TrainingProcess(session.project.folder, session.take_ranking)
        get, post = self._get_routes(), self._post_routes()
        self.app = Starlette(
            routes=[
                *(Route(path, endpoint) for path, endpoint in get.items()),
                *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
            ],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=self._guard)],
            lifespan=self._lifespan,
            exception_handlers={UpslopeError: _told},
        )

    def _get_routes(self) -> dict[str, Endpoint]:
        return {
            **{path: self._file(*file) for path, file in _FILES.items()},
            "/api/project": self._project,
            "/api/status": self._status,
            "/api/guess/{sample}": self._guess,
            "/image/{sample}": self._image,
        }

    def _post_routes(self) -> dict[str, Endpoint]:
        return {
            "/api/answer": self._answer,
            "/api/undo": self._undo,
            "/api/review": self._review,
            "/api/leave": self._leave,
            "/api/again": self._again,
        }

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._training.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _guard(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Let in who shows the token; every answer has the headers that keep the page to itself."""
        response = self._refusal(request) or self._entry(request) or await call_next(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if self._hosts is not None and host not in self._hosts:
            return PlainTextResponse(f"Expected the address {self._hosts[0]}.", 421)
        token_of_request = request.query_params.get("token") or request.cookies.get(
            self._cookie, ""
        )
        if not secrets.compare_digest(token_of_request.encode(), self._token.encode()):
            return PlainTextResponse(
                "Expected the address with its token, as `upslope label serve` printed it.", 403
            )
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method == "POST" and media_type != "application/json":
            # JSON is what no form of another site sends.
            return PlainTextResponse("Expected the content type application/json.", 415)
        return None

    def _entry(self, request: Request) -> Response | None:
        """With a token in the address: the cookies, and the address without it."""
        if "token" not in request.query_params or request.method != "GET":
            return None
        name = request.query_params.get("name", "").strip()[:100]
        try:
            check_author(name)
        except DataError as error:
            return PlainTextResponse(str(error), 400)
        response = RedirectResponse("/", 303)
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        if name:
            response.set_cookie(
                self._name_cookie, name.encode().hex(), httponly=True, samesite="strict"
            )
        return response

    def _author_of(self, request: Request) -> str:
        with contextlib.suppress(ValueError):
            if name := bytes.fromhex(request.cookies.get(self._name_cookie, "")).decode():
                return name
        return self._author

    def _file(self, name: str, media_type: str) -> Endpoint:
        text = resources.files("upslope.labelling").joinpath("page", name).read_text("utf-8")

        async def send(_request: Request) -> Response:
            return Response(text, media_type=media_type, headers={"Cache-Control": "no-cache"})

        return send

    async def _project(self, request: Request) -> Response:
        return JSONResponse(self.session.describe(self._author_of(request)))

    async def _status(self, request: Request) -> Response:
        return self._standing(self._author_of(request))

    async def _guess(self, request: Request) -> Response:
        return JSONResponse(self.session.guess(request.path_params["sample"]))

    async def _image(self, request: Request) -> Response:
        samples = self.session.samples
        position = self.session.position_of(request.path_params["sample"])
        if isinstance(samples, TableRows):
            return Response(status_code=404)
        # In a thread, since a large image takes longer to read than an answer may wait.
        picture = await asyncio.to_thread(samples.picture, position)
        return Response(
            picture.data, media_type=picture.media_type, headers={"Cache-Control": _CACHE}
        )

    async def _answer(self, request: Request) -> Response:
        author = self._author_of(request)
        self.session.answer(author, await _body(request))
        self._training.tell()
        return self._standing(author)

    async def _undo(self, request: Request) -> Response:
        author = self._author_of(request)
        if self.session.undo(author, (await _body(request)).get("sample")):
            self._training.tell()
        return self._standing(author)

    async def _review(self, request: Request) -> Response:
        author = self._author_of(request)
        self.session.review(author, (await _body(request)).get("sample"))
        return self._standing(author)

    async def _leave(self, request: Request) -> Response:
        author = self._author_of(request)
        self.session.leave(author, self.session.id_of((await _body(request)).get("sample")))
        return self._standing(author)

    async def _again(self, request: Request) -> Response:
        """Ask doubtful labels again, or those on which people disagree."""
        ask = {
            "doubtful": self.session.ask_doubtful,
            "disagreements": self.session.ask_disagreements,
        }
        what = str((await _body(request)).get("what"))
        if what not in ask:
            raise DataError(f"Expected one of {', '.join(ask)} but got {what!r}.")
        ask[what]()
        return self._standing(self._author_of(request))

    def _standing(self, author: str) -> Response:
        standing = self.session.status(author)
        standing["model"]["problem"] = self._training.problem
        return JSONResponse(standing)


def serve(
    session: Session,
    listener: socket.socket,
    author: str,
    hosts: tuple[str, ...] | None = LOOPBACK,
) -> None:
    """Serve the page until Ctrl-C, SIGTERM or SIGHUP. listener: a socket from `listen`.

    Raises:
        KeyboardInterrupt: it was asked to end.
    """
    page = Page(session, author, hosts)
    config = uvicorn.Config(
        page.app,
        log_level="warning",
        access_log=False,
        http="h11",
        ws="none",
        timeout_graceful_shutdown=2,
    )
    server, signals = uvicorn.Server(config), list[int]()

    @contextlib.contextmanager
    def capture_signals() -> Iterator[None]:
        """Let signals end the server, which takes two seconds at most.

        Uvicorn's own sends the signal to the process again, and after a second one ends at once: in
        both cases while its tasks still run, which then fail with tracebacks.
        """

        def handle(number: int, _frame: FrameType | None) -> None:
            signals.append(number)
            server.should_exit = True

        with answering_signals(handle):
            yield

    vars(server)["capture_signals"] = capture_signals
    server.run(sockets=[listener])
    if signals:
        raise KeyboardInterrupt


def listen(host: str, port: int | None) -> socket.socket:
    """Return a listening socket. port: None for the usual one, or any free one where it is taken.

    Raises:
        ConfigError: the address or the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in (port,) if port is not None else (PORT, 0):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            reason = error
    raise ConfigError(
        f"Expected to listen at {host}, port {port or 'any'}, but the system says: {reason}. "
        f"Choose another with {'--host' if isinstance(reason, socket.gaierror) else '--port'}."
    ) from reason


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings."""
    request_body = b""
    async for part in request.stream():
        request_body += part
        if len(request_body) > _BODY:
            raise DataError(f"Expected a request of {_BODY:,} bytes at most.")
    try:
        body = from_json(request_body)
        # Half a character, which JSON can spell and no file or answer of the server can hold.
        json.dumps(body, ensure_ascii=False).encode()
    except ValueError as error:
        raise DataError(f"Expected JSON but: {said(error)}.") from error
    if not isinstance(body, dict):
        raise DataError("Expected a JSON object.")
    return body


async def _told(_request: Request, error: Exception) -> Response:
    assert isinstance(error, UpslopeError)
    return JSONResponse({"error": str(error)}, 400 if error.exit_code == 3 else 500)
