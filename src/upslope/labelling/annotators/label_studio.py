"""A server of Label Studio as an annotation tool, over its HTTP interface.

Tasks carry the id of their sample. Before tasks are sent the server is asked which it has, and
afterwards whether one came twice, so that a push can be repeated after whatever ended it. People
get tasks in the order in which they were sent (sequential sampling).
"""

from __future__ import annotations

import base64
import datetime
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.errors import ConfigError, DataError, RunError
from upslope.labelling.annotators.base import AnnotationTask, PulledAnswer, PushCount
from upslope.labelling.annotators.label_studio_form import (
    ID,
    answer_of,
    label_config,
    prediction,
)
from upslope.labelling.samples import Kind
from upslope.labelling.settings import AnswerKind
from upslope.labelling.state import SKIP

_PAGE = 200  # tasks per request
_AT_ONCE = 50  # tasks per import
_SECONDS = 120.0  # that a request may take
_PERSONAL = "eyJ"  # how personal access tokens begin, which are JWT; others are legacy tokens


@dataclass
class LabelStudioAnnotator:
    """A project on a server of Label Studio.

    url, token: of the server and a user; both kinds of tokens are known. title: of the project,
    which is made where there is none of this name. files: the folder from which the server itself
    reads images, None for a server that does not see them: images then travel inside the tasks.
    """

    url: str
    token: str = field(repr=False)
    title: str
    kind: AnswerKind
    sample_kind: Kind
    classes: Sequence[str]
    files: Path | None = None
    name: str = "label-studio"

    def __post_init__(self) -> None:
        if urllib.parse.urlsplit(self.url).scheme not in ("http", "https"):
            raise ConfigError(
                f"Expected the address of a server, http://..., for --url but got {self.url!r}."
            )
        self.url = self.url.rstrip("/")
        self._access = ""
        self._project: int | None = None
        self._names: dict[int, str] = {}

    @property
    def project(self) -> int:
        """Return the number of the project on the server, which is made where there is none."""
        if self._project is None:
            self._project = self._find() or self._create()
        return self._project

    def pushed(self) -> Collection[str]:
        """Return the ids of the samples that have a task. Raises RunError."""
        return {str(task["data"][ID]) for task in self._tasks()}

    def push(self, tasks: Sequence[AnnotationTask]) -> PushCount:
        """Import the tasks that the server does not have, in their order.

        Raises:
            RunError: the server does not answer, or refuses; the push can be repeated.
        """
        there = self.pushed()
        new = [task for task in tasks if task.id not in there]
        for start in range(0, len(new), _AT_ONCE):
            bodies = [self._body(task) for task in new[start : start + _AT_ONCE]]
            self._call("POST", f"/api/projects/{self.project}/import", bodies)
        if new:
            self._remove_doubles()
        return PushCount(len(new), len(tasks) - len(new))

    def pull(self) -> Sequence[PulledAnswer]:
        """Return the answers of all people, the oldest first.

        Raises:
            RunError: the server does not answer, or refuses.
            DataError: an answer that cannot be read; the message names its task.
        """
        answers: dict[tuple[str, str], PulledAnswer] = {}
        for task in self._tasks():
            for annotation in sorted(task["annotations"], key=lambda one: str(one["updated_at"])):
                answer = self._answer(task, annotation)
                answers[answer.id, answer.author] = answer  # a person's newest of a sample
        return sorted(answers.values(), key=lambda one: one.time)

    def _answer(self, task: Mapping[str, Any], annotation: Mapping[str, Any]) -> PulledAnswer:
        if annotation["was_cancelled"]:
            answer, reason = None, SKIP
        else:
            try:
                answer, reason = answer_of(annotation["result"], self.kind, self.classes)
            except (
                DataError,
                LookupError,
                TypeError,
                ValueError,
                AttributeError,
                OverflowError,
            ) as error:
                raise DataError(
                    f"Expected an answer in task {task['id']} of {self.url} ({task['data'][ID]!r}) "
                    f"but it cannot be read: {error} Mend it there; nothing was recorded."
                ) from error
        return PulledAnswer(
            str(task["data"][ID]),
            self._author(annotation["completed_by"]),
            answer,
            reason,
            float(annotation["lead_time"] or 0.0) or None,
            datetime.datetime.fromisoformat(str(annotation["updated_at"])).timestamp(),
        )

    def _author(self, number: Any) -> str:
        if number not in self._names:
            self._names = {u["id"]: str(u["email"]) for u in self._call("GET", "/api/users")}
        return self._names.get(number, f"user {number}")

    def _tasks(self) -> Iterator[Mapping[str, Any]]:
        """All tasks that carry the id of a sample, in the order of their numbers."""
        count, page = 0, 1
        while True:
            query = urllib.parse.urlencode(
                {"project": self.project, "fields": "all", "page_size": _PAGE, "page": page}
            )
            body = self._call("GET", f"/api/tasks?{query}&ordering=id")
            for task in body["tasks"]:
                count += 1
                if ID in task["data"]:
                    yield task
            if count >= body["total"] or not body["tasks"]:
                return
            page += 1

    def _remove_doubles(self) -> None:
        """Remove tasks that came twice and have no answer: of a push whose end was not heard."""
        first: dict[str, Mapping[str, Any]] = {}
        for task in list(self._tasks()):
            id_ = str(task["data"][ID])
            before = first.setdefault(id_, task)
            if before is task:
                continue
            spare = before if task["annotations"] and not before["annotations"] else task
            first[id_] = task if spare is before else before
            if not spare["annotations"]:
                self._call("DELETE", f"/api/tasks/{spare['id']}")

    def _body(self, task: AnnotationTask) -> dict[str, Any]:
        data: dict[str, Any] = {ID: task.id, "rank": task.rank, "why": task.why}
        if task.score is not None:
            data["score"] = task.score
        if task.kind == "image":
            data["image"] = self._image(task)
        elif task.kind == "text":
            data["text"] = next(iter(task.cells.values()))
        else:
            data["row"] = dict(task.cells)
        body: dict[str, Any] = {"data": data}
        if task.guess is not None and (
            guess_result := prediction(task.guess, self.kind, "upslope")
        ):
            body["predictions"] = [guess_result]
        return body

    def _image(self, task: AnnotationTask) -> str:
        """Where a browser finds the image: at the server, or in the address itself."""
        if self.files is not None and task.file is not None:
            path = task.file.resolve()
            root = self.files.resolve()
            if path.is_relative_to(root):
                inner = path.relative_to(root.parent).as_posix()
                return f"/data/local-files/?d={urllib.parse.quote(inner)}"
        data = base64.b64encode(task.image or b"").decode()
        return f"data:{task.media_type};base64,{data}"

    def _find(self) -> int | None:
        query = urllib.parse.urlencode({"title": self.title, "page_size": 1000})
        for project in self._call("GET", f"/api/projects?{query}")["results"]:
            if project["title"] == self.title:
                return int(project["id"])
        return None

    def _create(self) -> int:
        project = self._call("POST", "/api/projects", {
            "title": self.title,
            "label_config": label_config(self.kind, self.sample_kind, self.classes),
            "sampling": "Sequential sampling",
            "show_collab_predictions": True,  # those that were asked for; there are no others
        })  # fmt: skip
        number = int(project["id"])
        if self.files is not None:
            self._call("POST", "/api/storages/localfiles", {
                "project": number, "path": str(self.files.resolve()), "title": "images",
                "use_blob_urls": True,
            })  # fmt: skip
        return number

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request and return the JSON that comes back, None for none."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": self._authorization()}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            self._access = ""
            said = error.read()[:300].decode("utf-8", "replace")
            raise RunError(
                f"Expected Label Studio at {self.url} to do {method} {path.partition('?')[0]} but "
                f"it says {error.code}: {said}. Check --url and --token; what was pushed stays, "
                "and the same command goes on."
            ) from error
        except (OSError, ValueError) as error:
            raise RunError(
                f"Expected an answer of Label Studio at {self.url} but got: {error}. Start it, and "
                "run the same command again: it goes on where it was."
            ) from error
        try:
            return json.loads(content) if content else None
        except ValueError as error:
            raise RunError(
                f"Expected JSON of Label Studio at {self.url} but got {content[:60]!r}."
            ) from error

    def _authorization(self) -> str:
        if not self.token.startswith(_PERSONAL):
            return f"Token {self.token}"
        if not self._access:
            request = urllib.request.Request(
                f"{self.url}/api/token/refresh",
                json.dumps({"refresh": self.token}).encode(),
                {"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                    self._access = str(json.load(response)["access"])
            except (OSError, ValueError, KeyError) as error:
                raise RunError(
                    f"Expected Label Studio at {self.url} to take the personal access token but: "
                    f"{error}. Make a new one in its account page."
                ) from error
        return f"Bearer {self._access}"
