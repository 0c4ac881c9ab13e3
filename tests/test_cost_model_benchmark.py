"""The benchmark of the convolutions' cost model: its fits, and its comparison of methods."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))

import cost_model as script  # noqa: E402
from upslope.gradnorm.kernels.conv import cost_model  # noqa: E402
from upslope.gradnorm.kernels.conv.methods import METHODS  # noqa: E402


def test_fits_recover_the_constants_that_made_the_costs() -> None:
    fitted = set()
    for names, cases in script.experiments():
        others = {name: 3 * getattr(cost_model, name) for name in names}
        with mock.patch.multiple(cost_model, **others):
            costs = [case.cost() for case in cases]
        assert script.fit(names, cases, costs) == pytest.approx(list(others.values()), rel=1e-6)
        fitted.update(names)
    constants = {name for name, value in vars(cost_model).items()
                 if name.isupper() and isinstance(value, int | float)}  # fmt: skip
    assert fitted == constants - {"WORTH", "TRAFFIC"}  # a limit, and a GPU's, from data sheets


def test_the_fastest_method_is_one_that_applies() -> None:
    chosen, fastest, ratio = script.choice(script.Layer(4, 6, 5), 1e-4)
    assert {chosen, fastest} <= METHODS.keys()
    assert ratio >= 1
