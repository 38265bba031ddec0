"""What an operator may choose about a local installation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, RedisDsn, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.settings import Environment, refuse_unknown_names


class LocalSettings(BaseSettings):
    """The names are those of `shared.settings`: what is set for the whole is passed on to every part."""

    model_config = SettingsConfigDict(env_prefix="TENFOLD_", frozen=True, use_attribute_docstrings=True)

    environment: Environment = "dev"
    home: Path = Path(".tenfold")
    port: int = Field(default=8080, ge=0, le=65535)
    """Port on 127.0.0.1; 0 takes a free one."""
    broker_url: RedisDsn | None = None
    """A Redis that runs already; without it one is started."""
    custody_url: RedisDsn | None = None
    drain_s: float = Field(default=20, ge=0)
    log_format: Literal["json", "console"] = "console"
    metrics_port: int | None = Field(default=None, ge=1, le=65534)
    """Port of the worker's `/metrics`; the trainer's is the next one. Without it they show none."""

    @model_validator(mode="after")
    def not_for_production(self) -> Self:
        if self.environment == "production":
            raise ValueError(
                "one machine with one user id for all processes protects no secret from a compromised worker: "
                "TENFOLD_ENVIRONMENT=production needs separate containers"
            )
        return self


def load() -> LocalSettings:
    """Read the environment, once. Raises `ValueError` for a name that nothing reads."""
    refuse_unknown_names()
    return LocalSettings()
