"""The campaign's short form: a part of every family. The long form is `benchmarks/exactness.py`."""

from __future__ import annotations

import dataclasses

import pytest

from campaign.judge import NORMS, try_case
from campaign.registry import every_case
from short_forms import mark_rest_long

CASES = [case for case in every_case() if case.in_suite]
TITLES = [case.title for case in CASES]


# Warnings are the networks' own; those of the library are recorded and judged.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index", mark_rest_long(range(len(CASES)), 4), ids=TITLES)
def test_every_answer_is_exact_or_refused(index: int) -> None:
    case = CASES[index]
    if case.family == "transformers":
        case = dataclasses.replace(case, sizes=case.sizes[1:])
    verdicts = try_case(case, norms=(NORMS[index % 2],))
    assert all(v.good for v in verdicts), verdicts
    assert any(v.outcome != "not tried" for v in verdicts), verdicts
