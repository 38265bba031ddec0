"""What may differ between two installations, from `TENFOLD_*` in the environment or from secret files.

Every class stands here, so that a name that none of them knows can be refused at start: pydantic alone ignores a
misspelt variable. Nothing else reads the environment, and nothing reads it at import time.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import Field, RedisDsn, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.limits import Limits

_CLIENT_NAMES = frozenset({"TENFOLD_URL", "TENFOLD_API_KEY"})  # read by the SDK, which imports nothing of ours
_SECRETS_DIR = "TENFOLD_SECRETS_DIR"
_FILES_URL = re.compile(r"((s3|gs)://[^/?#]+|az://[^/?#]+/[^/?#]+|file://)(/[^?#]*)?|[^:]+")

Environment = Literal["dev", "staging", "production"]


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TENFOLD_", frozen=True, use_attribute_docstrings=True)

    environment: Environment = "dev"
    """`staging` makes custody's Redis prove that it is set up as for production, and still takes the file KEK.
    `production` refuses that too, one user id for all processes, and research weights."""
    home: Path = Path(".tenfold")
    """State of this installation: files, models, audit trail."""
    files_url: str = ""
    """Where files live: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix`, or a folder;
    default: `files` in `TENFOLD_HOME`."""
    broker_url: RedisDsn
    """Redis of queues and job records."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    accept_research_weights: bool = False
    """Let `production` serve weights that were trained on research-only pictures."""

    @field_validator("files_url")
    @classmethod
    def files_url_names_a_place(cls, url: str) -> str:
        if url and not _FILES_URL.fullmatch(url):
            right = "s3://bucket/prefix, gs://bucket/prefix, az://account/container/prefix, file:///folder or a folder"
            raise ValueError(f"TENFOLD_FILES_URL names no place for files; it is written as {right}")
        return url

    @property
    def files_path(self) -> Path:
        """The folder of files, where `files_url` names no object store."""
        return Path(self.files_url) if self.files_url else self.home / "files"

    @property
    def models_path(self) -> Path:
        return self.home / "models"


class InternalSettings(_Settings):
    """What the processes of one installation share."""

    internal_secret: SecretStr = Field(min_length=32)
    """Signs the calls from the gateway to its services and from workers to the internal door."""
    door_url: str = "http://127.0.0.1:8081"
    """The gateway's internal door: `http://host:port`, or `unix:///path/of.sock`."""


class ServiceSettings(InternalSettings):
    """An API process of one method or more."""

    body_limit_bytes: int = Field(default=64 * 2**20, ge=1)
    """Largest request body."""
    queue_limit: int = Field(default=20_000, ge=1)
    """Waiting jobs a method; beyond it the answer is 503 with Retry-After."""
    output_ttl_s: float = Field(default=24 * 3600, gt=0)
    """How long results stay. Those of sensitive operations stay 15 minutes whatever this says."""


class GatewaySettings(ServiceSettings):
    """The gateway, and the API processes mounted in it."""

    custody_url: RedisDsn
    """Redis of wrapped keys, API keys, leases: append-only, shared with nothing."""
    api_key_pepper: SecretStr = Field(min_length=32)
    """Key of the HMAC under which API keys are stored."""
    kek_path: Path
    """Key-encryption keys of the file provider, mode 0400."""
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    services: str = ""
    """`method=http://host:port` separated by commas; empty: the apps are mounted in this process."""
    upstream_timeout_s: float = Field(default=30, gt=0)
    drain_s: float = Field(default=20, ge=0)
    upload_limit_bytes: int = Field(default=4 * 2**30, ge=1)
    """Largest body of `POST /v1/files`; `body_limit_bytes` is for everything else."""
    patience_s: float = Field(default=60, gt=0)
    """A request that waits for its answer is refused where its job would wait longer in the queue."""
    requests_per_minute: int = Field(default=60_000, ge=0)
    """What an API key may use where nothing else was said of it; 0 is no limit. This one: requests but for cancelling
    and deleting."""
    pixels_per_hour: int = Field(default=10**12, ge=0)
    """Pixels of pictures that come with requests."""
    running_jobs: int = Field(default=20_000, ge=0)
    """Jobs that are not finished."""
    stored_bytes: int = Field(default=100 * 2**30, ge=0)
    """Bytes of all files, sent and made."""

    @property
    def limits(self) -> Limits:
        """What an API key may use where nothing else was said of it."""
        return Limits(self.requests_per_minute, self.pixels_per_hour, self.running_jobs, self.stored_bytes)

    @model_validator(mode="after")
    def custody_is_apart(self) -> Self:
        if self.environment != "dev" and str(self.custody_url) == str(self.broker_url):
            raise ValueError("TENFOLD_CUSTODY_URL and TENFOLD_BROKER_URL name the same Redis; custody needs its own")
        return self


class WorkerSettings(InternalSettings):
    """A worker or a trainer."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:n."""
    torch_threads: int | None = Field(default=None, ge=1)
    """Threads of one torch operation; default: the cores in a worker, 1 in a trainer."""
    model_memory_mib: int = Field(default=2048, ge=1)
    """Models beyond this are unloaded, the one used longest ago first."""
    drain_s: float = Field(default=20, ge=0)
    """How long running jobs may go on after SIGTERM before they are put back."""
    hard_timeout_s: float = Field(default=120, gt=0)
    """A device thread that reports no step for this long is hung, and its process is ended."""
    trainer_idle_s: float = Field(default=30, ge=0)
    """A trainer that was started on demand ends after this long without a job; 0: it stays."""
    heartbeat_path: Path | None = None
    """A file that is touched at every heartbeat that the broker took: what a container's health check looks at."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Where `/metrics` of this process is served; without a port it is not."""


class TracingSettings(BaseSettings):
    """Where spans go, by OpenTelemetry's own names. Its SDK reads the others: headers, timeouts, sampler, batches."""

    model_config = SettingsConfigDict(
        env_prefix="OTEL_", env_ignore_empty=True, frozen=True, use_attribute_docstrings=True
    )

    exporter_otlp_endpoint: str = ""
    """The collector, for OTLP over HTTP: `http://host:4318`. Empty: no spans are made."""
    exporter_otlp_traces_endpoint: str = ""
    """The collector's full address for spans alone."""
    exporter_otlp_protocol: Literal["", "http/protobuf"] = ""
    exporter_otlp_traces_protocol: Literal["", "http/protobuf"] = ""
    traces_exporter: Literal["", "otlp", "none"] = ""
    sdk_disabled: bool = False

    @property
    def is_on(self) -> bool:
        is_named = bool(self.exporter_otlp_endpoint or self.exporter_otlp_traces_endpoint)
        return is_named and self.traces_exporter != "none" and not self.sdk_disabled


_Some = TypeVar("_Some", bound=_Settings)


def known_names() -> frozenset[str]:
    """Every name in the environment that some part of an installation reads."""
    classes = (InternalSettings, ServiceSettings, GatewaySettings, WorkerSettings)
    fields = {name for cls in classes for name in cls.model_fields}
    return frozenset(f"TENFOLD_{name.upper()}" for name in fields) | _CLIENT_NAMES | {_SECRETS_DIR}


def refuse_unknown_names() -> None:
    """Raise `ValueError` for a `TENFOLD_*` name that nothing reads, with the nearest that something does."""
    known = known_names()
    for name in sorted(os.environ):
        if name.startswith("TENFOLD_") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"{name} is not a setting of Tenfold" + (f"; did you mean {near[0]}?" if near else "."))


def load(cls: type[_Some]) -> _Some:
    """Read the settings of one kind of process, once, at its start.

    Secrets come from files named like the variable in lower case in the folder `TENFOLD_SECRETS_DIR`, or else from the
    environment.
    """
    refuse_unknown_names()
    return cls(_secrets_dir=os.environ.get(_SECRETS_DIR))
