"""Warnings point at the line of the user's that led to them."""

from __future__ import annotations

import pytest

from upslope.errors import warn_user


@pytest.mark.parametrize("module", ["upslope_ours", "upslopes", "own"])
def test_a_module_whose_name_begins_like_the_package_is_the_users(module: str) -> None:
    names = {"__name__": module, "warn_user": warn_user}
    exec(compile("def call():\n    warn_user('slow')\n", f"{module}.py", "exec"), names)
    with pytest.warns(match="slow") as warnings:
        names["call"]()  # type: ignore[operator]
    assert warnings[0].filename == f"{module}.py"
