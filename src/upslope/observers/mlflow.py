"""Figures for MLflow: `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db` shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upslope.errors import RunError, first_line
from upslope.extras import import_package
from upslope.files import disk_errors, json_digest, make_folder
from upslope.observers.figures import Figures
from upslope.progress import Progress

TAG = "upslope.run"
"""The tag by which a run that goes on finds what it wrote before."""

FOLDER_TAG = "upslope.folder"
"""The tag that says, to people, which folder of runs it is."""


class MLflow:
    """An observer that writes figures to MLflow, one of its runs per run of ours.

    store: a local folder, which gets a database `mlflow.db`; or the address of a server, as
    MLflow's tracking URI. experiment: the name of its experiment there, made where it is not there.
    runs: the folder of the runs. Runs of one name are told apart by it where several folders share
    a store; without it they are taken for one run that goes on.

    Raises:
        ConfigError: the package `mlflow` is not installed.
        RunError: the folder cannot be written, or the server does not answer.
    """

    def __init__(
        self,
        store: Path | str = "mlruns",
        experiment: str = "upslope",
        *,
        runs: Path | str | None = None,
    ) -> None:
        tracking = import_package("mlflow.tracking", "to write to MLflow", "mlflow")
        address, artifacts = str(store), None
        if "://" not in address:
            folder = Path(store).absolute()
            with disk_errors(folder):
                make_folder(folder)
            address, artifacts = (
                f"sqlite:///{folder / 'mlflow.db'}",
                (folder / "artifacts").as_uri(),
            )
        try:
            self._client = tracking.MlflowClient(tracking_uri=address)
            existing = self._client.get_experiment_by_name(experiment)
            self._experiment: str = (
                existing.experiment_id
                if existing
                else self._client.create_experiment(experiment, artifact_location=artifacts)
            )
        except Exception as error:  # its own errors, those of requests, and of databases
            raise RunError(
                f"Expected MLflow's store {address} to answer but got {type(error).__name__}: "
                f"{first_line(error)}. Start its server, or give another store."
            ) from error
        self._folder = "" if runs is None else str(Path(runs).absolute())
        self._runs: dict[str, Any] = {}
        self._figures = Figures(self._write, f"MLflow, {address}")

    def __call__(self, progress: Progress) -> None:
        """Write the figures of one report."""
        self._figures(progress)

    def close(self) -> None:
        """Mark the runs as ended; they can be gone on with."""
        self._figures.flush()
        with contextlib.suppress(Exception):  # a server that is gone, of which was told
            for run in self._runs.values():
                self._client.set_terminated(run)
        self._runs = {}

    def __enter__(self) -> MLflow:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, run: str, labels: int, figures: Mapping[str, float]) -> None:
        if run not in self._runs:
            self._runs[run] = self._run(run)
        id_ = self._runs[run]
        for name, value in figures.items():
            self._client.log_metric(id_, name, value, step=labels)

    def _run(self, run: str) -> str:
        name = run or "run"
        identity = json_digest([self._folder, name]) if self._folder else name
        earlier = self._client.search_runs([self._experiment], f"tags.`{TAG}` = '{identity}'")
        if earlier:
            return str(earlier[0].info.run_id)
        tags = {TAG: identity, **({FOLDER_TAG: self._folder} if self._folder else {})}
        new_run = self._client.create_run(self._experiment, run_name=name, tags=tags)
        return str(new_run.info.run_id)
