"""Figures for TensorBoard: `tensorboard --logdir FOLDER` shows them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upslope.extras import missing_package
from upslope.files import disk_errors, make_folder
from upslope.observers.figures import Figures
from upslope.progress import Progress


class TensorBoard:
    """An observer that writes figures to a folder of TensorBoard, a subfolder per run.

    folder: made where it is not there; a run that goes on adds to it.

    Raises:
        ConfigError: the package `tensorboard` is not installed.
        RunError: the folder cannot be written.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_package("tensorboard", "for its figures", "tensorboard") from error
        self._open = SummaryWriter
        self._folder = Path(folder)
        with disk_errors(self._folder):
            make_folder(self._folder)
        self._writers: dict[str, Any] = {}
        self._figures = Figures(self._write, f"TensorBoard's folder {self._folder}")

    def __call__(self, progress: Progress) -> None:
        """Write the figures of one report."""
        self._figures(progress)

    def close(self) -> None:
        """Write out what is held in memory."""
        self._figures.flush()
        with contextlib.suppress(Exception):  # a disk that is full, of which was told
            for writer in self._writers.values():
                writer.close()
        self._writers = {}

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, run: str, labels: int, figures: Mapping[str, float]) -> None:
        if run not in self._writers:
            self._writers[run] = self._open(str(self._folder / run))
        for name, value in figures.items():
            self._writers[run].add_scalar(name, value, labels)
        self._writers[run].flush()
