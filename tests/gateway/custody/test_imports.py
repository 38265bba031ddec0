from __future__ import annotations

import subprocess
import sys

import pytest


def loaded(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "from gateway.custody import Custody",
        "from gateway.principals import Principals; from gateway.custody.service import Custody",
        "from gateway.custody.service import Custody; from gateway.principals import Principals",
        "from gateway.custody.routes import keys_router; from gateway.custody.door import door_router",
    ],
)
def test_custody_loads_in_any_order_and_no_torch_or_numpy_with_it(statement: str) -> None:
    assert loaded(statement).isdisjoint({"torch", "numpy", "diffusers", "transformers", "celery"})


def test_the_workers_side_loads_neither_the_gateway_nor_a_web_framework() -> None:
    assert loaded("import shared.leases").isdisjoint({"gateway", "fastapi", "starlette", "redis", "torch", "numpy"})
