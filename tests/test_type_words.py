"""Messages about options name the type and its bounds, in words that are not pydantic's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from upslope.errors import ConfigError
from upslope.registry import check_options

KINDS: list[tuple[Any, Any, str]] = [
    (int, "x", "an integer"),
    (int, 1.5, "an integer"),
    (int, True, "an integer"),
    (Annotated[int, Field(ge=1)], 0, "an integer of at least 1"),
    (Annotated[int, Field(ge=1)], True, "an integer of at least 1"),
    (Annotated[int, Field(ge=8, le=256)], 300, "an integer from 8 to 256"),
    (Annotated[int | None, Field(ge=1)], 0, "an integer of at least 1, or nothing"),
    (Annotated[float, Field(gt=0)], 0, "a number above 0"),
    (Annotated[float, Field(gt=0)], float("nan"), "a number above 0"),
    (Annotated[float, Field(ge=0, lt=1)], 2, "a number of at least 0 and below 1"),
    (Annotated[float, Field(gt=0, le=1)], "all", "a number above 0 and at most 1"),
    (Annotated[float | None, Field(gt=0)], -1, "a number above 0 or nothing"),
    (Annotated[float, Field(gt=0)] | Literal["fitted"], "x", 'a number above 0 or "fitted"'),
    (int | Literal["auto"], "x", 'an integer or "auto"'),
    (str, 3, "text"),
    (str | None, 3, "text or nothing"),
    (bool, "perhaps", "true or false"),
    (Literal["a", "b"], "c", 'one of "a", "b"'),
    (Literal["a", "b"] | None, "c", 'one of "a", "b", or nothing'),
    (list[float] | None, "x", "a list of numbers, or nothing"),
    (list[float], [1, "x"], "a list of numbers"),
    (Annotated[list[str], Field(min_length=2)], ["a"], "a list of at least 2 texts"),
    (list[str | int], [None], "a list of texts or integers"),
    (str | list[str], 3, "text or a list of texts"),
    (tuple[Annotated[int, Field(ge=1)], ...], [0], "a list of integers of at least 1"),
    (tuple[float, float], [1], "a list of 2 numbers"),
    (dict[str, int], 3, "a mapping"),
    (Annotated[str, Field(pattern=":", title="a function")], "x", "a function"),
]


@pytest.mark.parametrize(("hint", "value", "words"), KINDS)
def test_a_message_says_what_was_expected_with_its_bounds(
    hint: Any, value: Any, words: str
) -> None:
    def target(option: Any) -> None: ...

    target.__annotations__["option"] = hint
    with pytest.raises(ConfigError) as caught:
        check_options("here", target, {"option": value}, ())
    assert str(caught.value) == f"here: Expected `option` to be {words} but got {value!r}."


def test_truth_values_are_taken_where_they_are_among_the_types() -> None:
    def target(either: bool | int, only: bool, literal: Literal[True, "some"]) -> None: ...

    given = {"either": True, "only": False, "literal": True}
    assert check_options("here", target, given, ()) == given
