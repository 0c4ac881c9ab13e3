"""The option `--observe`: figures for TensorBoard and MLflow beside the progress that is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from upslope.errors import ConfigError
from upslope.progress import Observer

NAMES = ("tensorboard", "mlflow")


@contextmanager
def observers(places: Mapping[str, str], folder: Path) -> Iterator[tuple[Observer, ...]]:
    """Yield the observers of these names, and close them at the end.

    places: as `observer_places` returns them. folder: of the runs.

    Raises:
        ConfigError: a package that is not installed.
        RunError: a folder that cannot be written.
    """
    with ExitStack() as stack:
        observers_of_run: list[Observer] = []
        for name, place in places.items():
            from upslope.observers import MLflow, TensorBoard

            if name == "tensorboard":
                observers_of_run.append(stack.enter_context(TensorBoard(place)))
            else:
                observers_of_run.append(stack.enter_context(MLflow(place, runs=folder)))
        yield tuple(observers_of_run)


def observer_places(options: Sequence[str], folder: Path) -> dict[str, str]:
    """Return name -> place of the observers that the options name; nothing is opened.

    options: "NAME" or "NAME=PLACE"; the place is a folder or, of mlflow, the address of a server.
    folder: of the runs; without a place, figures go to its subfolder of the observer's name.

    Raises:
        ConfigError: an unknown name, or one that is there twice.
    """
    places: dict[str, str] = {}
    for option in options:
        name, equals, place = option.partition("=")
        if name not in NAMES or (equals and not place):
            raise ConfigError(
                f"Expected --observe to be {' or '.join(NAMES)}, or one with a place as "
                f"tensorboard=FOLDER, but got {option!r}."
            )
        if name in places:
            raise ConfigError(f"Expected each --observe once but got {name} twice. Leave one out.")
        places[name] = place or str(folder / name)
    return places
