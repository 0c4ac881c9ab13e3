from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import upslope


def test_public_names_are_these() -> None:
    assert upslope.__all__ == [
        "ComparisonResult",
        "Experiment",
        "ExperimentSettings",
        "PoolView",
        "Progress",
        "Query",
        "RunResult",
        "Selection",
        "Splits",
        "Strategy",
        "TrainingSettings",
        "UpslopeError",
        "__version__",
        "compare",
        "gradient_norms",
        "query",
        "read_run",
    ]


@pytest.mark.parametrize("name", upslope.__all__)
def test_each_is_there_and_documented(name: str) -> None:
    value = getattr(upslope, name)
    assert name in dir(upslope)
    if name != "__version__":
        assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'gradnorms'"):
        upslope.gradnorms  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, upslope; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_names_that_the_rooms_promise_are_there() -> None:
    rooms = [room.name for room in pkgutil.iter_modules(upslope.__path__) if room.ispkg]
    for name in sorted(rooms):
        room = importlib.import_module(f"upslope.{name}")
        missing = [one for one in getattr(room, "__all__", ()) if not hasattr(room, one)]
        assert not missing, f"{name}: {missing}"
