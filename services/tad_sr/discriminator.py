"""The time-aware discriminator in latent space (tad-sr.md 2.2): heads on features of the frozen teacher.

Used in training only. Names as in the reference, spectral norms included (`weight_orig`, `weight_u`, `weight_v`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from shared.resshift.tokens import NORM_GROUPS
from shared.resshift.unet import start_at_zero, timestep_embedding

HEAD_GROUPS = 4
SLOPE = 0.2
KERNEL = 9


def spectral_conv(n_in: int, n_out: int, kernel: int) -> nn.Module:
    """A convolution along the positions, wrapping around, of spectral norm one: an iteration a training step."""
    conv = nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2, padding_mode="circular")
    return spectral_norm(conv, n_power_iterations=1, eps=1e-12)


def _layer(channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        spectral_conv(channels, channels, kernel), nn.GroupNorm(HEAD_GROUPS, channels), nn.LeakyReLU(SLOPE)
    )


class ResidualBlock(nn.Module):
    """A layer beside its input, at the input's variance."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return (self.fn(x) + x) / 2**0.5


class DiscHead(nn.Module):
    """(B, C, N) -> (B, c_dim N) logits"""

    def __init__(self, channels: int, c_dim: int) -> None:
        super().__init__()
        self.main = nn.Sequential(_layer(channels, 1), ResidualBlock(_layer(channels, KERNEL)))
        self.cls = spectral_conv(channels, c_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.cls(self.main(x)).flatten(1)


class TimeAwareDiscriminator(nn.Module):
    """A head for each feature map; the time at which the features were taken scales and shifts them first."""

    def __init__(self, channels: Sequence[int], *, embed_dim: int, c_dim: int) -> None:
        """
        channels   of the feature maps, `UNetModelSwin.feature_channels`
        embed_dim  of the sinusoids of time: the teacher's model_channels
        c_dim      logits a position
        """
        super().__init__()
        self.embed_dim = embed_dim
        self.emb_layers = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * c)) for c in channels)
        self.out_layers = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(NORM_GROUPS, c), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(c, c, 3, padding=1))
            for c in channels
        )
        for k in range(len(channels)):
            start_at_zero(self.get_submodule(f"out_layers.{k}.3"))
        self.heads = nn.ModuleList(DiscHead(c, c_dim) for c in channels)

    def forward(self, features: Sequence[Tensor], t: Tensor) -> list[Tensor]:
        """features  (B, C_k, h_k, w_k) each; t (B,) as trained; returns (B, c_dim h_k w_k) logits each"""
        sinusoids = timestep_embedding(t, self.embed_dim).to(features[0].dtype)
        logits = []
        for feature, emb_layers, out_layers, head in zip(
            features, self.emb_layers, self.out_layers, self.heads, strict=True
        ):
            scale, shift = emb_layers(sinusoids)[:, :, None, None].chunk(2, dim=1)
            norm, *rest = out_layers.children()
            # Contiguous: GroupNorm's gradient crashes where a channels-last input needs none (torch 2.13 on a CPU).
            h = norm(feature.contiguous()) * (1 + scale) + shift
            for layer in rest:
                h = layer(h)
            logits.append(head(h.flatten(2)))
        return logits


PAPER_C_DIM = 64
