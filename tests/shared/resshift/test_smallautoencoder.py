"""The small autoencoder: sizes, colours, and what is left of a picture before it has learnt anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.resshift.smallautoencoder import SMALL, SmallAutoencoder


@pytest.fixture(scope="module")
def autoencoder() -> SmallAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh: SmallAutoencoder = SmallAutoencoder(**SMALL)
        return fresh


@given(height=st.integers(1, 12), width=st.integers(1, 12))
@settings(deadline=None, max_examples=20)
def test_a_latent_has_a_quarter_of_the_sides_and_decodes_to_the_picture_s_size(
    autoencoder: SmallAutoencoder, height: int, width: int
) -> None:
    pixels = torch.zeros(2, 3, 4 * height, 4 * width)
    z = autoencoder.encode(pixels)
    assert z.shape == (2, SMALL["latent_channels"], height, width)
    assert autoencoder.decode(z).shape == pixels.shape
    assert (autoencoder.factor, autoencoder.channels) == (4, 3)


def test_the_first_channels_hold_twice_the_mean_colour(autoencoder: SmallAutoencoder) -> None:
    """The convolutions add the rest: a change of one block's colour moves its latent by the same amount twice."""
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    means = pixels.reshape(1, 3, 4, 4, 4, 4).mean((3, 5))
    added = (
        autoencoder.encode(pixels)[:, :3] - autoencoder.encoder(torch.nn.functional.pixel_unshuffle(pixels, 4))[:, :3]
    )
    torch.testing.assert_close(added, 2 * means, atol=1e-5, rtol=1e-4)


def test_tiles_far_from_their_border_decode_as_in_the_whole(autoencoder: SmallAutoencoder) -> None:
    """Nothing is normalised over the map: what is far away does not matter."""
    z = torch.randn(1, SMALL["latent_channels"], 64, 40, generator=torch.Generator().manual_seed(2))
    reach = 2 * SMALL["decoder_blocks"] + 4  # 3 x 3 convolutions, and the bilinear enlargement
    with torch.no_grad():
        whole, part = autoencoder.decode(z), autoencoder.decode(z[:, :, 16:])
    torch.testing.assert_close(part[:, :, 4 * reach :], whole[:, :, 4 * (16 + reach) :], atol=1e-5, rtol=1e-4)
