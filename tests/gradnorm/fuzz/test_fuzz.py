"""Random networks, a few; ten thousand go through `benchmarks/exactness.py`."""

from __future__ import annotations

import pytest
from campaign.judge import try_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.generate import plan, smaller

pytestmark = pytest.mark.filterwarnings("ignore")  # the networks' own


def fails(drawn) -> bool:
    return not all(v.good for v in try_case(drawn.case(), drawn.seed))


@pytest.mark.parametrize("count", [4, pytest.param(25, marks=pytest.mark.long)])
def test_every_answer_is_exact_or_refused(count: int) -> None:
    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.integers(0, 2**31 - 1))
    def try_networks(seed: int) -> None:
        drawn = plan(seed)
        if fails(drawn):
            pytest.fail(
                f"a random network is wrong; to see it again:\n\n{smaller(drawn, fails).script()}"
            )

    try_networks()


def test_a_plan_is_the_same_each_time_and_its_script_runs() -> None:
    drawn = plan(3)
    assert drawn == plan(3)
    assert drawn != plan(4)
    names: dict = {}
    exec(drawn.script(), names)
    assert names["plan"] == drawn


def test_the_judge_calls_wrong_norms_wrong_and_sees_mixing(monkeypatch) -> None:
    import torch
    from campaign import judge
    from campaign.case import Case, vectors
    from campaign.mixing import With, running_total
    from torch import nn

    plain = Case("plain", "judge", lambda: nn.Linear(4, 3), vectors(4))
    mixing = Case("mixing", "judge", lambda: With(running_total, 1), vectors(4))
    monkeypatch.setattr(judge, "gradient_norms", lambda model, x, loss, norm: torch.ones(len(x)))
    assert {v.outcome for v in judge.try_case(plain)} == {"wrong"}
    verdicts = judge.try_case(mixing)
    assert {(v.outcome, v.mixes) for v in verdicts} == {("wrong", True)}
