"""A real Label Studio for tests: where it is installed, and who answers through its API."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from upslope.labelling.annotators.label_studio import LabelStudioAnnotator
from upslope.labelling.annotators.label_studio_form import ID
from upslope.labelling.annotators.label_studio_server import (
    ServerAccess,
    environment,
    executable,
    start,
)

LABEL_STUDIO = environment()


class Studio:
    """A server in a folder, which can be killed and started again."""

    def __init__(self, folder: Path, images: Path | None) -> None:
        if not executable().is_file():
            pytest.skip(f"needs Label Studio in {LABEL_STUDIO} (UPSLOPE_LABEL_STUDIO)")
        self._folder, self._images = folder, images
        self.access: ServerAccess
        self._process: subprocess.Popen[bytes] | None
        self.start()

    def start(self) -> None:
        self.access, self._process = start(self._folder, self._images, lambda _: None)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.access.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Token {self.access.token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            content = response.read()
        return json.loads(content) if content else None

    def annotator(
        self, title: str, kind: Any, classes: Sequence[str], images: Path | None = None
    ) -> LabelStudioAnnotator:
        return LabelStudioAnnotator(
            self.access.url, self.access.token, title, kind, "image", classes, images
        )

    def tasks(self, annotator: LabelStudioAnnotator) -> list[dict[str, Any]]:
        path = f"/api/tasks?project={annotator.project}&fields=all&page_size=5000&ordering=id"
        return list(self.call("GET", path)["tasks"])

    def answer(
        self, annotator: LabelStudioAnnotator, id_: str, result: list[Any], **other: Any
    ) -> None:
        task = next(t for t in self.tasks(annotator) if t["data"][ID] == id_)
        self.call("POST", f"/api/tasks/{task['id']}/annotations", {"result": result, **other})


def choice(*names: str) -> list[dict[str, Any]]:
    value = {"choices": list(names)}
    return [{"from_name": "label", "to_name": "sample", "type": "choices", "value": value}]
