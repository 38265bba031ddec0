"""What the commands need to know of an installation. Nothing is compulsory: `doctor` says what is missing."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, RedisDsn
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.settings import Environment, refuse_unknown_names


class AdminSettings(BaseSettings):
    """The names and meanings are those of `shared.settings`."""

    model_config = SettingsConfigDict(env_prefix="TENFOLD_", frozen=True)

    environment: Environment = "dev"
    home: Path = Path(".tenfold")
    broker_url: RedisDsn | None = None
    custody_url: RedisDsn | None = None
    kek_path: Path | None = None
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)

    @property
    def models_path(self) -> Path:
        return self.home / "models"


def load() -> AdminSettings:
    """Read the environment and the secret files. Raises `ValueError` for a name that nothing reads."""
    refuse_unknown_names()
    return AdminSettings(_secrets_dir=os.environ.get("TENFOLD_SECRETS_DIR"))
