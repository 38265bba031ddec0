"""EfficientNet: paddings, folding, loading, and a cat."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from torch import Tensor

from shared.nn.efficientnet import (
    B4,
    LITE0,
    LITE0_MEAN,
    LITE0_STD,
    EfficientNet,
    EfficientNetConfig,
    SameConv2d,
    lite0_path,
    load_lite0,
    load_trunk,
    rounded_channels,
    same_padding,
)
from shared.problems import WeightsDamaged

TINY = EfficientNetConfig(width=0.3, depth=0.4, activation="swish", squeeze_excite=True, static_px=60)
IMAGENET_CATS = {281, 282, 283, 284, 285}


def tiny(seed: int = 0) -> EfficientNet:
    rng = torch.Generator().manual_seed(seed)
    network = EfficientNet(TINY).eval()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.randn(value.shape, generator=rng)
            value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn * 0.3)
    return network


@given(side=st.integers(1, 500), kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3))
def test_same_padding_gives_one_value_a_stride_and_pads_more_behind(side: int, kernel: int, stride: int) -> None:
    before, after = same_padding(side, kernel, stride)
    assert after - before in (0, 1)
    assert (side + before + after - kernel) // stride + 1 == math.ceil(side / stride)


@given(channels=st.integers(8, 400), width=st.floats(0.2, 3))
def test_channels_are_multiples_of_eight_near_what_was_asked(channels: int, width: float) -> None:
    rounded = rounded_channels(channels, width)
    assert rounded % 8 == 0
    assert rounded >= min(0.9 * channels * width, rounded)
    assert rounded == 8 or 0.9 * channels * width <= rounded <= channels * width + 8


@settings(deadline=None, max_examples=20)
@given(height=st.integers(8, 40), width=st.integers(8, 40), stride=st.integers(1, 2), kernel=st.sampled_from([3, 5]))
def test_a_convolution_pads_as_its_paddings_say(height: int, width: int, stride: int, kernel: int) -> None:
    conv = SameConv2d(2, 3, kernel, stride, 1, None)
    x = torch.randn(1, 2, height, width)
    left, right, top, bottom = conv.paddings(height, width)
    padded = F.conv2d(F.pad(x, (left, right, top, bottom)), conv.weight, stride=stride)
    torch.testing.assert_close(conv(x), padded)
    assert conv(x).shape[-2:] == (math.ceil(height / stride), math.ceil(width / stride))


def test_folding_the_batch_norms_changes_no_number() -> None:
    network, x = tiny(), torch.randn(2, 3, 48, 64)
    taps = (0, 2, 4)
    with torch.inference_mode():
        for plain, folded in zip(network(x, taps), network.folded()(x, taps), strict=True):
            torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


def test_b4_has_the_widths_and_blocks_of_its_paper() -> None:
    with torch.device("meta"):
        network = EfficientNet(B4)
    assert len(network._blocks) == 32
    widths = [len(network.get_parameter(f"_blocks.{at}._project_conv.weight")) for at in (1, 5, 9, 21, 31)]
    assert widths == [24, 32, 56, 160, 448]


class TestLoading:
    def test_the_head_is_passed_over_and_counters_may_lack(self) -> None:
        state = {name: value for name, value in tiny().state_dict().items() if not name.endswith("_tracked")}
        loaded = load_trunk(TINY, state | {"_fc.bias": torch.zeros(10)}, "file")
        torch.testing.assert_close(loaded._conv_stem.weight, state["_conv_stem.weight"])

    def test_a_missing_an_unknown_and_a_misshapen_tensor_are_named(self) -> None:
        state = dict(tiny().state_dict())
        with pytest.raises(WeightsDamaged, match=r"_blocks\.9\.x is unknown"):
            load_trunk(TINY, state | {"_blocks.9.x": torch.zeros(1)}, "file")
        with pytest.raises(WeightsDamaged, match=r"_bn0\.bias is \(3,\)"):
            load_trunk(TINY, state | {"_bn0.bias": torch.zeros(3)}, "file")
        del state["_bn0.weight"]
        with pytest.raises(WeightsDamaged, match=r"_bn0\.weight is missing"):
            load_trunk(TINY, state, "file")


def classified(network: EfficientNet, x: Tensor) -> Tensor:
    """The published head on the last map."""
    head = torch.load(lite0_path(), weights_only=True)
    (y,) = network(x, (15,))
    y = F.conv2d(y, head["_conv_head.weight"])
    mean, var, weight, bias = (head[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    y = F.relu6(F.batch_norm(y, mean, var, weight, bias, eps=1e-3)).mean((2, 3))
    return F.linear(y, head["_fc.weight"], head["_fc.bias"])


def test_lite0_with_the_head_of_its_package_sees_a_cat() -> None:
    photo = Image.fromarray(data.chelsea()).crop((75, 0, 375, 300)).resize((224, 224), Image.Resampling.BILINEAR)
    x = torch.from_numpy((np.asarray(photo, dtype=np.float32) - LITE0_MEAN) / LITE0_STD).permute(2, 0, 1)[None]
    network = load_lite0()
    assert network.config == LITE0
    with torch.inference_mode():
        logits = classified(network, x)[0]
    assert int(logits.argmax()) in IMAGENET_CATS
    assert float(logits.softmax(0)[sorted(IMAGENET_CATS)].sum()) > 0.7
