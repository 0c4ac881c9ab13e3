"""Commands start and end without searches for garbage that find nothing."""

from __future__ import annotations

import gc
import subprocess
import sys
import types

import pytest

from upslope.startup import importing_libraries, leave_uncollected

_CIRCLE = """
from upslope.startup import end_without_collection

class Circle:
    def __init__(self): self.itself = self
    def __del__(self): print("searched")

{start}
Circle()
"""


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_paused_and_then_as_before(enabled: bool) -> None:
    """Also where the imports fail."""

    def fail() -> None:
        meanwhile.append(gc.isenabled())
        with importing_libraries():
            meanwhile.append(gc.isenabled())
            raise ImportError

    meanwhile: list[bool] = []
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ImportError):
            fail()
        assert [*meanwhile, gc.isenabled()] == [enabled, False, enabled]
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.parametrize(
    ("start", "printed"), [("", "searched\n"), ("end_without_collection()", "")]
)
def test_the_interpreter_ends_without_a_search(start: str, printed: str) -> None:
    """An object in a circle of references is found by a search alone."""
    program = [sys.executable, "-c", _CIRCLE.format(start=start)]
    assert subprocess.run(program, capture_output=True, text=True, check=True).stdout == printed


def test_libraries_that_list_what_is_left_at_the_end_have_it_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside triton, every command ended with thirty lines of "nanobind: leaked"."""
    calls: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    leave_uncollected()
    assert calls == []
    monkeypatch.delitem(sys.modules, "triton")
    leave_uncollected()
    assert calls == ["freeze"]
