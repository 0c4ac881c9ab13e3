"""How fast a person can label, and how long the page makes them wait, while a model is trained.

    python benchmarks/labelling.py [--labels 300] [--pause 0.3] [--data sign-digits]

A scripted person at the page's own interface answers `--pause` seconds after each sample has been
received with its image. Prints labels per minute, and the times of answers and images.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import numpy as np

from upslope.labelling.project import Project
from upslope.labelling.settings import ProjectSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--pause", type=float, default=0.3)
    parser.add_argument(
        "--data", default=str(Path(os.environ.get("UPSLOPE_DATA", ".")) / "sign-digits")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images, truth = flat_folder(Path(options.data), Path(folder) / "images")
        project = Path(folder) / "project"
        Project.create(
            project, ProjectSettings(str(images), tuple(sorted(set(truth.values()))))
        ).close()
        print(json.dumps(measure(project, truth, options.labels, options.pause), indent=2))


def flat_folder(data: Path, images: Path) -> tuple[Path, dict[str, str]]:
    """(folder of all images without their classes, file name -> class)."""
    images.mkdir()
    truth = {}
    for file in sorted(data.glob("*/*")):
        name = f"{len(truth):06d}{file.suffix.lower()}"
        (images / name).write_bytes(file.read_bytes())
        truth[name] = file.parent.name
    return images, truth


def measure(project: Path, truth: dict[str, str], count: int, pause: float) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "upslope",
        "label",
        "serve",
        str(project),
        "--no-browser",
        "--port",
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        started = time.monotonic()
        url = next(m[0] for line in server.stdout if (m := re.search(r"http://\S+", line)))
        root = url.partition("/?")[0]
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        while True:
            try:
                opener.open(url).read()
                break
            except OSError:
                time.sleep(0.05)
        ready = time.monotonic() - started

        def call(path: str, body: Any = None) -> tuple[Any, float]:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(
                root + path, data, {"Content-Type": "application/json"}
            )
            begin = time.perf_counter()
            content = opener.open(request).read()
            return content, time.perf_counter() - begin

        standing = json.loads(call("/api/status")[0])
        answers, pictures = [], []
        seen: set[str] = set()
        accuracy = {}
        started = time.monotonic()
        for done in range(1, count + 1):
            for question in standing["questions"]:
                if question["sample"] not in seen:
                    seen.add(question["sample"])
                    pictures.append(call(f"/image/{question['sample']}")[1])
            time.sleep(pause)
            question = standing["questions"][0]
            body = {"sample": question["sample"], "label": truth[question["id"]], "seconds": pause}
            content, seconds = call("/api/answer", body)
            answers.append(seconds)
            standing = json.loads(content)
            if done % 50 == 0 and standing["model"]["accuracy"]:
                accuracy[done] = [
                    standing["model"]["labels"],
                    standing["model"]["features"],
                    standing["model"]["accuracy"]["value"],
                ]
        minutes = (time.monotonic() - started) / 60
        return {
            "labels_per_minute": round(count / minutes, 1),
            "answers_ms": quantiles(answers),
            "images_ms": quantiles(pictures),
            "seconds_until_the_page_is_there": round(ready, 1),
            "samples": len(truth),
            "accuracy_after": accuracy,
            "load": os.getloadavg()[0],
        }
    finally:
        server.terminate()
        server.wait()


def quantiles(seconds: list[float]) -> dict[str, float]:
    values = 1000 * np.array(seconds)
    return {
        name: round(float(np.percentile(values, q)), 1)
        for name, q in (("median", 50), ("99th", 99), ("worst", 100))
    }


if __name__ == "__main__":
    main()
