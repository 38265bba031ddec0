"""All sizes of one iFADIT model in one object, and its form on disk."""

from __future__ import annotations

import dataclasses
import json

from pydantic import TypeAdapter, ValidationError

from services.ifadit import arcface, attribute_encoder, compensation, flow, latent_mapper, stylegan2
from services.ifadit.arcface import IdentityEncoderConfig
from services.ifadit.attribute_encoder import AttributeEncoderConfig
from services.ifadit.compensation import CompensationConfig
from services.ifadit.flow import FlowConfig
from services.ifadit.keys import KeyScheme
from services.ifadit.latent_mapper import LatentMapperConfig
from services.ifadit.masks import EdgeConfig, EllipseConfig
from services.ifadit.stylegan2 import GeneratorConfig


@dataclasses.dataclass(frozen=True)
class IfaditConfig:
    """What distinguishes one model from another, besides its weights."""

    identity: IdentityEncoderConfig
    attributes: AttributeEncoderConfig
    mapper: LatentMapperConfig
    generator: GeneratorConfig
    flow: FlowConfig
    compensation: CompensationConfig
    key_scheme: KeyScheme
    edge: EdgeConfig
    """How the hard mask of a face is softened."""
    face: EllipseConfig
    """The mask of a face without landmarks."""

    def __post_init__(self) -> None:
        d, w = self.identity.embedding, self.generator.style_dim
        facts = {
            "flow.dim": (self.flow.dim, d),
            "flow.condition": (self.flow.condition, w),
            "compensation.layers": (self.compensation.layers[:: len(self.compensation.layers) - 1], (d, d)),
            "mapper.layers": (self.mapper.layers[:: len(self.mapper.layers) - 1], (d + self.attributes.style_dim, w)),
            "attributes.styles": (self.attributes.styles, self.generator.styles),
            "attributes.input_size": (self.attributes.input_size, self.generator.size),
        }
        if wrong := [f"{name} is {is_}, not {must}" for name, (is_, must) in facts.items() if is_ != must]:
            raise ValueError("the parts do not fit together: " + "; ".join(wrong))

    @property
    def size(self) -> int:
        """Side of the aligned pictures in pixels."""
        return self.generator.size

    @property
    def key_dim(self) -> int:
        """Coordinates of a key vector."""
        return self.generator.style_dim

    def to_json(self) -> str:
        """Every field, indented; the same object always gives the same text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> IfaditConfig:
        """The object that `to_json` wrote. Raises ValueError for a missing, unknown or mistyped field."""
        try:
            config = TypeAdapter(IfaditConfig).validate_json(text, strict=True)
        except ValidationError as error:
            raise ValueError(f"not a configuration of iFADIT: {error}") from error
        if json.loads(config.to_json()) != json.loads(text):
            raise ValueError("not a configuration of iFADIT: there are fields that no part has")
        return config


PAPER = IfaditConfig(
    identity=arcface.PAPER,
    attributes=attribute_encoder.PAPER,
    mapper=latent_mapper.PAPER,
    generator=stylegan2.PAPER,
    flow=flow.PAPER,
    compensation=compensation.PAPER,
    key_scheme="v1-uniform",
    edge=EdgeConfig(dilate=5, gaussian=15, sigma=2.6),
    face=EllipseConfig(center=(0.5, 0.575), half_axes=(0.38, 0.45)),
)
