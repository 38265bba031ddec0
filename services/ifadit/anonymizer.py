"""iFADIT as a whole: move the identity of a face as a key says, and back (ifadit.md 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from services.ifadit import checkpoint
from services.ifadit.arcface import IdentityEncoder
from services.ifadit.attribute_encoder import AttributeEncoder
from services.ifadit.compensation import Compensation
from services.ifadit.configuration import IfaditConfig
from services.ifadit.flow import IdentityTransform, Step
from services.ifadit.latent_mapper import LatentMapper
from services.ifadit.masks import compose, ellipse_mask, soften
from services.ifadit.stylegan2 import Generator
from shared.networkfile import read_network
from shared.problems import Problem, WeightsDamaged

# |T^-1(T(z)) - z| in float64 (ifadit.md 7.4). Healthy weights reach 1e-13; near the bound the scales are saturated.
ROUND_TRIP_BOUND = 1e-5


class IdentityTransformUnstable(Problem):
    """The identity of a face could not be moved so that it can be moved back. Nothing was drawn."""

    code, status, title = "identity_transform_unstable", 500, "The identity transform is numerically unstable."


class Health(NamedTuple):
    """How the identity transform fared, for monitors. One value a face; none of them tells who it is."""

    round_trip: Tensor
    """(B,) largest |T^-1(T(z)) - z| over the coordinates"""
    max_log_scale: Tensor
    """(B,) largest |s| over blocks and coordinates; the clamp of the flow is its bound"""
    norm: Tensor
    """(B,) length of the moved identity; M is trained on lengths near 1"""


@dataclass(frozen=True, repr=False)
class Drawn:
    """One pass through the networks. It holds identities: it must not be logged, stored or sent (repr shows none)."""

    composite: Tensor
    """(B, 3, H, W) in [0, 1]: the drawn face within the mask, the input outside"""
    picture: Tensor
    """(B, 3, H, W) as the generator drew it, about [0, 1], not clipped"""
    embedding: Tensor
    """(B, d) unit length: what E_id read off the input"""
    start: Tensor
    """(B, d) what entered the identity transform: the embedding, or in recovery ICL of it"""
    identity: Tensor
    """(B, d) what the identity transform made of it"""
    attributes: Tensor
    """(B, styles, e)"""
    styles: Tensor
    """(B, styles, w)"""
    health: Health


class Ifadit(nn.Module):
    """The six networks, named as in the paper, and the two directions.

    T runs in float64, E_id and ICL in float32 whatever the autocast mode; E_attr, M and G follow the autocast mode of
    the caller. Every face has its own key: nothing is broadcast from one face to another.
    """

    def __init__(self, config: IfaditConfig) -> None:
        super().__init__()
        self.config = config
        self.E_id = IdentityEncoder(config.identity)
        self.E_attr = AttributeEncoder(config.attributes)
        self.M = LatentMapper(config.mapper)
        self.G = Generator(config.generator)
        self.T = IdentityTransform(config.flow).double()
        self.ICL = Compensation(config.compensation)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Self:
        """The model of a folder, in eval mode and without gradients.

        Raises WeightsDamaged, with the name of the tensor, when the files do not hold what the configuration says.
        """
        try:
            config = IfaditConfig.from_json((folder / checkpoint.CONFIG).read_text())
        except (OSError, ValueError) as error:
            raise WeightsDamaged(f"{checkpoint.CONFIG}: {error}") from error
        with torch.device("meta"):
            model = cls(config)
        for part in checkpoint.PARTS:
            read_network(getattr(model, part), folder / checkpoint.weights_file(part), device)
        return model.eval().requires_grad_(False)

    def save(self, folder: Path, storage: torch.dtype = torch.float32) -> None:
        """Write the model as a folder, which is made if it is not there.

        storage  dtype of the numbers on disk. Half precision rounds: figures of such a model are measured after `load`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for part in checkpoint.PARTS:
            checkpoint.write_network(getattr(self, part), folder / checkpoint.weights_file(part), storage)
        (folder / checkpoint.CONFIG).write_text(self.config.to_json())

    def mean_face_mask(self) -> Tensor:
        """(1, 1, H, W) soft mask of an aligned face whose landmarks are not known."""
        return soften(ellipse_mask(self.config.size, self.config.face), self.config.edge)

    def embed(self, x: Tensor) -> Tensor:
        """E_id: pictures (B, 3, H, W) in [0, 1] -> identities (B, d) of unit length"""
        with _no_autocast(x):
            embedding: Tensor = self.E_id(x.float())
            return embedding

    def compensate(self, embedding: Tensor) -> Tensor:
        """ICL: the identity of an anonymized picture -> what T had produced, (B, d) -> (B, d)"""
        with _no_autocast(embedding):
            compensated: Tensor = self.ICL(embedding.float())
            return compensated

    def condition(self, k: Tensor) -> Tensor:
        """Keys (B, key_dim) -> conditions c = G.style(k), (B, w)"""
        with _no_autocast(k):
            condition: Tensor = self.G.style(k.float())
            return condition

    def move(self, z: Tensor, condition: Tensor) -> Tensor:
        """T: identities (B, d) under conditions (B, w) -> moved identities (B, d), float32, without any check."""
        moved, _ = self.T(z.double(), condition.double())
        return moved.float()

    def move_back(self, z: Tensor, condition: Tensor) -> Tensor:
        """The inverse of T, likewise."""
        moved, _ = self.T.inverse(z.double(), condition.double())
        return moved.float()

    def draw(self, identity: Tensor, attributes: Tensor) -> Tensor:
        """M and G: (B, d), (B, styles, e) -> pictures (B, 3, H, W), about [0, 1], not clipped"""
        return picture_of(self.G(self.M.fuse(identity, attributes)))

    def anonymize(self, x: Tensor, k: Tensor, mask: Tensor | None = None) -> Drawn:
        """Give every face the identity that its key says.

        x     (B, 3, H, W)           aligned faces, RGB in [0, 1]
        k     (B, key_dim)           one key a face
        mask  (B or 1, 1, H, W)      soft mask; the mean face's if absent

        Raises ValueError when the shapes do not fit, IdentityTransformUnstable when a face could not be recovered.
        """
        self._check(x, k)
        embedding = self.embed(x)
        return self._pass(x, k, mask, embedding, embedding, back=False)

    def recover(self, x: Tensor, k: Tensor, mask: Tensor | None = None) -> Drawn:
        """Give anonymized faces their identity back. With another key than the one they were made with, each becomes
        yet another face.

        Arguments, result and errors as of `anonymize`; `mask` must be the one of the anonymization.
        """
        self._check(x, k)
        embedding = self.embed(x)
        return self._pass(x, k, mask, embedding, self.compensate(embedding), back=True)

    def _pass(
        self, x: Tensor, k: Tensor, mask: Tensor | None, embedding: Tensor, start: Tensor, *, back: bool
    ) -> Drawn:
        identity, health = self._moved(start, self.condition(k), back=back)
        attributes = self.E_attr(x)
        styles = self.M.fuse(identity, attributes)
        picture = picture_of(self.G(styles)).float()
        if mask is None:
            mask = self.mean_face_mask().to(x)
        composite = compose(picture.clamp(0, 1), x, mask)
        return Drawn(composite, picture, embedding, start, identity, attributes, styles, health)

    def _moved(self, z: Tensor, condition: Tensor, *, back: bool) -> tuple[Tensor, Health]:
        """T or its inverse, with the way back tried at once."""
        z, condition = z.double(), condition.double()
        there, home = (self.T.inverse_steps, self.T.steps) if back else (self.T.steps, self.T.inverse_steps)
        steps = list(there(z, condition))
        moved = steps[-1].value
        returned = _last(home(moved, condition))
        error = (returned - z).abs().amax(1)
        if not bool((error < ROUND_TRIP_BOUND).all()):
            count = int((~(error < ROUND_TRIP_BOUND)).sum())
            raise IdentityTransformUnstable(f"{count} of {len(z)} faces would not come back within {ROUND_TRIP_BOUND}.")
        scales = torch.stack([step.log_scale.abs().amax(1) for step in steps]).amax(0)
        return moved.float(), Health(error, scales, moved.norm(dim=1))

    def _check(self, x: Tensor, k: Tensor) -> None:
        size, dim = self.config.size, self.config.key_dim
        if x.shape[1:] != (3, size, size):
            raise ValueError(f"faces must be (B, 3, {size}, {size}), not {tuple(x.shape)}")
        if k.shape != (len(x), dim):
            raise ValueError(f"{len(x)} faces need keys of shape ({len(x)}, {dim}), one a face, not {tuple(k.shape)}")


def picture_of(drawn: Tensor) -> Tensor:
    """The generator's range, about [-1, 1], as a picture's, about [0, 1]."""
    return (drawn + 1) / 2


def _last(steps: Iterator[Step]) -> Tensor:
    for step in steps:
        value = step.value
    return value


def _no_autocast(like: Tensor) -> torch.autocast:
    return torch.autocast(like.device.type, enabled=False)
