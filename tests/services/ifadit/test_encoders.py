from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.ifadit import arcface, attribute_encoder
from services.ifadit.arcface import IdentityEncoder, IdentityEncoderConfig
from services.ifadit.attribute_encoder import AttributeEncoder
from services.ifadit.irse import BottleneckUnit, IrSeConfig
from tests.services.ifadit.tiny import TINY, randomize

X = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_embeddings_have_unit_length() -> None:
    encoder = IdentityEncoder(TINY.identity).eval()
    randomize(encoder, 1)
    torch.testing.assert_close(encoder(X).norm(dim=1), torch.ones(3))


def test_crop_and_pool_are_taken_before_the_network() -> None:
    config = dataclasses.replace(TINY.identity, crop=(2, 14, 4, 16), input_size=8)
    prepared = IdentityEncoder(config).prepare(X)
    assert prepared.shape == (3, 3, 8, 8)
    torch.testing.assert_close(prepared, 2 * F.adaptive_avg_pool2d(X[:, :, 2:14, 4:16], 8) - 1)


def test_a_small_identity_encoder_for_64_pixels_can_be_described() -> None:
    trunk = IrSeConfig(widths=(16, 32, 64, 128), units=(1, 1, 2, 1), se_reduction=16, norm=True)
    encoder = IdentityEncoder(IdentityEncoderConfig(trunk, None, 64, 128, 0.4, mirrored=False)).eval()
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, 128)


def test_a_mirrored_encoder_answers_alike_to_a_face_and_its_mirror_image() -> None:
    plain = IdentityEncoder(TINY.identity).eval()
    randomize(plain, 2)
    mirrored = IdentityEncoder(dataclasses.replace(TINY.identity, mirrored=True)).eval()
    mirrored.load_state_dict(plain.state_dict())
    torch.testing.assert_close(mirrored(X), mirrored(X.flip(3)))
    torch.testing.assert_close(mirrored(X), F.normalize(plain(X) + plain(X.flip(3))))
    assert not torch.allclose(plain(X), plain(X.flip(3)))


def test_an_encoder_without_norms_behaves_alike_in_training_and_evaluation() -> None:
    encoder = AttributeEncoder(TINY.attributes)
    assert torch.equal(encoder.train()(X), encoder.eval()(X))
    assert encoder(X).shape == (3, 6, 5)


def bias_of(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def test_style_rows_read_the_map_that_the_ranges_name() -> None:
    encoder = AttributeEncoder(TINY.attributes).eval().requires_grad_(False)
    before = encoder(X)
    nn.init.normal_(bias_of(encoder.latlayer2))  # feeds the fine map alone
    assert torch.equal(encoder(X)[:, :4], before[:, :4])
    assert (encoder(X)[:, 4:] != before[:, 4:]).any()
    before = encoder(X)
    nn.init.normal_(bias_of(encoder.latlayer1))  # feeds the middle map, and through it the fine one
    assert torch.equal(encoder(X)[:, :2], before[:, :2])
    assert (encoder(X)[:, 2:4] != before[:, 2:4]).any()


def test_a_subsampling_shortcut_is_a_max_pool_of_kernel_one() -> None:
    unit = BottleneckUnit(4, 4, 2, IrSeConfig((4,), (1,), None, norm=True)).eval()
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(unit(x), unit.res_layer(x) + F.max_pool2d(x, 1, 2))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"taps": (6, 20, 24)}, "taps"), ({"taps": (20, 6, 23)}, "taps"), ({"coarse_end": 9}, "coarse_end")],
)
def test_an_attribute_encoder_that_cannot_be_built_is_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(attribute_encoder.PAPER, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "trunk", [{"widths": (4,), "units": (1, 1)}, {"widths": (4,), "units": (0,)}, {"widths": (8,), "units": (1,)}]
)
def test_a_trunk_that_cannot_be_built_is_refused(trunk: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"widths|se_reduction"):
        IrSeConfig(**trunk, se_reduction=16, norm=True)


def test_an_input_that_does_not_halve_as_often_as_needed_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        IdentityEncoder(dataclasses.replace(arcface.PAPER, input_size=120))
