"""Which archives are read in part, and which not at all."""

from __future__ import annotations

import pytest

from services.dlsr.intake import unreadable
from services.dlsr.service import PicturesUnreadable


def test_a_twentieth_may_be_unreadable_and_no_more() -> None:
    bad = [[(f"{place}.png", "image_unreadable") for place in range(first, first + 5)] for first in (0, 5)]
    assert [one.id for one in unreadable(iter(bad), 200)] == [f"{place}.png" for place in range(10)]
    with pytest.raises(PicturesUnreadable, match="10 of 199"):
        unreadable(iter(bad), 199)
