"""What is said where Ray does not start: by its own errors, of which the package is not needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from upslope.distributed.ray_engine import RayEngine, _connect
from upslope.errors import RunError


@pytest.mark.parametrize(
    ("error", "address", "words"),
    [
        (
            Exception("It timed out.\nSee"),
            None,
            r"start .* got: It timed out\. Run",
        ),
        (TimeoutError(), None, r"start .* got: TimeoutError\. Run the same command again"),
        (
            ConnectionError("no such host."),
            "10.0.0.7:6379",
            r"at 10.*no such host\. Look at `ray",
        ),
    ],
    ids=["of two lines", "without words", "by its address"],
)
def test_a_cluster_that_does_not_start_is_told_with_what_to_do(
    error: Exception, address: str | None, words: str
) -> None:
    def init(**_: Any) -> None:
        raise error

    with pytest.raises(RunError, match=words) as caught:
        _connect(SimpleNamespace(init=init), RayEngine(workers=1), address)
    assert ("RAY_ADDRESS" in str(caught.value)) == (address is not None)
