"""What is served: the services' own descriptions, kept fresh, one service's absence no harm to the others."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.upstream import RETRY_S, Upstream
from shared.problems import MethodNotFound, OperationNotFound, Problem, ServiceUnavailable

REFRESH_S = 10.0  # a method that was updated is seen so much later
_SETTLED_S = 1.0  # an unknown operation asks the service again, but not more often

log = structlog.get_logger()


class Operation(BaseModel):
    """What the gateway needs to know of an operation; the service says more to others."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["compute", "train"]
    wait_s: float
    deadline_s: float = 3600
    scope: str | None = None
    """None: the service decides by the request's content."""
    lease: Literal["anonymize", "recover", "verify"] | None = None


class Description(BaseModel):
    """A method, as its service describes it."""

    model_config = ConfigDict(frozen=True)

    method: str
    operations: tuple[Operation, ...]

    def operation(self, name: str) -> Operation | None:
        return next((operation for operation in self.operations if operation.name == name), None)


@dataclass(frozen=True)
class _Known:
    description: Description
    text: Mapping[str, Any]
    """The description as the service gave it."""
    at: float


class Catalogue:
    """The methods of this installation and where they are served."""

    def __init__(self, upstreams: Mapping[str, Upstream], *, now: Callable[[], float] = time.monotonic) -> None:
        self._upstreams = dict(upstreams)
        self._now = now
        self._known: dict[str, _Known] = {}
        self._failures: dict[str, tuple[float, str]] = {}
        self._asking = {method: asyncio.Lock() for method in upstreams}

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(sorted(self._upstreams))

    @property
    def unavailable(self) -> tuple[str, ...]:
        """Methods whose service did not answer when it was last asked."""
        return tuple(sorted(self._failures))

    def upstream(self, method: str) -> Upstream:
        """Where `method` is served. Raises `MethodNotFound`."""
        if method not in self._upstreams:
            raise MethodNotFound(f"There is no method {method}.", methods=list(self.methods))
        return self._upstreams[method]

    async def operation(self, method: str, name: str) -> Operation:
        """Raises `MethodNotFound`, `OperationNotFound`, or `ServiceUnavailable` if the method was never heard of."""
        self.upstream(method)
        known = self._known.get(method) or await self._asked(method, max_age_s=0)
        found = known.description.operation(name)
        if found is None and self._now() - known.at > _SETTLED_S:
            with contextlib.suppress(ServiceUnavailable):  # what is known will do
                known = await self._asked(method, max_age_s=_SETTLED_S)
            found = known.description.operation(name)
        if found is None:
            operations = [operation.name for operation in known.description.operations]
            raise OperationNotFound(f"{method} has no operation {name}.", method=method, operations=operations)
        return found

    async def described(self, method: str) -> dict[str, Any]:
        """The description as of now, live numbers included. Raises `MethodNotFound`, `ServiceUnavailable`."""
        self.upstream(method)
        return {**(await self._asked(method, max_age_s=0)).text, "available": True}

    async def listed(self) -> list[dict[str, Any]]:
        """All descriptions as of now; a method that does not answer with what was known of it, and why."""

        async def one(method: str) -> dict[str, Any]:
            try:
                return await self.described(method)
            except Problem as problem:
                known = self._known.get(method)
                text = {name: value for name, value in known.text.items() if name != "live"} if known else {}
                return {"method": method, **text, "available": False, "error": problem.body()}

        return list(await asyncio.gather(*(one(method) for method in self.methods)))

    async def openapi(self) -> dict[str, dict[str, Any]]:
        """The OpenAPI document of every service that answers."""

        async def one(method: str) -> dict[str, Any] | None:
            try:
                return await self._upstreams[method].fetch("/openapi.json")
            except ServiceUnavailable:
                return None

        documents = await asyncio.gather(*(one(method) for method in self.methods))
        return {m: document for m, document in zip(self.methods, documents, strict=True) if document is not None}

    async def _asked(self, method: str, *, max_age_s: float) -> _Known:
        began = self._now()
        async with self._asking[method]:
            known = self._known.get(method)
            if known and (known.at >= began or began - known.at <= max_age_s):
                return known  # somebody else asked while we waited for our turn
            failed_at, detail = self._failures.get(method, (-math.inf, ""))
            if began - failed_at < _SETTLED_S:  # nor does everybody wait for the same dead address
                raise ServiceUnavailable(detail, retry_after_s=RETRY_S, method=method)
            try:
                known = self._read(method, await self._upstreams[method].fetch(f"/v1/methods/{method}"))
            except ServiceUnavailable as problem:
                if method not in self._failures:
                    log.warning("method.unavailable", method=method, detail=problem.detail)
                self._failures[method] = (self._now(), problem.detail)
                raise
            if self._failures.pop(method, None):
                log.info("method.available", method=method)
            self._known[method] = known
            return known

    def _read(self, method: str, text: Mapping[str, Any]) -> _Known:
        try:
            description = Description.model_validate(text)
            if description.method != method:
                raise ValueError(f"it calls itself {description.method}")
        except (ValidationError, ValueError) as error:
            log.error("method.misdescribed", method=method, error=str(error))
            raise ServiceUnavailable(f"The method {method} is misconfigured.", retry_after_s=RETRY_S) from error
        return _Known(description, text, self._now())

    @contextlib.asynccontextmanager
    async def kept_fresh(self) -> AsyncIterator[None]:
        """Ask every method every `REFRESH_S`, each on its own, until the block ends."""

        async def keep(method: str) -> None:
            while True:
                with contextlib.suppress(ServiceUnavailable):  # noted, and asked again
                    await self._asked(method, max_age_s=0)
                await asyncio.sleep(REFRESH_S)

        tasks = [asyncio.create_task(keep(method)) for method in self.methods]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
