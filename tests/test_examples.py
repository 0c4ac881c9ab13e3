"""The examples in the docstrings of what a user calls first."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from prose import EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_gives_what_it_says(name: str) -> None:
    module, _, called = f"upslope.{name}".rpartition(".")
    home = importlib.import_module(module)
    (example,) = doctest.DocTestFinder(recurse=False).find(
        getattr(home, called), called, globs=dict(vars(home))
    )
    assert example.examples
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)
