"""`Client` and `AsyncClient`: the same surface, once for threads and once for an event loop."""

from __future__ import annotations

import os
from functools import cached_property
from types import TracebackType
from typing import Self

import httpx

from tenfold import _constants as bounds
from tenfold._context import Options
from tenfold._drivers import AsyncDriver, Driver
from tenfold._operations import call, submit
from tenfold._surface import awaited, blocking
from tenfold.methods import AsyncServed, Served
from tenfold.resources.audit import AsyncAudit, Audit
from tenfold.resources.files import AsyncFiles, Files
from tenfold.resources.health import health
from tenfold.resources.jobs import AsyncJobs, Jobs
from tenfold.resources.keys import AsyncKeys, Keys
from tenfold.resources.methods import AsyncMethods, Methods
from tenfold.resources.models import AsyncModels, Models


class Client(Served):
    """A Tenfold service, for code that waits for its answers. Many threads may share one.

    base_url     `http://host:port` or `https://host`; by default `TENFOLD_URL`, or else this machine, port 8080
    api_key      by default `TENFOLD_API_KEY`
    timeout_s    longest silence of the server in one attempt
    max_retries  how often a request is repeated that failed in a way that passes; it never counts twice

    Close it, or use it as a context manager.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = bounds.TIMEOUT_S,
        max_retries: int = bounds.MAX_RETRIES,
    ) -> None:
        options = Options.chosen(
            base_url, api_key, timeout_s=timeout_s, max_retries=max_retries, environment=os.environ
        )
        super().__init__(Driver(options, httpx.Client()))

    def with_options(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float | None = None,
        max_retries: int | None = None,
    ) -> Client:
        """A client that shares the connections, under the options given here.

        Closing either closes the connections of both.
        """
        options = self._driver.options.changed(base_url, api_key, timeout_s, max_retries)
        other = Client.__new__(Client)
        Served.__init__(other, self._driver.with_options(options))
        return other

    def close(self) -> None:
        """Let the connections go."""
        self._driver.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._driver.options.base_url!r})"

    call = blocking(call)
    submit = blocking(submit)
    health = blocking(health)

    @cached_property
    def jobs(self) -> Jobs:
        """The tenant's jobs."""
        return Jobs(self._driver)

    @cached_property
    def files(self) -> Files:
        """Files that the service keeps: large inputs, and all outputs."""
        return Files(self._driver)

    @cached_property
    def models(self) -> Models:
        """Weights that methods can be run with."""
        return Models(self._driver)

    @cached_property
    def methods(self) -> Methods:
        """The methods that are served."""
        return Methods(self._driver)

    @cached_property
    def keys(self) -> Keys:
        """The tenant's secret keys."""
        return Keys(self._driver)

    @cached_property
    def audit(self) -> Audit:
        """The audit trail of the tenant's secret keys."""
        return Audit(self._driver)


class AsyncClient(AsyncServed):
    """A Tenfold service, for code on an asyncio event loop. The methods are those of `Client`, awaited.

    What `Client` returns an iterator for, this returns an asynchronous iterator for; files in results are `AsyncFile`.
    The arguments are those of `Client`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = bounds.TIMEOUT_S,
        max_retries: int = bounds.MAX_RETRIES,
    ) -> None:
        options = Options.chosen(
            base_url, api_key, timeout_s=timeout_s, max_retries=max_retries, environment=os.environ
        )
        super().__init__(AsyncDriver(options, httpx.AsyncClient()))

    def with_options(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float | None = None,
        max_retries: int | None = None,
    ) -> AsyncClient:
        """A client that shares the connections, under the options given here.

        Closing either closes the connections of both.
        """
        options = self._driver.options.changed(base_url, api_key, timeout_s, max_retries)
        other = AsyncClient.__new__(AsyncClient)
        AsyncServed.__init__(other, self._driver.with_options(options))
        return other

    async def close(self) -> None:
        """Let the connections go."""
        await self._driver.http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._driver.options.base_url!r})"

    call = awaited(call)
    submit = awaited(submit)
    health = awaited(health)

    @cached_property
    def jobs(self) -> AsyncJobs:
        """The tenant's jobs."""
        return AsyncJobs(self._driver)

    @cached_property
    def files(self) -> AsyncFiles:
        """Files that the service keeps: large inputs, and all outputs."""
        return AsyncFiles(self._driver)

    @cached_property
    def models(self) -> AsyncModels:
        """Weights that methods can be run with."""
        return AsyncModels(self._driver)

    @cached_property
    def methods(self) -> AsyncMethods:
        """The methods that are served."""
        return AsyncMethods(self._driver)

    @cached_property
    def keys(self) -> AsyncKeys:
        """The tenant's secret keys."""
        return AsyncKeys(self._driver)

    @cached_property
    def audit(self) -> AsyncAudit:
        """The audit trail of the tenant's secret keys."""
        return AsyncAudit(self._driver)
