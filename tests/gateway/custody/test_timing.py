"""T2: how long a refusal takes does not tell an existing key of another tenant, or a destroyed one, from no key."""

from __future__ import annotations

import gc
import math
import random
import time
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.custody.service import Custody
from tests.gateway.custody.support import Http, Person, key_for

pytestmark = pytest.mark.anyio
CALLS = 2000
UNKNOWN = "key_" + "0" * 26


def ks_p_value(one: Sequence[float], two: Sequence[float]) -> float:
    """The two-sample Kolmogorov-Smirnov test: how likely a distance this large is, were both of one distribution.

    The asymptotic series of Kolmogorov's distribution with Stephens' correction (Numerical Recipes, 14.3.3).
    """
    first, second = sorted(one), sorted(two)
    distance = max(
        abs(bisect_right(first, x) / len(first) - bisect_right(second, x) / len(second)) for x in (*first, *second)
    )
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    series = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return 1.0 if scaled < 0.2 else min(1.0, max(0.0, sum(series)))


class TestTheTestItself:
    def test_one_distribution_passes(self) -> None:
        rng = random.Random(1)  # noqa: S311
        p_values = [
            ks_p_value([rng.gauss(0, 1) for _ in range(400)], [rng.gauss(0, 1) for _ in range(400)]) for _ in range(60)
        ]
        assert sum(p < 0.05 for p in p_values) <= 8
        assert max(p_values) > 0.5

    def test_a_shift_of_a_fifth_of_the_spread_does_not(self) -> None:
        rng = random.Random(2)  # noqa: S311
        one = [rng.gauss(0, 1) for _ in range(CALLS)]
        assert ks_p_value(one, [rng.gauss(0.2, 1) for _ in range(CALLS)]) < 1e-6

    def test_the_published_percentage_points(self) -> None:
        """1.36 and 1.63 over the root of n are the 5 % and 1 % points for large samples."""
        n = 20_000
        for point, p in ((1.358, 0.05), (1.628, 0.01)):
            shift = round(point / math.sqrt(n / 2) * n)
            one, two = range(n), range(shift, n + shift)
            assert ks_p_value(one, two) == pytest.approx(p, rel=0.05)


@pytest.mark.slow
async def test_a_refusal_takes_as_long_whatever_is_behind_the_name(
    custody: Custody,
    http: Http,
    custodian: Person,
    second_custodian: Person,
    stranger: Person,
    clock: Any,
) -> None:
    theirs = (await key_for(custody, custodian)).key_id
    gone = await key_for(custody, stranger)
    helper = Person(*await custody.principals.create("other", "custodian"))
    await custody.keys.destroy(stranger.caller, gone.key_id, reason="x")
    await custody.keys.destroy(helper.caller, gone.key_id, reason="x")
    clock.advance(15 * 86400)
    await custody.sweep()
    names = {
        "unknown": UNKNOWN,
        "another tenant's": theirs,
        "destroyed": gone.key_id,
        "unknown again": UNKNOWN[:-1] + "1",
    }
    took: dict[str, list[float]] = {name: [] for name in names}
    order = [name for name in names for _ in range(CALLS)]
    random.Random(3).shuffle(order)  # noqa: S311
    gc.disable()
    try:
        for name in order:
            began = time.perf_counter()
            answer = await http.get(f"/v1/keys/{names[name]}", stranger)
            took[name].append(time.perf_counter() - began)
            assert answer.status_code == 404
    finally:
        gc.enable()
    p_values = {name: ks_p_value(took["unknown"], took[name]) for name in names if name != "unknown"}
    assert min(p_values.values()) > 0.01 / len(p_values), p_values  # three questions, one in a hundred false alarms
