"""The whole product on this machine, with two services beside the shipped ones, and with everything logged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.main_job.conftest import Installation, astronaut, installation

__all__ = ["astronaut"]

SERVICES = ("services.ifadit.service:service", "tests.diagnostic.service:service", "tests.security.probe:service")


@pytest.fixture(scope="session")
def fortress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    settings = {"TENFOLD_LOG_LEVEL": "debug", "TENFOLD_LOG_FORMAT": "json"}
    with installation(tmp_path_factory.mktemp("fortress"), *SERVICES, **settings) as here:
        yield here


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
