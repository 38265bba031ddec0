"""Convolutions on maps with the parameters of `nn.Conv2d`, which a frozen network computes in fewer multiplications."""

from __future__ import annotations

from torch import Tensor, nn

from shared.nn import winograd
from shared.nn.pointwise import Pointwise

MIN_WIDTH = 256  # channels from which adding up tiles takes less time than it saves


class Convolution(nn.Conv2d):
    """3 x 3, stride 1, one zero around."""

    _kernel: winograd.Kernel | None = None

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def freeze(self) -> None:
        """Transform the kernel, for a network that no longer learns."""
        if min(self.in_channels, self.out_channels) >= MIN_WIDTH:
            self._kernel = winograd.kernel(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self._kernel is None or self.bias is None or x.shape[2] % 2 or x.shape[3] % 2:
            return super().forward(x)
        return winograd.convolution(x, self._kernel, self.bias)


class PointwiseConvolution(Pointwise):
    """1 x 1 on maps: (B, C, H, W) -> (B, C', H, W), a matrix product over the channels of every position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
