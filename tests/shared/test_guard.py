from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.guard import Guard, guarded, shows_pictures
from shared.jobs import JobRecord
from shared.problems import ImageUnreadable, InvalidRequest, OutOfDistribution, Problem, ServiceUnavailable
from shared.types import Document, Image, Request

ASKED = Guard("dlsr/faces@2", "refuse").shown("job_g", 1)


def looked(**fields: str) -> JobRecord:
    return JobRecord("job_g", "dlsr", {"state": "succeeded", **fields})


def found(*p_values: float, alpha: float = 0.05) -> JobRecord:
    return looked(result=json.dumps({"results": [{"p_value": p} for p in p_values], "alpha": alpha}))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.001, 0.5))
def test_the_strangest_view_counts_and_their_number(p_values: list[float], alpha: float) -> None:
    guard = ASKED.answered(found(*p_values, alpha=alpha))
    assert guard.p_value == min(1.0, min(p_values) * len(p_values))
    assert guard.is_ood == (guard.p_value <= alpha)
    assert not guard.is_open


@pytest.mark.parametrize("views", [1, 3, 30])
def test_with_any_number_of_views_false_alarms_stay_within_alpha(views: int) -> None:
    rng = np.random.default_rng(views)  # the p-values of pictures of the detector's own kind are uniform
    alarms = [ASKED.answered(found(*rng.random(views).tolist(), alpha=0.2)).is_ood for _ in range(500)]
    assert sum(map(bool, alarms)) / len(alarms) <= 0.2 + 4 * (0.2 * 0.8 / 500) ** 0.5


def test_refuse_says_how_strange_it_is() -> None:
    with pytest.raises(OutOfDistribution) as raised:
        ASKED.answered(found(0.01)).check()
    assert raised.value.extras == {"model": "dlsr/faces@2", "p_value": 0.01, "alpha": 0.05}


def test_what_is_usual_or_only_flagged_passes() -> None:
    ASKED.answered(found(0.06)).check()
    Guard("dlsr/faces@2", "flag").shown("job_g", 1).answered(found(0.01)).check()


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (None, ServiceUnavailable),
        (looked(error=json.dumps(ImageUnreadable().body())), ImageUnreadable),
        (looked(lost="2"), Problem),
    ],
)
def test_without_an_answer_refuse_fails_and_flag_notes_why(record: JobRecord | None, kind: type[Problem]) -> None:
    guard = ASKED.answered(record)
    assert guard.error is not None
    assert guard.p_value is None
    with pytest.raises(kind):
        guard.check()
    Guard("dlsr/faces@2", "flag").answered(record).check()


def test_a_record_keeps_it() -> None:
    guard = ASKED.answered(found(0.5))
    assert Guard.of(JobRecord("job_1", "m", {"guard": guard.text()})) == guard
    assert Guard.of(JobRecord("job_1", "m", {})) is None


class Pictures(Request):
    images: list[Image] | None = None
    note: Document | None = None

    def check(self) -> None:
        raise InvalidRequest("as asked for")


def test_a_guarded_request_keeps_its_own_rules() -> None:
    request = guarded(Pictures)
    assert request.__name__ == "Pictures"
    with pytest.raises(InvalidRequest):
        request.model_validate({"guard": "dlsr/faces"}).check()
    assert request.model_validate({}).model_dump() == {
        "images": None,
        "note": None,
        "guard": None,
        "guard_action": "flag",
    }


@pytest.mark.parametrize(
    ("kind", "shows"),
    [(Pictures, True), (list[Image], True), (Image | None, True), (Document, False), (dict[str, int], False)],
)
def test_which_types_may_hold_pictures(kind: Any, shows: bool) -> None:
    assert shows_pictures(kind) is shows
