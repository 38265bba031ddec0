"""The parts of a running gateway, as its routes take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from gateway.catalogue import Catalogue
from gateway.custody.service import Custody
from gateway.drain import Drain
from gateway.idempotency import FirstAnswers
from gateway.metrics import Metrics
from gateway.throttle import Throttle
from shared.runtime import Runtime
from shared.settings import GatewaySettings


@dataclass(frozen=True)
class Parts:
    """Made once, by `create_gateway`."""

    settings: GatewaySettings
    custody: Custody
    runtime: Runtime
    catalogue: Catalogue
    drain: Drain
    metrics: Metrics
    first_answers: FirstAnswers
    throttle: Throttle
    own_openapi: Callable[[], dict[str, Any]]


def parts_of(request: Request) -> Parts:
    """Dependency."""
    parts: Parts = request.app.state.parts
    return parts


Here = Annotated[Parts, Depends(parts_of)]
