from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.schedule import WINDOW_S, FairShare


def test_the_method_that_used_least_goes_first() -> None:
    fair = FairShare()
    fair.charge("slow", 5.0, now=10.0)
    fair.charge("quick", 0.1, now=10.1)
    assert fair.choose(["slow", "quick"], now=10.2) == "quick"


def test_device_time_is_forgiven_after_the_window() -> None:
    fair = FairShare()
    fair.charge("slow", 5.0, now=0.0)
    fair.charge("quick", 0.1, now=30.0)
    assert fair.choose(["slow", "quick"], now=WINDOW_S + 1) == "slow"


def test_nobody_is_chosen_of_none() -> None:
    assert FairShare().choose([], now=0.0) is None


@given(
    costs=st.lists(st.floats(0.01, 3.0), min_size=2, max_size=4),
    turns=st.integers(50, 150),
)
def test_methods_that_always_have_work_get_equal_shares(costs: list[float], turns: int) -> None:
    fair, now, used = FairShare(), 0.0, [0.0] * len(costs)
    names = [str(i) for i in range(len(costs))]
    for _ in range(turns):
        chosen = int(fair.choose(names, now) or 0)
        now += costs[chosen]
        used[chosen] += costs[chosen]
        fair.charge(names[chosen], costs[chosen], now)
        if now > WINDOW_S:
            break
    assert max(used) - min(used) <= 2 * max(costs)
