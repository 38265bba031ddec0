"""`client.health`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenfold._effects import Plan
from tenfold._exchange import get as reading
from tenfold._exchange import json_in, problem_in, send
from tenfold.types import Health

if TYPE_CHECKING:
    from tenfold._context import Context


def health(context: Context[Any]) -> Plan[Health]:
    """Whether the service can take work. Needs no API key. Raises `ConnectionFailed` if nothing answers at all."""
    answer = yield from send(context, reading("/readyz"))
    if answer.status == 200:
        said = json_in(answer)
        return Health.model_validate({"ready": True, **(said if isinstance(said, dict) else {})})
    problem = problem_in(answer)
    if problem.status != 503:
        raise problem
    return Health.model_validate({"ready": False, "detail": problem.detail, **problem.extras})
