"""What a guard is shown of a photograph."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch

from services.ifadit.pipeline import LOOKS_KEPT, IfaditPipeline
from services.ifadit.service import AnonymizeRequest, Box, VerifyRequest
from shared.images import Picture
from shared.types import Image

WEIGHTS = Path(__file__).parents[3] / "services/ifadit/weights/small"


@pytest.fixture(scope="module")
def pipeline() -> IfaditPipeline:
    return IfaditPipeline.load(WEIGHTS, torch.device("cpu"))


def image(pixels: Any) -> Image:
    """As a request has it: with the digest of its bytes."""
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Image.of(Picture(np.ascontiguousarray(pixels))).model_copy(update={"sha256": digest})


def shown(pipeline: IfaditPipeline, pixels: Any, **fields: Any) -> list[tuple[int, ...]]:
    request = AnonymizeRequest.model_construct(image=image(pixels), faces=fields.get("faces"))
    return [view.pixels.shape for view in pipeline.views(request)]


def test_every_face_is_cut_out_and_nothing_else_is_shown(pipeline: IfaditPipeline) -> None:
    astronaut = skimage.data.astronaut()
    size = (pipeline.size, pipeline.size, 3)
    assert shown(pipeline, astronaut) == [size]
    assert shown(pipeline, np.concatenate([astronaut, astronaut[:, ::-1]], axis=1)) == [size, size]


def test_where_no_face_is_found_it_is_the_whole_picture(pipeline: IfaditPipeline) -> None:
    coffee = skimage.data.coffee()
    assert shown(pipeline, coffee) == [coffee.shape]


def test_a_named_face_that_cannot_be_cut_out_is_shown_with_all_around_it(pipeline: IfaditPipeline) -> None:
    coffee = skimage.data.coffee()
    assert shown(pipeline, coffee, faces=[Box(x=10, y=10, width=40, height=40)]) == [coffee.shape]


def test_of_two_pictures_both_are_shown(pipeline: IfaditPipeline) -> None:
    request = VerifyRequest.model_construct(image=image(skimage.data.astronaut()), other=image(skimage.data.coffee()))
    assert [view.pixels.shape[0] for view in pipeline.views(request)] == [pipeline.size, 400]


def test_faces_that_a_guard_was_shown_are_not_searched_for_again(
    pipeline: IfaditPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    find = pipeline.finder.find

    def counted(*args: Any, **kwargs: Any) -> Any:
        looks.append(1)
        return find(*args, **kwargs)

    monkeypatch.setattr(pipeline, "finder", SimpleNamespace(find=counted))
    first, second = (image(skimage.data.astronaut()).model_copy(update={"sha256": name * 64}) for name in ("a", "b"))
    pipeline.views(AnonymizeRequest.model_construct(image=first, faces=None))
    known, found = pipeline._places(first, None), pipeline._places(second, None)
    assert len(looks) == 2
    assert [place.box for place in known] == [place.box for place in found]
    pipeline._places(first, None)
    assert len(looks) == 3, "it is remembered once"


def test_no_more_is_remembered_than_some_photographs(pipeline: IfaditPipeline) -> None:
    shown = image(skimage.data.coffee())
    for number in range(LOOKS_KEPT + 5):
        named = [Box(x=10 + number, y=10, width=40, height=40)]
        pipeline.views(AnonymizeRequest.model_construct(image=shown, faces=named))
    assert len(pipeline._looked_at) == LOOKS_KEPT
