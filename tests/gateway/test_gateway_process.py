from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from gateway.app import create_gateway, service_urls
from tests.gateway.echo import Echo
from tests.gateway.house import house
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "diffusers", "transformers", "PIL", "celery"}


def test_a_gateway_process_loads_nothing_that_computes() -> None:
    program = "import sys, gateway.app, gateway.door; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "fastapi" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


class TestServices:
    def test_are_read_from_the_settings(self) -> None:
        found = service_urls(" ifadit=http://ifadit:8000/ , tad-sr=https://10.0.0.1,")
        assert found == {"ifadit": "http://ifadit:8000", "tad-sr": "https://10.0.0.1"}

    @pytest.mark.parametrize(
        "text", ["ifadit", "ifadit=", "=http://a", "ifadit=a:8000", "ifadit=file:///etc", "a=http://"]
    )
    def test_that_are_no_addresses_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="TENFOLD_SERVICES"):
            service_urls(text)

    def test_that_are_named_twice_are_refused(self) -> None:
        with pytest.raises(ValueError, match="twice"):
            service_urls("a=http://b,a=http://c")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Nothing is asked of it."""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("mounted", "services", "words"),
    [
        ({"files": app}, "", "the gateway's own paths"),
        ({}, "keys=http://127.0.0.1:1", "the gateway's own paths"),
        ({"echo": app}, "echo=http://127.0.0.1:1", "mounted in this process"),
    ],
)
async def test_methods_that_cannot_be_told_apart_are_refused_at_start(
    server: RedisServer, home: Path, mounted: dict[str, Any], services: str, words: str
) -> None:
    async with house(server, home, {"echo": Echo()}) as gateway:
        settings = gateway.settings.model_copy(update={"services": services})
        with pytest.raises(ValueError, match=words):
            create_gateway(settings, gateway.custody, gateway.runtime, mounted)
